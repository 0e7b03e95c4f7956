"""A lifecycle run: train, evaluate and gate every stage. It resumes anywhere and repeats no finished work.

Every stage is an ordinary run, so `chat`, `eval` and `explain` work on it. What was measured is kept in `runs/lifecycle/NAME/STAGE.json`
and stays valid while the configuration, the checkpoint and the parent are unchanged.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinyllm.config import Resolved
from tinyllm.console import say
from tinyllm.data.loading import token_prompts
from tinyllm.data.splits import read_split
from tinyllm.lifecycle import baselines, gates, overoptimization, records, sources
from tinyllm.lifecycle.evaluation import EvaluationResult, Questions, evaluate, kl_divergence, language_modeling
from tinyllm.lifecycle.stages import PARENTS, STAGES, names_of
from tinyllm.model import hub
from tinyllm.model.generate import Completion
from tinyllm.rollout import checks, rewards
from tinyllm.stages import data
from tinyllm.stages.parents import RUNS, find_checkpoint
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train import lock
from tinyllm.train.engine import choose_device
from tinyllm.train.memory import peak_memory_mb, reset_peak_memory
from tinyllm.train.run import Invocation, read_facts

QUESTIONS, DOCUMENTS, SAMPLES = 512, 200, 10
_SEED = 0  # of the evaluation: the same for every stage and every lifecycle


class Pipeline:
    """All stages of one lifecycle, under one name and seed.

    Args:
        name: of `runs/lifecycle/NAME`; usually also of its runs, whose names are in their configurations.
        resolved: the configuration of each stage to run, in order, parents included.
        questions: held-out questions for each stage.
        resume: keep finished stages and continue an interrupted one.

    Raises: UserError (RESOURCES) if another process runs this lifecycle, or its folder is not writable.
    """

    def __init__(self, name: str, resolved: Mapping[str, Resolved], *, questions: int = QUESTIONS, resume: bool = True):
        self.name, self.resolved, self.questions, self.resume = name, resolved, questions, resume
        self.folder = RUNS / "lifecycle" / name
        lock.acquire(self.folder)
        self.gate_inputs = gates.GateInputs(parents=PARENTS, user_data=sources.is_user_data(resolved))
        self.records: dict[str, dict[str, Any]] = {}
        self._results: dict[str, EvaluationResult] = {}
        self._questions: Questions | None = None
        self._documents: list[Any] | None = None

    def close(self) -> None:
        """Release the folder of this lifecycle."""
        lock.release(self.folder)

    def run_dir(self, stage: str) -> Path:
        return STAGES[stage].run_dir(self.resolved[stage].config.name)

    def run(self) -> list[dict[str, Any]]:
        """Train, evaluate and gate every stage. Return their records, in order.

        Raises: UserError, before anything is trained, if a reward cannot score the prompts.
        """
        if self.gate_inputs.user_data:
            for figures, source in sources.measured_on(self.resolved).items():
                say(f"{figures}: measured on {source}")
        for stage in names_of("online"):
            if stage in self.resolved:
                config = self.resolved[stage].config
                train, val, _ = read_split(config.data, "prompts", config.seed, task=config.task or None)
                checks.check(config.rewards, train, val, on_bad_line=config.data.on_bad_line)
        for stage in self.resolved:
            record = self._run_stage(stage)
            self.gate_inputs.results[stage] = record["result"]
            self.gate_inputs.metrics[stage] = record["figures"]
            self.gate_inputs.baselines[stage] = record["measured"]
            record["gates"] = gates.check(self.gate_inputs, stage)
            for gate in record["gates"]:
                outcome = "passed" if gate["passed"] else "FAILED"
                value, bound = (f"{v:.4g}" if math.isfinite(v) else "undefined" for v in (gate["value"], gate["bound"]))
                say(f"  gate {outcome}: {stage} {gate['name']}: {value} {gate['rule']} {bound}")
            self.records[stage] = record
        return list(self.records.values())

    def _run_stage(self, stage: str) -> dict[str, Any]:
        """Train and evaluate a stage, unless its record is valid. Return the record, which is written to STAGE.json."""
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
            "measured": {},
            "figures": {},
            **self._evaluate(stage),
        }
        record["examined_seconds"] = round(time.monotonic() - started - seconds, 2)
        records.write(path, record)
        return record

    def _valid_record(self, stage: str, path: Path, fingerprint: Mapping[str, Any]) -> dict[str, Any] | None:
        record = records.read(path, stage, policy=STAGES[stage].is_policy) if self.resume else None
        if record is None or not (self.run_dir(stage) / "checkpoints" / "ckpt_best").exists():
            return None
        checkpoint = find_checkpoint("chat", self.run_dir(stage), fast=False)
        if record["marks"] != fingerprint or record["manifest_sha256"] != checkpoint.sha256:
            return None
        say(f"--- {stage}: already done ({checkpoint.folder})")
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
        # until 0.1 a reward model of the user's pairs was measured on pairs of the bundled world: such a record is not kept
        own_pairs = ["own pairs"] if self.gate_inputs.user_data and stage in names_of("reward") else []
        return {
            "config": hashlib.sha256(self.resolved[stage].to_yaml().encode()).hexdigest(),
            "parent": self.records[parent]["manifest_sha256"] if parent else None,
            "exam": [self.questions, DOCUMENTS, _SEED, *own_pairs],
        }

    # --- evaluation -------------------------------------------------------------------------------------------------------------

    def _evaluate(self, stage: str) -> dict[str, Any]:
        entry, config = STAGES[stage], self.resolved[stage].config
        device = choose_device(config.device)
        folder = self.run_dir(stage) / "checkpoints" / "ckpt_best"
        tokenizer = Tokenizer.load(folder)
        questions = self._load_questions(tokenizer)
        if not entry.is_policy:
            scorer = hub.load_scorer(folder, device).eval()
            result = self._result("sft")
            return {"measured": baselines.reward_model_metrics(scorer, tokenizer, config, questions, result)}
        policy = hub.load_causal_lm(folder, device).eval()
        metrics = language_modeling(policy, tokenizer, self._load_documents(), config.data.max_length)
        measured = {}
        if stage == "pretrain":
            shards = data.ensure_prepared(config)[1]
            measured["ngram_bits_per_byte"] = baselines.ngram_bits_per_byte(shards, tokenizer, self._load_documents())
        result = self._results[stage] = evaluate(policy, tokenizer, questions, seed=_SEED)
        metrics |= result.metrics()
        if entry.parent is not None and (entry.parent in self._results or entry.parent in self.records):
            metrics["win_rate"] = result.win_rate(self._result(entry.parent))
            parent = hub.load_causal_lm(self.run_dir(entry.parent) / "checkpoints" / "ckpt_best", device)
            metrics["kl"] = kl_divergence(policy, parent, questions, result)
        completions = [asdict(c) | {"log_probs": []} for c in result.completions]
        return {
            "figures": metrics,
            "measured": measured,
            "by_task": result.accuracy_by_task(questions),
            "paper": {"answers": completions, "texts": result.texts, "gold": result.gold, "right": result.correct},
        }

    def _result(self, stage: str) -> EvaluationResult:
        """Return the evaluation of an earlier stage, from its record if it was not evaluated in this process."""
        if stage not in self._results:
            kept = self.records[stage]["paper"]
            completions = [Completion(**completion) for completion in kept["answers"]]
            self._results[stage] = EvaluationResult(completions, kept["texts"], kept["gold"], kept["right"])
        return self._results[stage]

    def _load_questions(self, tokenizer: Tokenizer) -> Questions:
        """Return held-out prompts of an online stage; without one, held-out conversations of SFT or prompts of the bundled world."""
        if self._questions is None:
            user_data = self.gate_inputs.user_data
            if user_data:
                rows = sources.user_questions(self.resolved, self.questions)
            else:
                config = sources.online_config(self.resolved) or self.resolved["pretrain"].config
                source = config.data.model_copy(update={"train": ("world:1",), "val": (f"world:{self.questions}",)})
                _, rows, _ = read_split(source, "prompts", _SEED)
            room = self.resolved["pretrain"].config.model.max_position_embeddings - Questions.max_new_tokens
            gold = _user_gold if user_data else rewards.gold
            correct = _exact if user_data else _full_gold
            self._questions = Questions(token_prompts(rows, tokenizer, room, "evaluation prompts"), gold, correct)
        return self._questions

    def _load_documents(self) -> list[Any]:
        """Return held-out documents of pretraining as token ids, each with its end-of-text token."""
        if self._documents is None:
            shards = data.ensure_prepared(self.resolved["pretrain"].config)[1]
            self._documents = shards.documents("val", DOCUMENTS)
        return self._documents

    # --- for the scorecard ------------------------------------------------------------------------------------------------------

    def overoptimization(self) -> list[dict[str, Any]]:
        """Return proxy and gold reward over training for every online stage."""
        stages = [stage for stage in names_of("online") if stage in self.records]
        return [{"stage": stage, **overoptimization.of_run(self.run_dir(stage))} for stage in stages]

    def samples(self) -> list[dict[str, Any]]:
        """Return the answers of every stage to the same questions: one single-turn question per task, at most `SAMPLES`."""
        questions = self._load_questions(Tokenizer.load(self.run_dir("pretrain") / "checkpoints" / "ckpt_best"))
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


def _full_gold(columns: Mapping[str, Any], text: str, finished: bool) -> float:
    """Correct, in the requested form, not padded, and ended with a stop token."""
    return float(rewards.gold(columns, text, finished) > 1 - 1e-9)


def _exact(columns: Mapping[str, Any], text: str, finished: bool) -> float:
    return rewards.exact_answer(columns, text, finished) if "answer" in columns else float("nan")


def _user_gold(columns: Mapping[str, Any], text: str, finished: bool) -> float:
    """For the user's questions: 1 if correct, less 0.5 if not ended with a stop token."""
    return _exact(columns, text, finished) - 0.5 * (not finished)
