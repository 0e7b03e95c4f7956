"""The exam of a lifecycle: test documents and questions, and the figures of a checkpoint on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinyllm.config import Resolved
from tinyllm.data.loading import token_prompts
from tinyllm.lifecycle import baselines, overlap, sources
from tinyllm.lifecycle.evaluation import EvaluationResult, Questions, evaluate, kl_divergence, language_modeling
from tinyllm.lifecycle.stages import STAGES
from tinyllm.model import hub
from tinyllm.rollout import rewards
from tinyllm.stages import data
from tinyllm.stages.documents import held_out_documents
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train import checkpoint
from tinyllm.train.checkpointing import read_state
from tinyllm.train.engine import choose_device

QUESTIONS, DOCUMENTS = 512, 200
SEED = 0  # of the exam: the same for every stage and every lifecycle


class Exam:
    """Test documents and questions, the same for every stage.

    Args:
        resolved: the configuration of each stage.
        records: the questions.
    """

    def __init__(self, resolved: Mapping[str, Resolved], records: list[Any]):
        self.resolved, self.records = resolved, records
        self.sha256 = overlap.summary(overlap.keys_of(records))["sha256"]
        self._questions: Questions | None = None
        self._documents: list[Any] | None = None
        self._pairs: dict[str, list[Any]] = {}

    def questions(self, tokenizer: Tokenizer) -> Questions:
        """Return the questions that leave room for an answer, as token ids."""
        if self._questions is None:
            own = sources.is_user_data(self.resolved)
            room = self.resolved["pretrain"].config.model.max_position_embeddings - Questions.max_new_tokens
            prompts = token_prompts(self.records, tokenizer, room, "evaluation prompts") if self.records else []
            self._questions = Questions(prompts, *((_user_gold, _exact) if own else (rewards.gold, _full_gold)))
        return self._questions

    def documents(self) -> list[Any]:
        """Return test documents of pretraining as token ids, each with its end-of-text token."""
        if self._documents is None:
            config = self.resolved["pretrain"].config
            tokenizer, shards = data.ensure_prepared(config)
            self._documents = held_out_documents(config, shards, tokenizer, "test", DOCUMENTS)
        return self._documents

    def policy(
        self, stage: str, folder: Path, parent: tuple[Path, EvaluationResult] | None
    ) -> tuple[dict[str, Any], EvaluationResult]:
        """Return the figures of a policy's checkpoint and its answers.

        Args:
            parent: the checkpoint that the stage started from, and its answers.
        """
        config = self.resolved[stage].config
        device, tokenizer = choose_device(config.device), Tokenizer.load(folder)
        questions = self.questions(tokenizer)
        policy = hub.load_causal_lm(folder, device).eval()
        figures = language_modeling(policy, tokenizer, self.documents(), config.data.max_length)
        result = evaluate(policy, tokenizer, questions, seed=SEED)
        figures |= result.metrics()
        if parent is not None:
            figures["win_rate"] = result.win_rate(parent[1])
            figures["kl"] = kl_divergence(policy, hub.load_causal_lm(parent[0], device), questions, result)
        return figures, result

    def reward_model(self, stage: str, folder: Path, answers: EvaluationResult) -> dict[str, float]:
        """Return the figures of a reward model's checkpoint, some of them over a policy's answers."""
        config, tokenizer = self.resolved[stage].config, Tokenizer.load(folder)
        scorer = hub.load_scorer(folder, choose_device(config.device)).eval()
        if stage not in self._pairs:
            self._pairs[stage] = baselines.pairs_of(config)
        return baselines.reward_model_metrics(
            scorer, tokenizer, config, self._pairs[stage], self.questions(tokenizer), answers
        )

    def ngram(self, folder: Path) -> float:
        """Return the bits per byte of the documents under the n-gram model of the pretraining text."""
        shards = data.ensure_prepared(self.resolved["pretrain"].config)[1]
        return baselines.ngram_bits_per_byte(shards, Tokenizer.load(folder), self.documents())

    def stage(self, stage: str, run: Path, parent: tuple[Path, EvaluationResult] | None, sft: Any) -> dict[str, Any]:
        """Examine the best and the last checkpoint of a stage.

        Args:
            run: the run directory.
            sft: a function that returns the answers of the SFT stage, for a reward model.

        Returns the part of STAGE.json that was measured, and the answers of a policy's best checkpoint under `paper`.
        """
        folders = [run / "checkpoints" / name for name in (checkpoint.BEST, checkpoint.LATEST)]
        best, last = (read_state(folder)["updates"] for folder in folders)  # a link, or a copy of a checkpoint
        found = self._checkpoint(stage, folders[0], parent, sft)
        at_last = found if best == last else self._checkpoint(stage, folders[1], parent, sft)
        return found | {
            "best_step": best,
            "last": {"step": last} | {key: at_last[key] for key in ("figures", "measured")},
        }

    def _checkpoint(
        self, stage: str, folder: Path, parent: tuple[Path, EvaluationResult] | None, sft: Any
    ) -> dict[str, Any]:
        if not STAGES[stage].is_policy:
            return {"figures": {}, "measured": self.reward_model(stage, folder, sft())}
        figures, result = self.policy(stage, folder, parent)
        by_task = result.accuracy_by_task(self.questions(Tokenizer.load(folder)))
        answers = [asdict(completion) | {"log_probs": []} for completion in result.completions]
        paper = {"answers": answers, "texts": result.texts, "gold": result.gold, "right": result.correct}
        return {"figures": figures, "measured": {}, "by_task": by_task, "paper": paper}


def _full_gold(columns: Mapping[str, Any], text: str, finished: bool) -> float:
    """Correct, in the requested form, not padded, and ended with a stop token."""
    return float(rewards.gold(columns, text, finished) > 1 - 1e-9)


def _exact(columns: Mapping[str, Any], text: str, finished: bool) -> float:
    return rewards.exact_answer(columns, text, finished) if "answer" in columns else float("nan")


def _user_gold(columns: Mapping[str, Any], text: str, finished: bool) -> float:
    """For the user's questions: 1 if correct, less 0.5 if not ended with a stop token."""
    return _exact(columns, text, finished) - 0.5 * (not finished)
