"""A whole life, stage by stage: train, examine, judge; resumable anywhere, and what is done is not done again.

Every stage is an ordinary run with a name of its own, so `chat`, `eval` and `explain` work on it. What was measured is kept in
`runs/lifecycle/NAME/STAGE.json`, valid as long as configuration, checkpoint and parent are what they were.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinyllm.config import Resolved
from tinyllm.data import world
from tinyllm.data.records import Prompt
from tinyllm.model import hub
from tinyllm.model.generate import Completion
from tinyllm.rollout import rewards
from tinyllm.stages import align_offline, align_online, data, gates, hacking, measures, pretrain, rm, sft
from tinyllm.stages.common import Call
from tinyllm.stages.exam import Paper, Questions, divergence, reading, sit
from tinyllm.stages.machine import peak_memory_mb, reset_peak_memory
from tinyllm.stages.parents import OFFLINE, ONLINE, PRETRAIN, REWARD, RUNS, SFT_FULL, SFT_LORA, find
from tinyllm.stages.reading import is_world, prompts_from, read_split
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train.engine import choose_device
from tinyllm.train.progress import say
from tinyllm.train.run import read_facts

QUESTIONS, DOCUMENTS, SAMPLES = 512, 200, 10
_SEED = 0  # of the exam: the same for every stage and every life


@dataclass(frozen=True)
class Step:
    """One stage of a life."""

    run: Callable[[Any, Call], dict[str, Any]]
    title: str
    place: str
    parent: str | None
    policy: bool = True  # it answers questions; a reward model does not


STEPS: dict[str, Step] = {
    "pretrain": Step(pretrain.run, "Pretraining", PRETRAIN, None),
    "sft": Step(sft.run, "Supervised fine-tuning", SFT_FULL, "pretrain"),
    "sft-lora": Step(sft.run, "The same with LoRA", SFT_LORA, "pretrain"),
    "rm": Step(rm.run, "Reward model", REWARD, "sft", policy=False),
    "dpo": Step(align_offline.run, "DPO", OFFLINE, "sft"),
    "orpo": Step(align_offline.run, "ORPO", OFFLINE, "sft"),
    "ppo": Step(align_online.run, "PPO", ONLINE, "sft"),
    "gspo": Step(align_online.run, "GSPO", ONLINE, "sft"),
    "grpo": Step(align_online.run, "GRPO", ONLINE, "sft"),
}
PARENTS = {name: step.parent for name, step in STEPS.items()}


def run_folder(stage: str, config: Any) -> Path:
    """Where the run of a stage lies."""
    step = STEPS[stage]
    return RUNS / step.place / (f"{stage}-{config.name}" if step.place in (OFFLINE, ONLINE) else config.name)


class Life:
    """One life under one name and seed.

    Args:
        name: of `runs/lifecycle/NAME`; usually also of its runs, whose names are in their configurations.
        resolved: the configuration of every stage that is to run, in order; parents must be among them.
        questions: held-out questions that every stage is asked.
    """

    def __init__(self, name: str, resolved: Mapping[str, Resolved], *, questions: int = QUESTIONS, resume: bool = True):
        self.name, self.resolved, self.questions, self.resume = name, resolved, questions, resume
        self.folder = RUNS / "lifecycle" / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.evidence = gates.Evidence(parents=PARENTS, own=not self._is_world())
        self.records: dict[str, dict[str, Any]] = {}
        self._papers: dict[str, Paper] = {}
        self._questions: Questions | None = None
        self._documents: list[Any] | None = None

    def run_of(self, stage: str) -> Path:
        return run_folder(stage, self.resolved[stage].config)

    def _is_world(self) -> bool:
        return all(is_world(source) for r in self.resolved.values() for source in r.config.data.train)

    def go(self) -> list[dict[str, Any]]:
        """Run, examine and judge every stage; the records, in order, with their gates.

        Raises: UserError before anything is trained where prompts lack a column that their reward reads.
        """
        for stage in gates.ONLINE:
            if stage in self.resolved:
                config = self.resolved[stage].config
                prompts, _, _ = read_split(config.data, "prompts", config.seed, task=config.task or None)
                rewards.check_columns(config.rewards, prompts[0].columns, "rewards")
        for stage in self.resolved:
            record = self._stage(stage)
            self.evidence.results[stage] = record["result"]
            self.evidence.figures[stage] = record["figures"]
            self.evidence.measured[stage] = record["measured"]
            record["gates"] = gates.judged(self.evidence, stage)
            for gate in record["gates"]:
                held = "passed" if gate["passed"] else "FAILED"
                say(f"  gate {held}: {stage} {gate['name']}: {gate['value']:.4g} {gate['rule']} {gate['bound']:.4g}")
            self.records[stage] = record
        return list(self.records.values())

    def _stage(self, stage: str) -> dict[str, Any]:
        step, resolved = STEPS[stage], self.resolved[stage]
        path, marks = self.folder / f"{stage}.json", self._marks(stage)
        kept = _read(path)
        there = kept and self.resume and (self.run_of(stage) / "checkpoints" / "ckpt_best").exists()
        checkpoint = find("chat", self.run_of(stage), fast=False) if there else None
        if checkpoint and kept["marks"] == marks and kept["manifest_sha256"] == checkpoint.sha256:
            say(f"--- {stage}: done already ({checkpoint.folder})")
            return kept
        say(f"--- {stage}")
        begun = time.monotonic()
        reset_peak_memory()
        goes_on = self.resume and not self._has_other_parent(stage)
        result = step.run(resolved.config, Call(resolved.to_yaml(), resume=goes_on))
        facts = read_facts(self.run_of(stage))
        trained = time.monotonic() - begun
        record = {
            "stage": stage,
            "marks": marks,
            "manifest_sha256": find("chat", self.run_of(stage), fast=False).sha256,
            "seconds": round(max(trained, float(facts.get("seconds", 0.0))), 2),
            "peak_memory_mb": peak_memory_mb(),
            "result": result,
            "measured": {},
            "figures": {},
            **self._examined(stage),
        }
        record["examined_seconds"] = round(time.monotonic() - begun - trained, 2)
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        return record

    def _has_other_parent(self, stage: str) -> bool:
        """Whether a run of this stage is there that began from other weights than its parent has now."""
        began, parent = read_facts(self.run_of(stage)).get("parent"), PARENTS[stage]
        if began and parent and began["manifest_sha256"] != self.records[parent]["manifest_sha256"]:
            say(f"{self.run_of(stage)}: its parent has changed since; it is moved aside and done again")
            return True
        return False

    def _marks(self, stage: str) -> dict[str, Any]:
        """What the record of a stage depends on."""
        parent = PARENTS[stage]
        return {
            "config": hashlib.sha256(self.resolved[stage].to_yaml().encode()).hexdigest(),
            "parent": self.records[parent]["manifest_sha256"] if parent else None,
            "exam": [self.questions, DOCUMENTS, _SEED],
        }

    # --- the exam ---------------------------------------------------------------------------------------------------------------

    def _examined(self, stage: str) -> dict[str, Any]:
        step, config = STEPS[stage], self.resolved[stage].config
        device = choose_device(config.device)
        folder = self.run_of(stage) / "checkpoints" / "ckpt_best"
        tokenizer = Tokenizer.load(folder)
        questions = self._asked(tokenizer)
        if not step.policy:
            scorer = hub.load_scorer(folder, device).eval()
            return {"measured": measures.reward_model(scorer, tokenizer, config, questions, self._paper("sft"))}
        policy = hub.load_causal_lm(folder, device).eval()
        figures = reading(policy, tokenizer, self._texts(), config.data.max_length)
        measured = {}
        if stage == "pretrain":
            shards = data.ensure(config)[1]
            measured["ngram_bits_per_byte"] = measures.ngram_bits_per_byte(shards, tokenizer, self._texts())
        paper = self._papers[stage] = sit(policy, tokenizer, questions, seed=_SEED)
        figures |= paper.figures()
        if step.parent in self._papers or step.parent in self.records:
            figures["win_rate"] = paper.against(self._paper(step.parent))
            parent = hub.load_causal_lm(self.run_of(step.parent) / "checkpoints" / "ckpt_best", device)
            figures["kl"] = divergence(policy, parent, questions, paper)
        answers = [asdict(a) | {"log_probs": []} for a in paper.answers]
        return {
            "figures": figures,
            "measured": measured,
            "by_task": paper.by_task(questions),
            "paper": {"answers": answers, "texts": paper.texts, "gold": paper.gold, "right": paper.right},
        }

    def _paper(self, stage: str) -> Paper:
        """The marked answers of an earlier stage, from its record if it was not examined in this process."""
        if stage not in self._papers:
            kept = self.records[stage]["paper"]
            answers = [Completion(**answer) for answer in kept["answers"]]
            self._papers[stage] = Paper(answers, kept["texts"], kept["gold"], kept["right"])
        return self._papers[stage]

    def _asked(self, tokenizer: Tokenizer) -> Questions:
        if self._questions is None:
            online = next((self.resolved[s].config for s in gates.ONLINE if s in self.resolved), None)
            if self.evidence.own and online is not None:
                rows = read_split(online.data, "prompts", online.seed)[1][: self.questions]
            elif self.evidence.own:
                config = self.resolved["sft"].config
                talks = read_split(config.data, "conversations", config.seed)[1][: self.questions]
                rows = [Prompt(t.messages[:-1], {"answer": t.messages[-1]["content"]}) for t in talks]
            else:
                found = online or self.resolved["pretrain"].config
                source = found.data.model_copy(update={"train": ("world:1",), "val": (f"world:{self.questions}",)})
                _, rows, _ = read_split(source, "prompts", _SEED)
            room = self.resolved["pretrain"].config.model.max_position_embeddings - Questions.max_new_tokens
            gold = _mark if self.evidence.own else rewards.gold
            right = _right_answer if self.evidence.own else _full_marks
            self._questions = Questions(prompts_from(rows, tokenizer, room, "questions of the exam"), gold, right)
        return self._questions

    def _texts(self) -> list[Any]:
        """Held-out documents as ids, each with its end: those of the pretraining run's shards."""
        if self._documents is None:
            shards = data.ensure(self.resolved["pretrain"].config)[1]
            self._documents = shards.documents("val", DOCUMENTS)
        return self._documents

    # --- the scorecard ----------------------------------------------------------------------------------------------------------

    def forks(self) -> list[dict[str, Any]]:
        """Of every online stage, proxy against gold."""
        return [
            {"stage": stage, **hacking.monitor(self.run_of(stage))} for stage in gates.ONLINE if stage in self.records
        ]

    def samples(self) -> list[dict[str, Any]]:
        """The same questions side by side: one of every task, as far as they reach."""
        questions, chosen, seen = (
            self._asked(Tokenizer.load(self.run_of("pretrain") / "checkpoints" / "ckpt_best")),
            [],
            set(),
        )
        for i, prompt in enumerate(questions.prompts):
            task = str(prompt.columns.get("task", i))
            if task not in seen and len(prompt.columns["prompt"]) == 1 and len(chosen) < SAMPLES:
                seen.add(task)
                chosen.append(i)
        stages = [s for s in self.records if STEPS[s].policy]
        return [
            {
                "prompt": questions.prompts[i].columns["prompt"][-1]["content"],
                "expected": str(questions.prompts[i].columns.get("answer", "")),
                "task": str(questions.prompts[i].columns.get("task", "")),
                "answers": {
                    s: {"text": p.texts[i], "gold": p.gold[i], "finished": p.answers[i].finished}
                    for s in stages
                    for p in [self._paper(s)]
                },
            }
            for i in chosen
        ]


def _full_marks(columns: Mapping[str, Any], text: str, finished: bool) -> float:
    """Right, in the asked form, not padded out, and stopped."""
    return float(world.gold(columns, text, finished) > 1 - 1e-9)


def _right_answer(columns: Mapping[str, Any], text: str, finished: bool) -> float:
    return rewards.exact_answer(columns, text, finished) if "answer" in columns else float("nan")


def _mark(columns: Mapping[str, Any], text: str, finished: bool) -> float:
    """For one's own questions: right, less a half if it did not stop."""
    return _right_answer(columns, text, finished) - 0.5 * (not finished)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
