"""What the guide says of run directories against the runs of `tinyllm lifecycle --smoke`: files, keys of run.json and of metrics.jsonl.

Lists are compared both ways: what is named exists, and what exists is named.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.documents import pages as read
from tests.documents.checks import Seen
from tests.documents.pages import Pages

GUIDES = ("docs/lifecycle.md", "docs/lifecycle.zh.md")
RUNS = {  # section of the guide -> run
    "3.2": "pretrain/fast-dev-run",
    "3.4": "sft/full/fast-dev-run",
    "3.5": "sft/peft/lora/fast-dev-run",
    "3.7": "rlhf/rm/fast-dev-run",
    "3.8": "rlhf/offline/dpo-fast-dev-run",
    "3.9": "rlhf/offline/orpo-fast-dev-run",
    "3.12": "rlhf/online/ppo-fast-dev-run",
    "3.13": "rlhf/online/gspo-fast-dev-run",
    "3.14": "rlhf/online/grpo-fast-dev-run",
}
SOMETIMES = {"logs/rollouts/", "base/"}  # of the files in 2.4: with rollout.keep, and with an adapter on an adapter
CRITIC, GROUPS, RATIO = {"returns", "policy_loss", "value_loss"}, {"kl", "constant_groups"}, {"sequence_ratio"}


def compare(pages: Pages, runs: Path) -> Seen:
    """Return what differs between the guide, in both languages, and the runs below `runs`."""
    wrong: list[str] = []
    count = 0
    for page in GUIDES:
        sections = read.sections(pages[page])
        for section, run in RUNS.items():
            for what, said, there in (
                ("file", *_files(sections["2.4"], runs / run)),
                ("file of a checkpoint", *_checkpoint(sections["2.5"], runs / run)),
                ("key of run.json", *_facts(sections["2.4"], runs / run)),
                ("key of a train line", *_train_keys(sections, section, runs)),
                ("key of an eval line", *_eval_keys(sections, section, runs)),
            ):
                count += len(there)
                wrong += [f"{page}: {what} that {run} does not have: {name}" for name in sorted(said - there)]
                wrong += [f"{page}: {what} of {run} that is not named: {name}" for name in sorted(there - said)]
    return Seen(wrong, count)


def _files(section: str, run: Path) -> tuple[set[str], set[str]]:
    said = set(re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)) - SOMETIMES
    there = {f"{path.name}/" if path.is_dir() else path.name for path in run.iterdir() if path.name != "logs"}
    return said, there | {path.relative_to(run).as_posix() for path in (run / "logs").iterdir()}


def _checkpoint(section: str, run: Path) -> tuple[set[str], set[str]]:
    """Read the tree below `step-00000060/`, and the list of runs that differ."""
    folder, said = "", set()
    for bars, name in re.findall(r"^    ([│ ]*)[├└]── (\S+)", section, re.MULTILINE):
        folder = (name if name.endswith("/") else "") if not bars else folder
        said |= {f"{folder}{name}" if bars else name} - {folder}
    differ = dict(zip(("lora", "rm", "ppo"), re.findall(r"^- .*(?:\n  .*)*", section, re.MULTILINE), strict=False))
    place = run.as_posix()
    if "lora" in place:
        named = set(re.findall(r"`([^`]+)`", differ["lora"]))
        said = (said - named) | {name for name in named if name.startswith("adapter")}
    elif "/rm/" in place:
        said -= set(re.findall(r"`([^`]+)`", differ["rm"]))
    elif "/ppo-" in place:
        said |= set(re.findall(r"`([^`]+)`", differ["ppo"]))
    best = (run / "checkpoints" / "ckpt_best").resolve()
    return said, {path.relative_to(best).as_posix() for path in best.rglob("*") if path.is_file()}


def _facts(section: str, run: Path) -> tuple[set[str], set[str]]:
    row = next(line for line in section.splitlines() if line.startswith("| `run.json`"))
    there = set(json.loads((run / "run.json").read_text("utf-8")))
    said = set(re.findall(r"`(\w+)`", row.split("|")[2]))
    return said - ({"algorithm"} - there), there


def _logged(run: Path, split: str) -> set[str]:
    """Return the keys that lines of a split have, without `step` and `split`."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    return {key for row in rows if row["split"] == split for key in row} - {"step", "split"}


def _metrics(section: str) -> tuple[set[str], set[str]]:
    """Return the keys that the paragraph on metrics names for eval lines, and those that it names for train lines."""
    found = re.search(r"^- \*\*(?:Metrics|关注指标)\*\*(.*(?:\n  .*)*)", section, re.MULTILINE)
    assert found, "a section without a paragraph on metrics"
    first, _, second = re.sub(r"\brewards/NAME\b", "rewards/gold", found[1]).partition(
        "The train lines" if "The train lines" in found[1] else "train 行里"
    )
    return tuple(set(re.findall(r"`([a-z_]+(?:/[a-z_]+)?)`", text)) for text in (first, second))  # type: ignore[return-value]


def _eval_keys(sections: dict[str, str], number: str, runs: Path) -> tuple[set[str], set[str]]:
    source = {"3.5": "3.4", "3.13": "3.12", "3.14": "3.12"}.get(number, number)
    said, _ = _metrics(sections[source])
    return said - {"track_kl"}, _logged(runs / RUNS[number], "eval")


def _train_keys(sections: dict[str, str], number: str, runs: Path) -> tuple[set[str], set[str]]:
    """Compare the keys of every train line; for online alignment also those of the algorithm."""
    said = set(re.findall(r"^\| `([^`]+)` \|", sections["2.6"], re.MULTILINE))
    there = _logged(runs / RUNS[number], "train")
    if number not in ("3.12", "3.13", "3.14"):
        return said, there & said
    shared, own = _metrics(sections["3.12"])
    said |= shared | own
    if number != "3.12":
        named = _metrics(sections["3.13"])[0]
        said = (said - CRITIC) | ((GROUPS | RATIO) & named) if named >= CRITIC else said
    if number == "3.14" and _metrics(sections["3.14"])[0] >= RATIO:
        said -= RATIO
    return said, there
