"""Settings of `tinyllm eval` without those of its tasks. Light to import: no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from tinyllm.config.sampling import Temperature
from tinyllm.data.config import DataConfig
from tinyllm.rollout.rewards import REWARDS
from tinyllm.stages.config import StageConfig
from tinyllm.text.config import ChatFormatConfig


class EvalSettings(StageConfig):
    """Settings of the evaluation itself, shared by all tasks."""

    parent: Path | None = None
    """the checkpoint to evaluate; none: the newest pretrained one"""
    base: Path | None = None
    """the base model of a checkpoint that is an adapter, where it does not lie at the path that the adapter names"""
    task: tuple[str, ...] = ()
    """names of tasks; `EvalConfig` limits them to the registry"""
    chat: ChatFormatConfig = ChatFormatConfig()
    data: DataConfig = DataConfig(train=(), val=("world:500",))
    rows: int = Field(2000, ge=1)
    """largest number of documents; with tasks: of rows per file"""
    batch_size: int = Field(16, ge=1)
    """rows of data.max_length in a forward pass; more of shorter rows"""
    options: Literal["text", "letters"] = "text"
    """of `question` and `choices`: compare the choices themselves, or list them in the question and compare A, B, C, D"""
    lead: str = ""
    """put in front of a whole text that is compared; lm-eval's own blimp has a space there"""
    start: str = "auto"
    """token in front of a text, which is not scored: auto, bos, eos, none, or the token itself, as in <|endoftext|>"""
    score_end: Literal["auto"] | bool = "auto"
    """score the end-of-text token after a text. auto: after documents, unless the checkpoint's end token ends turns"""
    template: Literal["auto", "plain", "chat"] = "auto"
    """plain text, or the chat template; auto: the template for questions and conversations, if the checkpoint was fine-tuned"""
    rule: str = "exact_answer"
    """what calls an answer correct in exact_match and pass@k: exact_answer, contains_answer, gold, path/to/file.py:function"""
    max_new_tokens: int = Field(64, ge=1)
    """largest number of tokens in an answer"""
    until: tuple[str, ...] = ("\n\n", "Question:", "Q:")
    """strings that end an answer in plain text"""
    k: tuple[int, ...] = Field((1, 8), min_length=1)
    """pass@k: numbers of attempts"""
    samples: int = Field(8, ge=1)
    """pass@k: answers sampled per question, at least the largest k"""
    temperature: Temperature = 0.8
    """pass@k: of sampling; the other tasks are greedy"""

    @model_validator(mode="after")
    def _enough_samples(self) -> EvalSettings:
        if not 1 <= min(self.k) <= max(self.k) <= self.samples:
            raise ValueError(f"k {list(self.k)} must lie between 1 and samples {self.samples}")
        return self

    @field_validator("rule")
    @classmethod
    def _known_rule(cls, rule: str) -> str:
        if ".py:" not in rule and rule not in REWARDS:
            raise ValueError(f"expected one of {', '.join(REWARDS)} or path/to/file.py:function")
        return rule
