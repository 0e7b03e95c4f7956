"""The data that the figures of a lifecycle are measured on: the bundled world's held-out records, or the held-out side of the user's.

Never both: with the user's data no figure reads the world. What cannot be measured on them is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tinyllm.config import Resolved
from tinyllm.console import say
from tinyllm.data.config import DataConfig, is_world
from tinyllm.data.records.types import Conversation, Prompt
from tinyllm.data.splits import read_split
from tinyllm.lifecycle.stages import STAGES, names_of
from tinyllm.text.chat import is_trained


def is_user_data(resolved: Mapping[str, Resolved]) -> bool:
    """Return whether any stage trains on data of the user."""
    return not all(is_world(source) for r in resolved.values() for source in r.config.data.train)


def online_config(resolved: Mapping[str, Resolved]) -> Any:
    """Return the configuration of the first online stage; None without one."""
    return next((resolved[stage].config for stage in names_of("online") if stage in resolved), None)


def user_questions(resolved: Mapping[str, Resolved], limit: int) -> list[Prompt]:
    """Return the held-out prompts with an answer of the user's data; without prompts, the last questions of held-out conversations."""
    if (online := online_config(resolved)) is None:
        config = resolved["sft"].config
        return [_last_question(c) for c in read_split(config.data, "conversations", config.seed)[1][:limit]]
    prompts = read_split(online.data, "prompts", online.seed)[1][:limit]
    answered = [prompt for prompt in prompts if "answer" in prompt.columns]
    if 0 < len(answered) < len(prompts):
        say(
            f"{len(prompts) - len(answered):,} of {len(prompts):,} held-out prompts have no answer: not used as questions"
        )
    return answered or prompts


def _last_question(conversation: Conversation) -> Prompt:
    """Return the messages before the last answer that is trained on, with that answer."""
    messages = conversation.messages
    last = max(i for i, message in enumerate(messages) if is_trained(message))
    return Prompt(messages[:last], {"answer": messages[last]["content"]})


def measured_on(resolved: Mapping[str, Resolved]) -> dict[str, str]:
    """Return the data behind each group of figures, for the scorecard."""
    found = {"bits per byte, perplexity": _held_out(resolved["pretrain"].config.data, "documents")}
    online = online_config(resolved)
    if online is not None or not is_user_data(resolved):
        found["answers"] = _held_out((online or resolved["pretrain"].config).data, "prompts")
    elif "sft" in resolved:
        found["answers"] = _held_out(resolved["sft"].config.data, "conversations: the last question of each")
    for stage in names_of("sft", "reward", "offline"):
        if stage in resolved:
            found[f"gates of {stage}"] = _held_out(resolved[stage].config.data, STAGES[stage].data)
    return found


def _held_out(data: DataConfig, kind: str) -> str:
    if data.val:
        return f"{_names(data.val)} ({kind})"
    if all(map(is_world, data.train)):
        return f"the bundled world ({kind}), held-out"
    return f"held-out part of {_names(data.train)} ({kind})"


def _names(sources: Sequence[str]) -> str:
    return ", ".join(sources[:4]) + (f" and {len(sources) - 4:,} more" if len(sources) > 4 else "")
