"""Wordings of rule-based tasks, as questions (val has its own) and as worked examples in documents.

A task with several kinds of questions has one entry for each, `task/kind`. Templates: {x} the input, {y} the answer.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Wording:
    """The templates of one kind of question."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    worked: tuple[str, ...]


WORDINGS: dict[str, Wording] = {
    "sort": Wording(
        train=(
            "Sort these digits: {x}",
            "Put these digits in order: {x}",
            "Write these digits from small to big: {x}",
            "Order these digits: {x}",
            "Sort the digits {x}",
            "Here are some digits: {x}. Sort them.",
            "Please sort {x}",
            "What are these digits in order: {x}",
            "Sort from small to big: {x}",
        ),
        val=(
            "Put the digits {x} in order",
            "Please sort these digits: {x}",
            "Here are some digits: {x}. Put them in order.",
        ),
        worked=(
            "The digits {x} in order are {y}.",
            "From small to big the digits {x} are {y}.",
            "Sorted from small to big, {x} gives {y}.",
            "Put {x} in order and you get {y}.",
        ),
    ),
    "copy": Wording(
        train=(
            "Copy this: {x}",
            "Write this again: {x}",
            "Repeat this: {x}",
            "Say this again: {x}",
            "Please copy {x}",
            "Repeat after me: {x}",
            "Copy these: {x}",
            "Write the same again: {x}",
        ),
        val=("Please repeat this: {x}", "Copy after me: {x}", "Please write this again: {x}"),
        worked=("Copy {x} and you get {y}.", "A copy of {x} is {y}.", "The same again as {x} is {y}."),
    ),
    "reverse": Wording(
        train=(
            "Write this backwards: {x}",
            "Reverse this: {x}",
            "Turn this around: {x}",
            "Say this backwards: {x}",
            "What is {x} backwards?",
            "Please reverse {x}",
            "Read this from the end: {x}",
            "Put this in reverse order: {x}",
        ),
        val=("Please write {x} backwards", "What is this in reverse order: {x}", "Please turn this around: {x}"),
        worked=("Backwards, {x} is {y}.", "Turn {x} around and you get {y}.", "In reverse order {x} is {y}."),
    ),
    "spell": Wording(
        train=(
            "Spell the word {x}.",
            "How do you spell {x}?",
            "How is {x} spelled?",
            "Spell {x}, please.",
            "Write the letters of {x}.",
            "What are the letters of the word {x}?",
            "Which letters are in {x}?",
            "Tell me how to spell {x}.",
        ),
        val=("Please spell the word {x}.", "How do you spell the word {x}?", "Tell me the letters of {x}."),
        worked=("The word {x} is spelled {y}.", "You spell {x} like this: {y}.", "The letters of {x} are {y}."),
    ),
    "count/letter": Wording(
        train=(
            "Count the letter {x}",
            "How many times do you see the letter {x}",
            "Look for the letter {x}. How many are there?",
            "How often do you see the letter {x}",
            "Count every letter {x}",
            "Find the letter {x}. How many are there?",
            "What is the number of times you see {x}",
            "Please count the letter {x}",
        ),
        val=("How many times can you see the letter {x}", "Count how often you see the letter {x}"),
        worked=("Count the letter {x}. The count is {y}.", "Look for the letter {x}. The number is {y}."),
    ),
    "count/word": Wording(
        train=(
            "Count the {x}",
            "Here are some things. Count the {x}",
            "Look for the {x}. How many are there?",
            "Please count the {x}",
            "Count all the {x}",
            "Find the {x}. How many are there?",
            "What is the number of {x}",
            "Tell me the number of {x}",
        ),
        val=("Can you count the {x}", "Find all the {x}. How many are there?"),
        worked=("Count the {x}. The count is {y}.", "Look for the {x}. The number is {y}."),
    ),
    "sums/plus": Wording(
        train=(
            "What is {x}?",
            "How much is {x}?",
            "Tell me what {x} is.",
            "Work out {x}.",
            "What number is {x}?",
            "Add up: {x}",
            "What do you get for {x}?",
            "Please add: {x}",
        ),
        val=("Please work out {x}.", "How much do you get for {x}?"),
        worked=("We know that {x} is {y}.", "Add them up: {x} is {y}.", "The answer to {x} is {y}."),
    ),
    "sums/minus": Wording(
        train=(
            "What is {x}?",
            "How much is {x}?",
            "Tell me what {x} is.",
            "Work out {x}.",
            "What number is {x}?",
            "Take away: {x}",
            "What do you get for {x}?",
            "What is left from {x}?",
        ),
        val=("Please work out {x}.", "How much do you get for {x}?"),
        worked=("We know that {x} is {y}.", "Take it away: {x} is {y}.", "The answer to {x} is {y}."),
    ),
    "addition": Wording(
        train=(
            "What is {x}?",
            "How much is {x}?",
            "Tell me what {x} is.",
            "Work out {x}.",
            "What number is {x}?",
            "Add up: {x}",
            "What do you get for {x}?",
            "Please add: {x}",
        ),
        val=("Please work out {x}.", "How much do you get for {x}?"),
        worked=("The long sum {x} is {y}.", "Column by column, {x} is {y}."),
    ),
    "compare/bigger": Wording(
        train=(
            "Which is bigger, {x}?",
            "Which number is bigger, {x}?",
            "What is more, {x}?",
            "Which is more, {x}?",
            "Name the bigger number: {x}",
            "Which one is bigger: {x}?",
            "Tell me the bigger number, {x}.",
            "Pick the bigger number: {x}",
        ),
        val=("Which of these is bigger, {x}?", "Find the bigger number: {x}"),
        worked=("Which is bigger, {x}? It is {y}.", "Of the two numbers {x}, the bigger one is {y}."),
    ),
    "compare/smaller": Wording(
        train=(
            "Which is smaller, {x}?",
            "Which number is smaller, {x}?",
            "What is less, {x}?",
            "Which is less, {x}?",
            "Name the smaller number: {x}",
            "Which one is smaller: {x}?",
            "Tell me the smaller number, {x}.",
            "Pick the smaller number: {x}",
        ),
        val=("Which of these is smaller, {x}?", "Find the smaller number: {x}"),
        worked=("Which is smaller, {x}? It is {y}.", "Of the two numbers {x}, the smaller one is {y}."),
    ),
    "odd": Wording(
        train=(
            "Which word does not belong: {x}?",
            "Find the odd one out: {x}",
            "Which is the odd one out: {x}?",
            "One word does not fit: {x}. Which one?",
            "Which word does not fit: {x}?",
            "Pick the odd one out: {x}",
            "Name the word that does not belong: {x}",
            "What does not belong here: {x}?",
        ),
        val=("Which one does not belong: {x}?", "Tell me the odd one out: {x}", "Name the word that does not fit: {x}"),
        worked=(
            "One word does not belong: {x}. It is {y}.",
            "The odd one out of {x} is {y}.",
            "In the list {x} the odd one out is {y}.",
        ),
    ),
}
