"""The data behind a lifecycle: what trains a stage, what selects its checkpoint, and what examines it.

The exam is the test split: of the bundled world, or of the user's data. Never of both: with the user's data no figure reads the world.
What cannot be measured on them is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tinyllm.config import Resolved
from tinyllm.console import say
from tinyllm.data.config import DataConfig, is_world
from tinyllm.data.records.types import Conversation, Prompt
from tinyllm.data.splits import read_split
from tinyllm.lifecycle import baselines, overlap
from tinyllm.lifecycle.stages import STAGES, names_of
from tinyllm.stages import data
from tinyllm.stages.documents import held_out_documents
from tinyllm.text.chat import is_trained

_SEED = 0  # of the bundled world's questions: the same for every lifecycle
TOLERATED = (overlap.LAST,)  # of the user's data: see `overlap.Splits`
_OPTIONS = {"sft": ("wrong", "flawed"), "reward": ("noise",), "offline": ("noise",), "online": ("task",)}


def is_user_data(resolved: Mapping[str, Resolved]) -> bool:
    """Return whether any stage trains on data of the user."""
    return not all(is_world(source) for r in resolved.values() for source in r.config.data.train)


def online_config(resolved: Mapping[str, Resolved]) -> Any:
    """Return the configuration of the first online stage; None without one."""
    return next((resolved[stage].config for stage in names_of("online") if stage in resolved), None)


# --- splits ----------------------------------------------------------------------------------------------------------------------


def parts(resolved: Mapping[str, Resolved]) -> dict[str, Any]:
    """Return stage -> its records by split, as the stage reads them; pretraining, whose documents are prepared, is left out."""
    found: dict[str, Any] = {}
    known: dict[str, Any] = {}  # stages with the same data share them
    for stage, one in resolved.items():
        config, entry = one.config, STAGES[stage]
        if entry.family == "pretrain":
            continue
        options: dict[str, Any] = {name: getattr(config, name) or None for name in _OPTIONS[entry.family]}
        options = {name: value for name, value in options.items() if value is not None}
        key = repr((entry.data, config.data.model_dump(), config.seed, options))
        if key not in known:
            known[key] = read_split(config.data, entry.data, config.seed, **options)
        found[stage] = known[key]
    return found


def uses(resolved: Mapping[str, Resolved], read: Mapping[str, Any], asked: Sequence[Prompt]) -> overlap.Splits:
    """Return what every stage but pretraining has seen and is examined on: the questions asked, and the test split of its own data."""
    parents = {name: tuple(filter(None, (STAGES[name].parent, STAGES[name].reward_model))) for name in resolved}
    splits = overlap.Splits(parents, tolerated=TOLERATED if is_user_data(resolved) else ())
    exam = overlap.keys_of(asked)
    known: dict[int, overlap.Uses] = {}
    for stage, split in read.items():
        if id(split) not in known:
            test = list(split.test)
            if STAGES[stage].family == "reward" and baselines.of_world(resolved[stage].config.data):
                test += baselines.pairs_of(resolved[stage].config)
            own = overlap.keys_of(test, every_turn=False)
            train, val = overlap.keys_of(split.train), overlap.keys_of(split.val)
            known[id(split)] = overlap.Uses(train, val, overlap.merged(exam, own))
        splits.uses[stage] = known[id(split)]
    return splits


def document_uses(config: Any, exam: Any) -> overlap.Uses:
    """Return what pretraining has seen, and the documents and questions of the exam."""
    tokenizer, shards = data.ensure_prepared(config)
    val = held_out_documents(config, shards, tokenizer, "val", shards.manifest.val.documents)
    train, selection, test = map(overlap.keys_of_tokens, (shards.documents("train"), val, exam.documents()))
    return overlap.Uses(train, selection, overlap.merged(test, overlap.keys_of(exam.records)))


# --- questions -------------------------------------------------------------------------------------------------------------------


def questions(resolved: Mapping[str, Resolved], read: Mapping[str, Any], limit: int) -> list[Prompt]:
    """Return the questions of the exam: prompts of an online stage; without one, of SFT's conversations or of the bundled world."""
    if is_user_data(resolved):
        return _user_questions(read, limit)
    config = online_config(resolved) or resolved["pretrain"].config
    drawn = {"train": ("world:1",), "val": ("world:1",), "test": (f"world:{limit}",), "test_fraction": None}
    return list(read_split(config.data.model_copy(update=drawn), "prompts", _SEED).test)


