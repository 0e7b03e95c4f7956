"""Records, from files and from the bundled world, and the token rows they become. What is cut or dropped on the way is said aloud."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tinyllm.data import records, shards, world
from tinyllm.data.datasets import Answers, Judgements, Packed, Preferences, TokenJudgement, TokenPair
from tinyllm.errors import UserError
from tinyllm.rollout.judge import TokenPrompt
from tinyllm.stages.config import DataConfig
from tinyllm.text import chat
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train.progress import say

_WORLD_VAL = 256  # held-out records of the world that a stage looks at


def is_world(source: str) -> bool:
    return source == "world" or source.startswith("world:")


def _from_world(kind: str, source: str, split: str, seed: int, options: Mapping[str, Any]) -> list[Any]:
    """`world:N` as records."""
    _, _, number = source.partition(":")
    if not number.isdecimal() or not int(number):
        raise UserError(f"{source!r} does not say how many records", where="data", fix="write for example world:20000")
    count, settings = int(number), {"seed": seed, "split": split, **options}
    if kind == "documents":
        return [records.Document(row["text"]) for row in world.documents(count, **settings)]
    if kind == "conversations":
        return [records.Conversation(tuple(row["messages"])) for row in world.conversations(count, **settings)]
    if kind == "pairs":
        found = world.pairs(count, **settings)
        return [records.Pair(tuple(row["prompt"]), tuple(row["chosen"]), tuple(row["rejected"])) for row in found]
    if kind == "judgements":
        found = world.pairs(count, **settings)
        sides = ("chosen", "rejected")
        return [records.Judgement(tuple(r["prompt"]), tuple(r[s]), s == "chosen") for r in found for s in sides]
    rows = world.prompts(count, **settings)
    return [records.Prompt(tuple(row["prompt"]), {k: v for k, v in row.items() if k != "prompt"}) for row in rows]


def read_split(
    data: DataConfig, kind: str, seed: int, **world_options: Any
) -> tuple[list[Any], list[Any], list[dict[str, Any]]]:
    """Training records, held-out records and what run.json says about the sources.

    Held-out records are `data.val`; without it the world holds out its own, and of files every record whose content hashes below
    `data.val_fraction` (at least one) is set aside, so equal records are never on both sides.
    """
    facts: list[dict[str, Any]] = []
    files = [s for s in data.train if not is_world(s)]
    train = [r for s in data.train if is_world(s) for r in _from_world(kind, s, "train", seed, world_options)]
    facts += [{"source": s, "seed": seed} for s in data.train if is_world(s)]
    val = [r for s in data.val if is_world(s) for r in _from_world(kind, s, "val", seed, world_options)]
    from_files = _read_files(files, kind, data, facts)
    val += _read_files([s for s in data.val if not is_world(s)], kind, data, facts)
    if not data.val:
        if train:
            val += _from_world(
                kind,
                f"world:{_WORLD_VAL}",
                "val",
                seed,
                {k: v for k, v in world_options.items() if k not in ("wrong", "flawed")},
            )
        places = ["val" if shards.place_of(repr(r).encode()) < data.val_fraction else "train" for r in from_files]
        if from_files and len(from_files) > 1 and "val" not in places:
            places[-1] = "val"
        val += [r for r, place in zip(from_files, places, strict=True) if place == "val"]
        from_files = [r for r, place in zip(from_files, places, strict=True) if place == "train"]
    train += from_files
    if not train or not val:
        raise UserError(
            f"{len(train)} records to train on and {len(val)} to validate with",
            where="data",
            fix="name more records in data.train",
        )
    return train, val, facts


def _read_files(sources: Sequence[str], kind: str, data: DataConfig, facts: list[dict[str, Any]]) -> list[Any]:
    if not sources:
        return []
    reader = records.read(list(sources), kind, format=data.format, field=data.field, on_bad_line=data.on_bad_line)
    found = list(reader)
    for line in reader.report.lines():
        say(line)
    facts += reader.report.sources()
    return found


def answers_from(
    conversations: Sequence[Any], tokenizer: Tokenizer, max_length: int, what: str, *, packing: bool = False
) -> Answers | Packed:
    """Conversations as rows; those cut off are counted aloud, those with nothing left to learn are dropped."""
    rendered = chat.render_many(tokenizer, [c.messages for c in conversations])
    rows = [(r.ids[:max_length], r.mask[:max_length]) for r in rendered]
    cut = sum(len(r.ids) > max_length for r in rendered)
    kept = [(ids, mask) for ids, mask in rows if any(mask[1:])]
    _tell(what, len(rows), cut, len(rows) - len(kept), max_length)
    if not packing:
        return Answers(kept, _pad(tokenizer))
    packed = Packed(kept, _pad(tokenizer), max_length)
    tokens = sum(len(ids) for ids, _ in kept)
    say(f"{what}: packed into {len(packed):,} rows, {tokens / len(packed) / max_length:.1%} full")
    return packed


def preferences_from(pairs: Sequence[Any], tokenizer: Tokenizer, max_length: int, what: str) -> Preferences:
    """Pairs as token ids. Too long a prompt loses its beginning, too long an answer its end; equal answers teach nothing and go."""
    cut, kept = 0, []
    for pair in pairs:
        prompt, chosen = chat.completion_ids(tokenizer, pair.prompt, pair.chosen)
        _, rejected = chat.completion_ids(tokenizer, pair.prompt, pair.rejected)
        longest = max(len(chosen), len(rejected))
        if len(prompt) + longest > max_length:
            cut += 1
            prompt = prompt[-max(max_length // 2, max_length - longest) :]
            chosen, rejected = chosen[: max_length - len(prompt)], rejected[: max_length - len(prompt)]
        if chosen != rejected:
            kept.append(TokenPair(prompt, chosen, rejected, pair.margin or 0.0))
    _tell(what, len(pairs), cut, len(pairs) - len(kept), max_length)
    return Preferences(kept, _pad(tokenizer))


def judgements_from(judgements: Sequence[Any], tokenizer: Tokenizer, max_length: int, what: str) -> Judgements:
    """Judged answers as token ids, cut as `preferences_from` cuts."""
    cut, found = 0, []
    for judgement in judgements:
        prompt, answer = chat.completion_ids(tokenizer, judgement.prompt, judgement.completion)
        if len(prompt) + len(answer) > max_length:
            cut += 1
            prompt = prompt[-max(max_length // 2, max_length - len(answer)) :]
            answer = answer[: max_length - len(prompt)]
        found.append(TokenJudgement(prompt, answer, judgement.good))
    if len({j.good for j in found}) < 2:
        raise UserError(
            f"all {len(found)} {what} answers have one label: there is nothing to tell apart",
            where="data",
            fix="add answers with the other label",
        )
    _tell(what, len(judgements), cut, 0, max_length)
    return Judgements(found, _pad(tokenizer))


def prompts_from(prompts: Sequence[Any], tokenizer: Tokenizer, max_length: int, what: str) -> list[TokenPrompt]:
    """Prompts up to the assistant's header; those that leave no room in the context are dropped, and counted."""
    rendered = chat.render_many(tokenizer, [p.messages for p in prompts], generation_prompt=True)
    kept = [
        TokenPrompt(r.ids, {"prompt": list(p.messages), **p.columns})
        for r, p in zip(rendered, prompts, strict=True)
        if len(r.ids) <= max_length
    ]
    _tell(what, len(prompts), 0, len(prompts) - len(kept), max_length)
    return kept


def _tell(what: str, total: int, cut: int, dropped: int, max_length: int) -> None:
    if total == dropped:
        raise UserError(
            f"none of {total} {what} records can be learned from at {max_length} tokens",
            where="data.max_length",
            fix="raise data.max_length",
        )
    parts = [f"{cut} cut to {max_length} tokens"] * bool(cut) + [f"{dropped} dropped"] * bool(dropped)
    say(f"{what}: {total - dropped:,} records" + (f" ({', '.join(parts)})" if parts else ""))


def _pad(tokenizer: Tokenizer) -> int:
    return tokenizer.endoftext if tokenizer.pad is None else tokenizer.pad
