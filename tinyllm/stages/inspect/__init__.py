"""`tinyllm data inspect`: what a stage would see of its data, without training.

One pass over all records counts them, their duplicates and the prompts that both sides share; 25 bytes a record are kept for that. Tokens
are counted on all records, of more than `SAMPLE` on an even sample of so many, drawn by a hash of their text: then it is said. What is
made of the records, and what is found wrong with them, is the code of the stages themselves (`sides`, `rows`, `preflight`). No torch.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinyllm import algorithms
from tinyllm.data.records import Record, Report
from tinyllm.errors import UserError, harmless
from tinyllm.stages import preflight, rows, sides
from tinyllm.stages.inspect.figures import fit, lengths
from tinyllm.stages.inspect.rendered import shown
from tinyllm.stages.inspect.tokenizer import Vocabulary
from tinyllm.stages.meter import Meter
from tinyllm.stages.preflight import Finding
from tinyllm.stages.rows import Facts, Room
from tinyllm.stages.sides import SPLIT, TRAIN, VAL, Records
from tinyllm.text.tokenizer import Tokenizer

SAMPLE = 20_000  # records whose tokens are counted
SAMPLE_CHARACTERS = 64_000_000  # of their text together
_ROWS: dict[str, Callable[..., tuple[list[Any], Facts]]] = {
    "documents": lambda *a: ([], rows.documents(*a)),
    "conversations": rows.conversations,
    "pairs": rows.pairs,
    "judgements": rows.judgements,
    "prompts": rows.prompts,
}


def world_options(config: Any, kind: str) -> dict[str, Any]:
    """What this configuration asks of the bundled world."""
    names = {"conversations": ("wrong", "flawed"), "pairs": ("noise",), "judgements": ("noise",), "prompts": ("task",)}
    return {name: getattr(config, name) for name in names.get(kind, ()) if getattr(config, name)}


def kind_of(place: str, config: Any) -> str:
    """What kind of records a stage reads, by the name `parents` knows it by."""
    if place == "align-offline":
        return algorithms.load(config.algorithm, "offline").DATA
    return {"pretrain": "documents", "sft": "conversations", "rm": "pairs", "align-online": "prompts"}[place]


# --- one pass --------------------------------------------------------------------------------------------------------------------


@dataclass
class Survey:
    """What is known of all records, and some of the records themselves."""

    most: int = SAMPLE
    most_characters: int = SAMPLE_CHARACTERS
    side: bytearray = field(default_factory=bytearray)
    openings: array = field(default_factory=lambda: array("Q"))  # of those whose side is open
    prompts: array = field(default_factory=lambda: array("Q"))
    whole: array = field(default_factory=lambda: array("Q"))
    sample: list[tuple[int, int, Record]] = field(default_factory=list)  # a heap of (-key, number, record)
    characters: int = 0  # of the sample
    val: np.ndarray = field(init=False)  # (N,) bool
    keys: np.ndarray = field(init=False)  # (N,) uint64, of whole records
    prompt_keys: np.ndarray = field(init=False)  # (N,) uint64

    def add(self, side: str, record: Record) -> None:
        messages = sides.messages_of(record)
        key, number = sides.key(messages), len(self.side)
        self.side.append((TRAIN, VAL, SPLIT).index(side))
        self.whole.append(key)
        self.prompts.append(sides.key(sides.prompt_of(record)))
        if side == SPLIT:
            self.openings.append(sides.key(sides.opening_of(record)))
        if len(self.sample) >= self.most and -key < self.sample[0][0]:
            return
        heapq.heappush(self.sample, (-key, -number, record))
        self.characters += size(record)
        while len(self.sample) > 1 and (len(self.sample) > self.most or self.characters > self.most_characters):
            self.characters -= size(heapq.heappop(self.sample)[2])
            self.most = min(self.most, max(1, len(self.sample)))

    def settle(self, val_fraction: float) -> tuple[bool, tuple[int, int]]:
        """Decide the sides that were open. Whether that could not be done by prompt; how many of how many are held out."""
        found = np.frombuffer(self.side, np.uint8)
        self.prompt_keys, self.keys = (np.array(kept, np.uint64) for kept in (self.prompts, self.whole))
        open_ = found == 2
        openings = np.array(self.openings, np.uint64)
        held, by_record = sides.split(openings, lambda: self.keys[open_], val_fraction)
        self.val = found == 1
        self.val[open_] = held
        return by_record, (int(held.sum()), len(held))

    def records(self, val: bool) -> list[Record]:
        """Those of the sample that are on one side, in the order of the data."""
        return [record for _, number, record in sorted(self.sample, key=lambda s: -s[1]) if self.val[-number] == val]

    def repeated(self) -> dict[str, int]:
        """Records that came before on their side; held-out ones that are trained on, and those whose prompt is."""
        train, val = self.keys[~self.val], self.keys[self.val]
        return {
            "train": len(train) - len(np.unique(train)),
            "val": len(val) - len(np.unique(val)),
            "val_in_train": int(np.isin(val, train).sum()),
            "prompts_in_both": int(np.isin(self.prompt_keys[self.val], self.prompt_keys[~self.val]).sum()),
        }


def size(record: Record) -> int:
    return sum(len(message["content"]) for message in sides.messages_of(record))


def survey(config: Any, kind: str) -> tuple[Survey, list[Report], list[Finding]]:
    """Read everything once. Where a stage would stop at a bad row, it goes on without it, and says so."""
    try:
        return *_pass(config, kind, config.data.on_bad_line), []
    except UserError as error:
        if config.data.on_bad_line != "error" or "-" in (*config.data.train, *config.data.val):
            raise
        try:
            found, reports = _pass(config, kind, "skip")
        except UserError:
            raise error from None
        return found, reports, [Finding("refused", "bad_row", error.what, error.fix, error.where)]


def _pass(config: Any, kind: str, on_bad_line: str) -> tuple[Survey, list[Report]]:
    source = Records(config.data, kind, config.seed, on_bad_line=on_bad_line, **world_options(config, kind))
    found, done = Survey(SAMPLE, SAMPLE_CHARACTERS), 0
    with Meter("inspect", source.size) as meter:
        for number, (side, record) in enumerate(source):
            found.add(side, record)
            done += size(record)
            if number % 256 == 0:
                meter.update(source.read, done)
    return found, [reader.report for reader in source.readers]


# --- the report ------------------------------------------------------------------------------------------------------------------


def run(config: Any, kind: str, verb: str, vocabulary: Vocabulary, *, shown: int = 3) -> dict[str, Any]:
    """What `tinyllm VERB` would see with this configuration.

    Args:
        vocabulary: the tokenizer to count with, and the positions of the model; without one there are only characters and words.
        shown: records that are shown token by token.

    Raises: UserError where the data cannot be read at all.
    """
    found, reports, findings = survey(config, kind)
    by_record, split = found.settle(config.data.val_fraction)
    repeated = found.repeated()
    total = len(found.side)
    held = int(found.val.sum())
    if kind == "documents":
        findings += preflight.sides(total - held, held, 0, data=config.data, what="documents")
    else:
        shared = repeated["prompts_in_both"]
        findings += preflight.sides(total - held, held, shared, data=config.data, split=split, by_record=by_record)
    room = room_of(config, kind, vocabulary.context)
    findings += _too_much(config, vocabulary.context)
    tokenizer, picked = vocabulary.tokenizer, {name: found.records(name == VAL) for name in (TRAIN, VAL)}
    facts = {} if tokenizer is None else {n: _facts(kind, r, tokenizer, room, n) for n, r in picked.items() if r}
    sampled = len(found.sample)
    findings += _of_rows(config, kind, picked, facts, "" if sampled == total else f" (of {sampled:,} sampled records)")
    everything = [*picked[TRAIN], *picked[VAL]]
    return {
        "schema_version": 1,
        "stage": "inspect",
        "verb": verb,
        "kind": kind,
        "sources": _sources(config, reports),
        "records": {"train": total - held, "val": held},
        "dropped": _tallies(reports, "dropped"),
        "mended": _tallies(reports, "mended"),
        "split": _split(config, kind, reports, by_record),
        "repeated": repeated,
        "sample": {"records": sampled, "of": total},
        "tokenizer": vocabulary.to_dict(),
        "lengths": lengths(everything, facts),
        "fit": fit(facts, room),
        "findings": [{k: harmless(v, keep="\n") for k, v in f.to_dict().items()} for f in findings],
        "refused": any(f.level == "refused" for f in findings),
        "examples": _examples(picked[TRAIN] or picked[VAL], facts.get(TRAIN), tokenizer, room, shown),
    }


def room_of(config: Any, kind: str, context: int | None) -> Room:
    """The room that the stage of this configuration gives a record."""
    if kind == "documents":
        return Room(config.data.max_length)
    new = config.rollout.max_new_tokens if kind == "prompts" else 0
    return Room(config.data.max_length, config.data.too_long, context, new)


def _too_much(config: Any, context: int | None) -> list[Finding]:
    if context is None or config.data.max_length <= context:
        return []
    told = f"data.max_length {config.data.max_length} is more than the model's {context} positions"
    return [Finding("refused", "context", told, f"set it to {context}", "data.max_length")]


def _facts(kind: str, found: Sequence[Record], tokenizer: Tokenizer, room: Room, what: str) -> Facts:
    return _ROWS[kind](found, tokenizer, room, what)[1]


def _of_rows(
    config: Any, kind: str, picked: Mapping[str, Sequence[Any]], facts: Mapping[str, Facts], of_sample: str
) -> list[Finding]:
    """What `preflight` says of the rows of both sides. Of a sample the counts are the sample's, and it is said."""
    found = [finding for side in facts.values() for finding in preflight.rows(side)]
    if kind == "judgements":
        found += [one for side in (TRAIN, VAL) for one in preflight.labels([r.good for r in picked[side]], side)]
    kept = int(facts[TRAIN].kept.sum()) if TRAIN in facts else len(picked[TRAIN])
    if of_sample or not kept:
        return [Finding(f.level, f.rule, f.what + of_sample, f.fix, f.where) for f in found]
    size, batch = config.data.max_length, config.train.batch_size
    if kind == "documents" and TRAIN not in facts:
        return found
    if kind == "documents":
        return found + preflight.batch(int(facts[TRAIN].length.sum()) // size, batch, f"rows of {size} tokens")
    if kind == "prompts":
        return found + preflight.rollout(kept, batch * config.rollout.minibatches // config.rollout.group_size)
    if kind == "conversations" and config.packing:
        return found
    return found + preflight.batch(kept, batch, "records" if kind == "conversations" else kind)


def _split(config: Any, kind: str, reports: Sequence[Report], by_record: bool) -> str:
    if config.data.val:
        return "val"
    if not reports:
        return "world"
    return "text" if kind == "documents" else "record" if by_record else "prompt"


def _sources(config: Any, reports: Sequence[Report]) -> list[dict[str, Any]]:
    world = [source for source in (*config.data.train, *config.data.val) if source.startswith("world")]
    found: list[dict[str, Any]] = [{"source": source, "format": "world", "notes": []} for source in world]
    for report in reports:
        for file in report.files:
            named = {"source": harmless(file.source), "format": file.format, "rows": file.rows}
            left_out = [f"without the column {name}" for name in file.left_out]
            notes = [harmless(note) for note in [*file.notes, *left_out[:8], *["…"] * (len(left_out) > 8)]]
            found.append(named | {"records": file.records, "notes": notes})
    return found


def _tallies(reports: Sequence[Report], which: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for report in reports:
        for reason, tally in getattr(report, which).items():
            kept = found.setdefault(harmless(reason), {"count": 0, "places": []})
            kept["count"] += tally.count
            kept["places"] = [*kept["places"], *map(harmless, tally.places)][:5]
    return found


def _examples(
    found: Sequence[Record], facts: Facts | None, tokenizer: Tokenizer | None, room: Room, most: int
) -> list[dict[str, Any]]:
    """The first records, token by token; the last of them is one that is too long, if there is one."""
    chosen = list(range(min(most, len(found))))
    if chosen and facts is not None and facts.long.any() and not facts.long[chosen].any():
        chosen[-1] = int(facts.long.argmax())
    return [{"record": i + 1, "rows": shown(found[i], tokenizer, room)} for i in chosen]
