"""Test the acceptance gates: plant one fault in a stage of a finished lifecycle, train the stage again, and check its gates.

    tinyllm lifecycle && python benchmarks/planted_faults.py

Run it in the folder of `tinyllm lifecycle`, with the same --preset, --seed and --set: parents come from that lifecycle, and only the faulty
stage is trained. The faults of the gates for own data are planted in a second lifecycle, of files that the bundled world writes; it is
trained first. Both lifecycles must pass all gates without a fault; `--control` trains each of their stages once more for that.

Prints a table. Exit code 1 if a fault is not caught by the gates it names, a gate was never seen to fail, or a stage without a fault fails.
An error that no fault expects ends the script. The faults are in `faults.py`; `--only` selects some.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from faults import FAULTS, Fault

from tinyllm.cli.lifecycle import pipeline_configs
from tinyllm.cli.options import Common
from tinyllm.config import Resolved
from tinyllm.data import world
from tinyllm.errors import UserError
from tinyllm.io import strict_json
from tinyllm.io.files import write_text_atomically
from tinyllm.lifecycle.gates import GATES
from tinyllm.lifecycle.pipeline import Pipeline
from tinyllm.lifecycle.stages import PARENTS, STAGES

SMALL = (  # the mechanism in a minute; a model of this size passes no gate
    "pretrain:model={vocab_size: 400, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 1, head_dim: 16}",
    "data.max_length=96",
    "train.steps=4",
    "train.batch_size=8",
    "train.micro_batch_size=8",
    "train.eval_every=2",
    "train.save_every=2",
    "train.eval_rows=8",
    "train.compile=off",
    *(f"{stage}:rollout.max_new_tokens=8" for stage in ("ppo", "gspo", "grpo")),
    *(f"{stage}:rollout.group_size=4" for stage in ("gspo", "grpo")),
)
OWN_STAGES = tuple(dict.fromkeys(fault.stage for fault in FAULTS if fault.data == "user"))
OWN_SETS = ("data.val_fraction=0.2",)  # half of it for the test split
RECORDS = {"documents": 8000, "conversations": 8000, "pairs": 6000, "prompts": 2000}


@dataclass(frozen=True)
class Setting:
    """One lifecycle: its preset, name and settings, and the user's files if it has some."""

    name: str
    preset: str
    common: Common
    questions: int
    files: tuple[str, ...] = ()

    def configs(self, name: str, sets: Sequence[str] = ()) -> dict[str, Resolved]:
        """Return the configurations of this lifecycle under a name, with further settings."""
        common = replace(self.common, name=name, set=[*(self.common.set or []), *sets])
        found = pipeline_configs(self.preset, common, list(self.files), 1, os.environ)[name]
        return {stage: one for stage, one in found.items() if not self.files or stage in _with_ancestors(OWN_STAGES)}


def _with_ancestors(stages: Sequence[str]) -> list[str]:
    """Return the stages, and those that they start from or are compared with, in order."""
    found = set(stages)
    for stage in reversed(STAGES):
        if stage in found:
            needed = {PARENTS[stage], STAGES[stage].reward_model, "sft" if stage == "sft-lora" else None}
            found |= {name for name in needed if name}
    return [stage for stage in STAGES if stage in found]