def _user_questions(read: Mapping[str, Any], limit: int) -> list[Prompt]:
    """Return the test prompts with an answer; without prompts, the last questions of test conversations.

    Left out are those that a file of another kind asks in its training or validation split, and those whose last message alone is
    asked there in another context ("Tell me more."). The same question in the same kind of file is a leak, which `overlap` refuses.
    """
    online = next((stage for stage in names_of("online") if stage in read), None)
    asked = [_last_question(c) for c in read["sft"].test] if online is None else list(read[online].test)
    answered = [prompt for prompt in asked if "answer" in prompt.columns]
    if 0 < len(answered) < len(asked):
        say(f"{len(asked) - len(answered):,} of {len(asked):,} test prompts have no answer: not used as questions")
    asked = answered or asked
    kind = STAGES[online or "sft"].data
    own = _seen(split for stage, split in read.items() if STAGES[stage].data == kind)
    others = _seen(split for stage, split in read.items() if STAGES[stage].data != kind)
    fresh = [prompt for prompt in asked if not _asked_elsewhere(prompt, own, others)]
    if len(fresh) < len(asked):
        say(f"{len(asked) - len(fresh):,} of {len(asked):,} test questions are also asked in training data: not used")
    return fresh[:limit]


def _seen(splits: Iterable[Any]) -> overlap.Keys:
    """Return the keys of everything that trains or selects in these splits, each read once."""
    distinct = {id(split): split for split in splits}.values()
    return overlap.merged(*(overlap.keys_of([*split.train, *split.val]) for split in distinct))


def _asked_elsewhere(prompt: Prompt, own: overlap.Keys, others: overlap.Keys) -> bool:
    keys = overlap.keys_of([prompt])
    in_own = overlap.in_common(keys, own)
    return any(overlap.in_common(keys, others).values()) or (
        not in_own.get(overlap.QUESTIONS) and bool(in_own.get(overlap.LAST))
    )


def _last_question(conversation: Conversation) -> Prompt:
    """Return the messages before the last answer that is trained on, with that answer."""
    messages = conversation.messages
    last = max(i for i, message in enumerate(messages) if is_trained(message))
    return Prompt(messages[:last], {"answer": messages[last]["content"]})


# --- names of sources ------------------------------------------------------------------------------------------------------------


def measured_on(resolved: Mapping[str, Resolved]) -> dict[str, str]:
    """Return the data behind each group of figures, for the scorecard."""
    found = {"bits per byte, perplexity": _test_split(resolved["pretrain"].config.data, "documents")}
    online = online_config(resolved)
    if online is not None or not is_user_data(resolved):
        found["answers"] = _test_split((online or resolved["pretrain"].config).data, "prompts")
    elif "sft" in resolved:
        found["answers"] = _test_split(resolved["sft"].config.data, "conversations: the last question of each")
    for stage in names_of("sft", "reward", "offline"):
        if stage in resolved:
            found[f"gates of {stage}"] = _test_split(resolved[stage].config.data, STAGES[stage].data)
    return found


def _test_split(data: DataConfig, kind: str) -> str:
    if data.test:
        return f"{_names(data.test)} ({kind})"
    if all(map(is_world, data.train)):
        return f"the bundled world ({kind}), test split"
    return f"test split of {_names(data.train)} ({kind})"


def _names(sources: Sequence[str]) -> str:
    return ", ".join(sources[:4]) + (f" and {len(sources) - 4:,} more" if len(sources) > 4 else "")
