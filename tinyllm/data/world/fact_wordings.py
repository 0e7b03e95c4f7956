"""Wordings of questions about facts. Val has wordings that train does not have.

Templates: {n} the subject (a name, "she", "Ada's best friend"), {v} the value, {s} a statement without its full stop.
"""

from __future__ import annotations

Templates = dict[str, dict[str, tuple[str, ...]]]  # attribute or task: split: wordings

ASK: Templates = {
    "home": {
        "train": (
            "Where does {n} live?",
            "Which town does {n} live in?",
            "In which town does {n} live?",
            "What is the home town of {n}?",
            "Where is {n}'s home?",
            "Tell me where {n} lives.",
            "Where is {n}'s house?",
            "Which town does {n} come from?",
            "Name the town where {n} lives.",
        ),
        "val": ("What town does {n} live in?", "Do you know where {n} lives?", "Where is the home of {n}?"),
    },
    "job": {
        "train": (
            "What is {n}'s job?",
            "What job does {n} have?",
            "What does {n} work as?",
            "What is the job of {n}?",
            "Which job does {n} do?",
            "Tell me {n}'s job.",
            "What work does {n} do?",
            "What kind of work does {n} do?",
            "Name the job of {n}.",
        ),
        "val": ("Which job does {n} have?", "Do you know what {n} works as?", "Tell me what job {n} does."),
    },
    "pet": {
        "train": (
            "What pet does {n} have?",
            "Which animal does {n} have as a pet?",
            "What kind of pet does {n} have?",
            "What animal is {n}'s pet?",
            "Which pet does {n} keep?",
            "What kind of animal does {n} keep at home?",
            "Tell me which pet {n} has.",
            "What animal does {n} own?",
            "Which animal does {n} take care of?",
        ),
        "val": (
            "Which pet does {n} have?",
            "Do you know what pet {n} keeps?",
            "What kind of animal is the pet of {n}?",
        ),
    },
    "pet_name": {
        "train": (
            "What is {n}'s pet called?",
            "What is the name of {n}'s pet?",
            "What did {n} name the pet?",
            "Tell me the name of {n}'s pet.",
            "What name does {n}'s pet have?",
            "Which name does the pet of {n} have?",
            "What is the pet of {n} called?",
            "Name {n}'s pet.",
        ),
        "val": ("Do you know the name of {n}'s pet?", "What is the name of the pet of {n}?"),
    },
    "food": {
        "train": (
            "What is {n}'s favourite food?",
            "What does {n} like to eat best?",
            "Which food does {n} like best?",
            "What is the favourite food of {n}?",
            "What does {n} love to eat?",
            "Tell me {n}'s favourite food.",
            "Which food does {n} love most?",
            "What could {n} eat every day?",
            "Name the food that {n} likes best.",
        ),
        "val": ("Which food is {n}'s favourite?", "What food does {n} love most?", "Do you know {n}'s favourite food?"),
    },
    "colour": {
        "train": (
            "What is {n}'s favourite colour?",
            "Which colour does {n} like best?",
            "What colour does {n} like best?",
            "What is the favourite colour of {n}?",
            "Tell me {n}'s favourite colour.",
            "Which colour does {n} love most?",
            "Which colour would {n} pick?",
            "Name the colour that {n} likes best.",
            "Of all colours, which one does {n} like best?",
        ),
        "val": (
            "Which colour is {n}'s favourite?",
            "What colour does {n} love most?",
            "Do you know {n}'s favourite colour?",
        ),
    },
    "hobby": {
        "train": (
            "What is {n}'s hobby?",
            "Which hobby does {n} have?",
            "What does {n} like to do in free time?",
            "What is the hobby of {n}?",
            "Tell me {n}'s hobby.",
            "What does {n} enjoy?",
            "What hobby does {n} enjoy?",
            "Name the hobby of {n}.",
            "What is {n} fond of?",
        ),
        "val": ("What hobby does {n} have?", "Do you know {n}'s hobby?", "Which hobby does {n} enjoy?"),
    },
    "month": {
        "train": (
            "When was {n} born?",
            "In which month was {n} born?",
            "When is {n}'s birthday?",
            "In which month is {n}'s birthday?",
            "What is the month of {n}'s birthday?",
            "Which month was {n} born in?",
            "Tell me when {n} was born.",
            "When is the birthday of {n}?",
            "Name the month of {n}'s birthday.",
        ),
        "val": ("What month was {n} born in?", "Do you know when {n} was born?", "Tell me when {n}'s birthday is."),
    },
    "friend": {
        "train": (
            "Who is {n}'s best friend?",
            "Who is the best friend of {n}?",
            "What is the name of {n}'s best friend?",
            "Tell me who {n}'s best friend is.",
            "Which person is {n}'s best friend?",
            "Name {n}'s best friend.",
            "Who does {n} tell every secret to?",
            "With whom does {n} spend many days?",
        ),
        "val": ("Do you know who {n}'s best friend is?", "Tell me the name of {n}'s best friend."),
    },
    "landmark": {
        "train": (
            "What is {n} known for?",
            "What can you see in {n}?",
            "What is {n} famous for?",
            "What do people visit in {n}?",
            "Why do people visit {n}?",
            "What famous place does {n} have?",
            "Tell me what {n} is known for.",
            "What is everyone in {n} proud of?",
        ),
        "val": ("Do you know what {n} is known for?", "What famous place is in {n}?"),
    },
}

ASK_INVERSE: Templates = {
    "pet_name": {
        "train": (
            "Whose pet is {v}?",
            "Who does {v} belong to?",
            "Who has a pet called {v}?",
            "Who is the owner of {v}?",
            "Who owns {v}?",
            "Which person has a pet called {v}?",
            "Tell me who {v} belongs to.",
            "Name the owner of {v}.",
        ),
        "val": ("Do you know whose pet {v} is?", "Who calls a pet {v}?", "Tell me the owner of {v}."),
    },
    "landmark": {
        "train": (
            "Where is the {v}?",
            "Which town has the {v}?",
            "In which town is the {v}?",
            "Where can I see the {v}?",
            "Which town is known for its {v}?",
            "Tell me where the {v} is.",
            "Where does the {v} stand?",
            "Name the town with the {v}.",
        ),
        "val": ("What town has the {v}?", "Do you know where the {v} is?", "Which town is famous for the {v}?"),
    },
}

CHECK = {
    "train": (
        "Is it true that {s}?",
        "Is this right: {s}?",
        "I heard that {s}. Is that true?",
        "Someone told me that {s}. Is that right?",
        "Yes or no: {s}?",
        "Am I right that {s}?",
        "Would you say that {s}?",
        "They say that {s}. Is it true?",
        "I think that {s}. Am I right?",
    ),
    "val": ("Is it right that {s}?", "Someone said that {s}. Is it true?", "True or not: {s}?"),
}

SHORT = {
    "train": (
        "Answer with one word.",
        "Just one word, please.",
        "Use only one word.",
        "Say it in one word.",
        "Please answer in one word.",
        "One word is enough.",
        "Only the answer, please, in one word.",
        "Keep it to one word.",
    ),
    "val": ("Answer in just one word.", "One word only, please."),
}