def own_files(folder: Path, counts: Mapping[str, int], seed: int) -> tuple[str, ...]:
    """Write records of the bundled world as files of a user's, one for each kind, and return their paths."""
    half_flawed = world.conversations(counts["conversations"], seed=seed, flawed=0.4)
    rows = {
        "stories": list(world.documents(counts["documents"], seed=seed)),
        "talks": [{"messages": row["messages"]} for row in half_flawed],
        "choices": [
            {key: row[key] for key in ("prompt", "chosen", "rejected")}
            for row in world.pairs(counts["pairs"], seed=seed)
        ],
        "exercises": [
            {"question": row["prompt"][0]["content"], "answer": row["answer"]}
            for row in world.prompts(counts["prompts"], seed=seed)
            if len(row["prompt"]) == 1
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, found in rows.items():
        if (folder / f"{name}.jsonl").exists():
            continue
        text = "".join(json.dumps(row) + "\n" for row in found)
        write_text_atomically(folder / f"{name}.jsonl", text)
    return tuple((folder / f"{name}.jsonl").as_posix() for name in rows)


# --- one fault -------------------------------------------------------------------------------------------------------------------


@contextmanager
def faulty_pipeline(setting: Setting, stage: str, sets: Sequence[str] = ()) -> Iterator[Pipeline]:
    """Yield a lifecycle with the good one's other stages and one stage still to train. Delete its files afterwards.

    Raises: UserError if a stage that it needs is not finished in the good lifecycle: nothing is trained in its place.
    """
    name = f"{setting.name}-fault"
    resolved = setting.configs(setting.name)
    config = resolved[stage].config
    own = setting.configs(name, [f"{stage}:{text}" for text in sets])[stage]
    update = {key: getattr(config, key) for key in ("parent", "reward_model") if key in type(config).model_fields}
    own = replace(own, config=own.config.model_copy(update=update))
    folder, good = Path("runs") / "lifecycle" / name, Path("runs") / "lifecycle" / setting.name
    shutil.rmtree(folder, ignore_errors=True)
    pipeline = Pipeline(name, resolved | {stage: own}, questions=setting.questions)
    shutil.rmtree(pipeline.run_dir(stage), ignore_errors=True)
    try:
        for earlier in _with_ancestors([stage])[:-1]:
            shutil.copy(good / f"{earlier}.json", folder)
            if not pipeline.is_finished(earlier):
                raise UserError(f"{earlier} of the lifecycle {setting.name} is not finished with these settings")
            pipeline.run_stage(earlier)
        yield pipeline
    finally:
        pipeline.close()
        for left in (folder, pipeline.run_dir(stage), Path("runs") / "data" / name):
            shutil.rmtree(left, ignore_errors=True)


def outcome(setting: Setting, stage: str, fault: Fault | None) -> dict[str, Any]:
    """Train a stage with a fault, or without one, and return its row of the result: the gates, and whether they are as expected.

    Raises: UserError that the fault does not expect.
    """
    with faulty_pipeline(setting, stage, fault.sets if fault else ()) as pipeline:
        try:
            with fault.plant() if fault else nullcontext():
                record = pipeline.run_stage(stage)
        except UserError as error:
            if not (fault and fault.refusal and fault.refusal in error.what):
                raise
            refused = {"what": fault.what, "refusal": error.what, "gates": [], "as_expected": True}
            return _named(setting, stage, fault) | refused
    return row_of(setting, stage, fault, record)


def _named(setting: Setting, stage: str, fault: Fault | None) -> dict[str, Any]:
    return {"data": "user" if setting.files else "world", "stage": stage, "fault": fault.name if fault else None}


def row_of(setting: Setting, stage: str, fault: Fault | None, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of a stage that was trained, from its record."""
    row = _named(setting, stage, fault) | {"best_step": record["best_step"], "last_step": record["last"]["step"]}
    gates = record["gates"]
    if fault is None:
        passed = bool(gates) and all(gate["passed"] for gate in gates)
        return row | {"gates": gates, "as_expected": passed}
    gates = [gate | {"expected": gate["name"] in (*fault.gates, *fault.empty)} for gate in gates]
    red, caught = verdict(fault, gates)
    return row | {"what": fault.what, "checkpoint": fault.checkpoint, "gates": gates, "red": red, "as_expected": caught}


def verdict(fault: Fault, gates: Sequence[Mapping[str, Any]]) -> tuple[list[str], bool]:
    """Return the gates that the fault names and that failed on a figure of something, and whether it was caught as it expects."""
    at = {gate["name"]: judged(gate, fault.checkpoint) for gate in gates}
    red = [name for name in fault.gates if name in at and is_red(at[name])]
    empty = [name for name in fault.empty if name in at and not at[name]["passed"] and not at[name]["n"]]
    return red, not fault.refusal and len(red) == len(fault.gates) and len(empty) == len(fault.empty)


def judged(gate: Mapping[str, Any], checkpoint: str) -> Mapping[str, Any]:
    """Return value, n and outcome of a gate at the best or the last checkpoint."""
    return gate["last"] if checkpoint == "last" else gate


def is_red(found: Mapping[str, Any]) -> bool:
    """Return whether a gate failed by its comparison, on a figure of something."""
    return not found["passed"] and not found["why"] and found["n"] > 0 and math.isfinite(found["value"])


# --- all of them -----------------------------------------------------------------------------------------------------------------

_LINE = "{:9} {:21} {:28} {:>8} {:>8}    {:>8} {:>6}  {}"


def show(row: Mapping[str, Any]) -> None:
    """Print the lines of one row; the outcome is that of the checkpoint that is judged."""
    name = row["fault"] or "no fault"
    stage = "own:" * (row["data"] == "user") + row["stage"]
    if "refusal" in row:
        print(f"{stage:9} {name:21} refused, as expected: {row['refusal']}", flush=True)
    for gate in row["gates"]:
        found = judged(gate, row.get("checkpoint", "best"))
        word = "passed" if found["passed"] else "FAILED" + (f" ({found['why']})" if found["why"] else "")
        values = [f"{value:.3f}" for value in (gate["value"], gate["last"]["value"], gate["bound"])]
        values[2] = f"{gate['rule']} {values[2]:>8}"
        star = " *" if gate.get("expected") else ""
        print(
            f"{stage:9} {name:21} {gate['name']:28} {values[0]:>8} {values[1]:>8} {values[2]} {found['n']:>6}  {word}{star}",
            flush=True,
        )


def settings_of(given: argparse.Namespace) -> dict[str, Setting]:
    """Return the lifecycle of the bundled world and that of files."""
    sets = [*(SMALL if given.small else ()), *given.set]
    small = ("data.train=['world:300']",) if given.small else ()
    name = given.lifecycle or given.preset
    counts = dict.fromkeys(RECORDS, 300) if given.small else RECORDS
    folder = Path("runs") / "planted-faults" / f"own-data-{given.seed}{'-small' * given.small}"
    files = own_files(folder, counts, given.seed)
    questions = 16 if given.small else given.questions
    return {
        "world": Setting(name, given.preset, Common(set=[*small, *sets], seed=given.seed), questions),
        "user": Setting(f"{name}-own", given.preset, Common(set=[*sets, *OWN_SETS], seed=given.seed), questions, files),
    }


def chosen_faults(only: Sequence[str]) -> list[Fault]:
    """Return the faults that `--only` selects, by stage or stage/name, with the data in front or without; all without it.

    Raises: UserError if one selects nothing.
    """
    keys = {
        fault: {
            f"{data}{stage}"
            for data in ("", f"{fault.data}/")
            for stage in (fault.stage, f"{fault.stage}/{fault.name}")
        }
        for fault in FAULTS
    }
    for text in only:
        if not any(text in found for found in keys.values()):
            raise UserError(f"no fault is called {text!r}", where="--only", fix="choose one of benchmarks/faults.py")
    return [fault for fault in FAULTS if not only or keys[fault] & set(only)]


def records_of(good: Pipeline, stages: Sequence[str], seed: int, *, train: bool) -> dict[str, dict[str, Any]]:
    """Return stage -> record of a lifecycle.

    Args:
        train: train the stages that are not finished.

    Raises: UserError if one is not finished and must not be trained: the faults are planted in a lifecycle that exists.
    """
    found = {}
    for stage in stages:
        if not train and not good.is_finished(stage):
            fix = f"run it here first, with the same --preset, --seed and --set: tinyllm lifecycle --seed {seed}"
            raise UserError(f"{stage} of this lifecycle is not finished", where=str(good.folder), fix=fix)
        found[stage] = good.run_stage(stage)
    return found


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Run both lifecycles as far as they are not finished, and then every fault."""
    faults, settings = chosen_faults(given.only), settings_of(given)
    rows: list[dict[str, Any]] = []
    print(_LINE.format("stage", "fault", "gate", "best", "last", "bound", "n", "(* must fail)"))
    for data, setting in settings.items():
        mine = [fault for fault in faults if fault.data == data]
        if not mine:
            continue
        good = Pipeline(setting.name, setting.configs(setting.name), questions=setting.questions)
        stages = _with_ancestors([fault.stage for fault in mine])
        trained = records_of(good, stages, given.seed, train=data == "user" or given.small)
        good.close()
        for stage in dict.fromkeys(fault.stage for fault in mine):
            for fault in (None, *(fault for fault in mine if fault.stage == stage)):
                again = fault or given.control
                row = outcome(setting, stage, fault) if again else row_of(setting, stage, None, trained[stage])
                rows.append(row)
                show(rows[-1])
    planted = [row for row in rows if row["fault"]]
    red = {name for row in planted for name in row.get("red", ())}
    return {
        "schema_version": 1,
        "preset": given.preset,
        "seed": given.seed,
        "rows": rows,
        "faults": {"planted": len(planted), "caught": sum(row["as_expected"] for row in planted)},
        "green": {"stages": len(rows) - len(planted), "passed": sum(r["as_expected"] for r in rows if not r["fault"])},
        "gates": {"all": [gate.name for gate in GATES], "seen_red": [g.name for g in GATES if g.name in red]},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lifecycle", "--life", metavar="NAME", help="of the finished lifecycle; default: the preset")
    parser.add_argument("--preset", default="laptop", help="of the finished lifecycle")
    parser.add_argument("--seed", type=int, help="of the finished lifecycle; default: that of --set seed=N, or 0")
    parser.add_argument("--set", action="append", default=[], help="the same as for the finished lifecycle")
    parser.add_argument("--questions", type=int, default=512, help="the same as for the finished lifecycle")
    parser.add_argument("--small", action="store_true", help="a tiny model: shows the mechanism, and passes no gate")
    parser.add_argument("--only", action="append", default=[], metavar="[world/|user/]STAGE[/NAME]", help="repeatable")
    parser.add_argument("--control", action="store_true", help="train every stage once more without a fault")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result to a file")
    given = parser.parse_args()
    if given.seed is None:
        seeds = [text.removeprefix("seed=") for text in given.set if text.startswith("seed=")]
        given.seed = int(seeds[-1]) if seeds else 0
    try:
        found = run(given)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.code
    if given.json:
        given.json.write_text(strict_json.dumps(found, indent=1) + "\n", encoding="utf-8")
    faults, green, gates = found["faults"], found["green"], found["gates"]
    print(f"{faults['caught']} of {faults['planted']} faults were caught by the gates, or the refusal, that they name")
    print(f"{green['passed']} of {green['stages']} stages passed all gates without a fault")
    print(f"{len(gates['seen_red'])} of {len(gates['all'])} gates were seen red")
    whole = given.only or len(gates["seen_red"]) == len(gates["all"])
    return int(faults["caught"] < faults["planted"] or green["passed"] < green["stages"] or not whole)


if __name__ == "__main__":
    sys.exit(main())
