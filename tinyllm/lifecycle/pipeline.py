"""A lifecycle run: train, examine and gate every stage. It resumes anywhere and repeats no finished work.

Every stage is an ordinary run, so `chat`, `eval` and `explain` work on it. What was measured is kept in `runs/lifecycle/NAME/STAGE.json`
and stays valid while the configuration, the checkpoints, the parent and the exam are unchanged.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinyllm.config import Resolved
from tinyllm.console import say
from tinyllm.errors import UserError
from tinyllm.lifecycle import examination, gates, overoptimization, records, sources
from tinyllm.lifecycle.evaluation import EvaluationResult, Questions
from tinyllm.lifecycle.stages import PARENTS, STAGES, names_of
from tinyllm.model.decoding import Completion
from tinyllm.rollout import checks
from tinyllm.stages.parents import RUNS, find_checkpoint
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train import checkpoint, lock
from tinyllm.train.memory import peak_memory_mb, reset_peak_memory
from tinyllm.train.run import Invocation, read_facts

SAMPLES = 10


class Pipeline:
    """All stages of one lifecycle, under one name and seed.

    Args:
        name: of `runs/lifecycle/NAME`; usually also of its runs, whose names are in their configurations.
        resolved: the configuration of each stage to run, in order, parents included.
        questions: test questions for each stage.
        resume: keep finished stages and continue an interrupted one.

    Raises: UserError (RESOURCES) if another process runs this lifecycle, or its folder is not writable.
    """

    def __init__(
        self,
        name: str,
        resolved: Mapping[str, Resolved],
        *,
        questions: int = examination.QUESTIONS,
        resume: bool = True,
    ):
        self.name, self.resolved, self.resume = name, resolved, resume
        self.folder = RUNS / "lifecycle" / name
        lock.acquire(self.folder)
        self.gate_inputs = gates.GateInputs(parents=PARENTS, user_data=sources.is_user_data(resolved))
        self.records: dict[str, dict[str, Any]] = {}
        self.questions = questions
        self._results: dict[str, EvaluationResult] = {}
        self._prepared = False

    def close(self) -> None:
        """Release the folder of this lifecycle."""
        lock.release(self.folder)

    def run_dir(self, stage: str) -> Path:
        return STAGES[stage].run_dir(self.resolved[stage].config.name)

    def run(self) -> list[dict[str, Any]]:
        """Train, examine and gate every stage. Return their records, in order.

        Raises: UserError, before anything is trained, if a reward cannot score the prompts, or the exam is not disjoint from what a
            stage trains on and is selected by; for documents, which pretraining prepares, before it is examined.
        """
        return [self.run_stage(stage) for stage in self.resolved]

    def prepare(self) -> None:
        """Read the data of all stages, draw the exam, and check both. `run` does so first."""
        if self._prepared:
            return
        if self.gate_inputs.user_data:
            for figures, source in sources.measured_on(self.resolved).items():
                say(f"{figures}: measured on {source}")
        parts = sources.parts(self.resolved)
        for stage in names_of("online"):
            if stage in self.resolved:
                config = self.resolved[stage].config
                checks.check(config.rewards, parts[stage].records(), on_bad_line=config.data.on_bad_line)
        asked = sources.questions(self.resolved, parts, self.questions)
        self.exam = examination.Exam(self.resolved, asked)
        self.splits = sources.uses(self.resolved, parts, asked)
        self.parts_facts = {stage: split.facts for stage, split in parts.items()}
        for stage in self.splits.uses:
            self.splits.check(stage)
        self._prepared = True

    def run_stage(self, stage: str) -> dict[str, Any]:
        """Train, examine and gate a stage, after those before it. Return its record."""
        self.prepare()
        record = self._finished_stage(stage)
        self.gate_inputs.results[stage] = record["result"]
        self.gate_inputs.metrics[stage] = record["figures"]
        self.gate_inputs.baselines[stage] = record["measured"]
        self.gate_inputs.last[stage] = record["last"]
        record["gates"] = gates.check(self.gate_inputs, stage)
        for gate in record["gates"]:
            say(_gate_line(stage, gate))
        if record["best_step"] == 0:
            say(f"  {stage}: nothing improved on its parent: the best checkpoint is the one before the first step")
        self.records[stage] = record
        return record

    def is_finished(self, stage: str) -> bool:
        """Return whether a stage has a valid record, so that `run_stage` would not train or examine it again."""
        self.prepare()
        path = self.folder / f"{stage}.json"
        return self._valid_record(stage, path, self._fingerprint(stage), quiet=True) is not None

    def _finished_stage(self, stage: str) -> dict[str, Any]:
        """Train and examine a stage, unless its record is valid. Return the record, which is written to STAGE.json."""
        path, fingerprint = self.folder / f"{stage}.json", self._fingerprint(stage)
        kept = self._valid_record(stage, path, fingerprint)
        if kept is not None:
            return kept
        say(f"--- {stage}")
        started = time.monotonic()
        reset_peak_memory()
        resolved, resume = self.resolved[stage], self.resume and not self._parent_changed(stage)
        result = STAGES[stage].run(resolved.config, Invocation(resolved.to_yaml(), resume=resume, change=None))
        facts = read_facts(self.run_dir(stage))
        seconds = time.monotonic() - started
        record = {  # the keys are a file format: STAGE.json of finished stages must stay valid
            "stage": stage,
            "marks": fingerprint,
            "manifest_sha256": find_checkpoint("chat", self.run_dir(stage), fast=False).sha256,
            "seconds": round(max(seconds, float(facts.get("seconds", 0.0))), 2),
            "peak_memory_mb": peak_memory_mb(),
            "result": result,
            "splits": self.check_splits(stage),
            **self._examine(stage),
        }
        record["examined_seconds"] = round(time.monotonic() - started - seconds, 2)
        records.write(path, record)
        return record

    def check_splits(self, stage: str) -> dict[str, Any]:
        """Return the counts, hashes and overlaps of what trained, selected and examines a stage.

        Raises: UserError if they overlap, if the run has read other records than the exam was compared with, or if it began without a
            test split.
        """
        facts = read_facts(self.run_dir(stage))
        what = ""
        if stage not in self.splits.uses:  # documents: they are split when they are prepared
            self.splits.uses[stage] = sources.document_uses(self.resolved[stage].config, self.exam)
        elif facts.get("splits") not in (None, self.parts_facts.get(stage)):
            what = f"{stage} was trained on other records than the exam was compared with: its data have changed since"
        tested = facts.get("test")
        if isinstance(tested, dict) and tested.get("before") is None:
            what = f"{stage} began without a test split: what is the exam now has selected its checkpoint"
        if what:
            fix = "run the command again with --no-resume, or under another --name"
            raise UserError(what, where=str(self.run_dir(stage)), fix=fix)
        return self.splits.check(stage)

    def _valid_record(
        self, stage: str, path: Path, fingerprint: Mapping[str, Any], *, quiet: bool = False
    ) -> dict[str, Any] | None:
        record = records.read(path, stage, policy=STAGES[stage].is_policy) if self.resume else None
        if record is None or not (self.run_dir(stage) / "checkpoints" / "ckpt_best").exists():
            return None
        best = find_checkpoint("chat", self.run_dir(stage), fast=False)
        if record["marks"] != fingerprint or record["manifest_sha256"] != best.sha256:
            return None
        if not quiet:
            say(f"--- {stage}: already done ({best.folder})")
        return record

    def _parent_changed(self, stage: str) -> bool:
        """Return whether the existing run of a stage started from a checkpoint that its parent no longer has."""
        parent, used = PARENTS[stage], read_facts(self.run_dir(stage)).get("parent")
        if parent and used and used["manifest_sha256"] != self.records[parent]["manifest_sha256"]:
            say(f"{self.run_dir(stage)}: the parent checkpoint has changed; moving this run aside and training again")
            return True
        return False

    def _fingerprint(self, stage: str) -> dict[str, Any]:
        """Return everything the record of a stage depends on, besides its checkpoint."""
        parent = PARENTS[stage]
        return {
            "config": hashlib.sha256(self.resolved[stage].to_yaml().encode()).hexdigest(),
            "parent": self.records[parent]["manifest_sha256"] if parent else None,
            # until 0.1 the exam was drawn from the validation split
            "exam": [self.questions, examination.DOCUMENTS, examination.SEED, self.exam.sha256],
        }

    def _examine(self, stage: str) -> dict[str, Any]:
        """Examine the best and the last checkpoint of a stage. Return what STAGE.json records of them."""
        name = PARENTS[stage]
        parent = None
        if name is not None and name in self.records:
            parent = (self.run_dir(name) / "checkpoints" / checkpoint.BEST, self._result(name))
        found = self.exam.stage(stage, self.run_dir(stage), parent, lambda: self._result("sft"))
        if stage == "pretrain":
            ngram = self.exam.ngram(self.run_dir(stage) / "checkpoints" / checkpoint.BEST)
            found["measured"] = {"ngram_bits_per_byte": ngram}
        return found

    def _result(self, stage: str) -> EvaluationResult:
        """Return the answers of an earlier stage's best checkpoint, from its record."""
        if stage not in self._results:
            kept = self.records[stage]["paper"]
            completions = [Completion(**completion) for completion in kept["answers"]]
            self._results[stage] = EvaluationResult(completions, kept["texts"], kept["gold"], kept["right"])
        return self._results[stage]

    # --- for the scorecard ------------------------------------------------------------------------------------------------------

    def overoptimization(self) -> list[dict[str, Any]]:
        """Return proxy and gold reward over training for every online stage."""
        stages = [stage for stage in names_of("online") if stage in self.records]
        return [{"stage": stage, **overoptimization.of_run(self.run_dir(stage))} for stage in stages]

    def samples(self) -> list[dict[str, Any]]:
        """Return the answers of every stage to the same questions: one single-turn question per task, at most `SAMPLES`."""
        questions = self.exam.questions(Tokenizer.load(self.run_dir("pretrain") / "checkpoints" / checkpoint.BEST))
        chosen: dict[str, int] = {}
        for number, prompt in enumerate(questions.prompts):
            task = str(prompt.columns.get("task", number))
            if task not in chosen and len(prompt.columns["prompt"]) == 1 and len(chosen) < SAMPLES:
                chosen[task] = number
        stages = [stage for stage in self.records if STAGES[stage].is_policy]
        return [self._sample(questions, number, stages) for number in chosen.values()]

    def _sample(self, questions: Questions, number: int, stages: list[str]) -> dict[str, Any]:
        columns = questions.prompts[number].columns
        results = {stage: self._result(stage) for stage in stages}
        return {
            "prompt": columns["prompt"][-1]["content"],
            "expected": str(columns.get("answer", "")),
            "task": str(columns.get("task", "")),
            "answers": {
                stage: {"text": r.texts[number], "gold": r.gold[number], "finished": r.completions[number].finished}
                for stage, r in results.items()
            },
        }


def _gate_line(stage: str, gate: Mapping[str, Any]) -> str:
    """Return the outcome of a gate in one line: value, bound, what was measured, and the last checkpoint if only it fails."""
    value, bound = (f"{v:.4g}" if math.isfinite(v) else "undefined" for v in (gate["value"], gate["bound"]))
    text = f"  gate {'passed' if gate['passed'] else 'FAILED'}: {stage} {gate['name']}: {value} {gate['rule']} {bound}"
    text += f" ({gate['n']:,} {gate['counted']})" + (f": {gate['why']}" if gate["why"] else "")
    few = 0 < gate["n"] < gates.FEW
    text += f"; a figure of so few {gate['counted']} says little" if few else ""
    last = gate.get("last")
    if last and gate["passed"] and not last["passed"]:
        text += f"; the last checkpoint fails it ({last['why'] or format(last['value'], '.4g')})"
    return text
