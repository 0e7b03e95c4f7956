"""What each command can be told: one Config a stage, made of the rooms' own. Light to import: no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, create_model, field_validator, model_validator

from tinyllm import algorithms
from tinyllm.config import Config
from tinyllm.data.streams import ENCODINGS
from tinyllm.model.config import LoRAConfig, ModelConfig
from tinyllm.rollout.config import RolloutConfig
from tinyllm.rollout.rewards import REWARDS
from tinyllm.train.config import OptimConfig, TrainConfig


def is_world(source: str) -> bool:
    """Whether an entry of data.train or data.val is the bundled world."""
    return source == "world" or source.startswith("world:")


class DataConfig(Config):
    """Where records come from."""

    train: tuple[str, ...] = ("world:20000",)
    """files, folders, globs, `-` for standard input, or `world:N`: N records of the bundled world"""
    val: tuple[str, ...] = ()
    """the same for validation; empty: `world` holds out its own, of files val_fraction is split off"""
    val_fraction: float = Field(0.05, gt=0, lt=1)
    format: str | None = None
    """the records' format, where detection guesses wrong"""
    field: dict[str, str] = Field({})
    """wanted column: the name it has in the files"""
    on_bad_line: Literal["error", "skip"] = "error"
    encoding: Literal[ENCODINGS] = "utf-8"  # type: ignore[valid-type]
    """of the files' text"""
    max_length: int = Field(256, ge=8)
    """tokens in a row; longer records are cut, and the number of them is reported"""


class TextConfig(DataConfig):
    """Where raw text comes from, and what becomes of it."""

    weights: tuple[float, ...] = ()
    """share of the training tokens for each entry of train, of any scale, as in [3, 1]; empty: in proportion to their size"""
    dedup: Literal["none", "exact", "near"] = "exact"
    """drop documents whose text came before, or nearly did (MinHash); none keeps every copy"""

    @model_validator(mode="after")
    def _a_weight_for_every_source(self) -> TextConfig:
        if self.weights and len(self.weights) != len(self.train):
            raise ValueError(f"{len(self.weights)} weights for {len(self.train)} entries of train: each needs one")
        if any(weight <= 0 for weight in self.weights):
            raise ValueError(
                f"weights {list(self.weights)} must all be more than 0; leave a source out of train instead"
            )
        for name, side in (("train", self.train), ("val", self.val)):
            if twice := [source for number, source in enumerate(side) if source in side[:number]]:
                raise ValueError(f"{name} names {twice[0]!r} twice; name it once (in train, it may have a weight)")
        return self


class RecordConfig(DataConfig):
    """Where conversations, pairs or prompts come from, and what becomes of those that are too long."""

    too_long: Literal["truncate", "drop", "error"] = "truncate"
    """a record of more than max_length tokens is cut (an answer at its end, a prompt at its beginning), left out, or refused, and counted;
    a prompt that is to be answered is never cut but left out"""


class StageConfig(Config):
    """What every stage has."""

    name: str = Field("default", pattern=r"^[\w][\w.~-]*$")
    """the run's name"""
    seed: int = Field(0, ge=0)
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


class PretrainConfig(StageConfig):
    model: ModelConfig = ModelConfig()
    tokenizer: Path | None = None
    """a folder with tokenizer.json; none: one of at most model.vocab_size tokens is trained on the data"""
    data: TextConfig = TextConfig()
    packing: bool = False
    """whole documents in a row of data.max_length, which do not see each other; otherwise rows are cut from one stream, where they do"""
    train: TrainConfig = TrainConfig()
    optim: OptimConfig = OptimConfig()

    @model_validator(mode="after")
    def _packed_or_mixed(self) -> PretrainConfig:
        if self.packing and self.data.weights:
            raise ValueError("packing and data.weights: sources are mixed in a stream only; leave one of them out")
        return self

    @model_validator(mode="after")
    def _rows_fit_the_model(self) -> PretrainConfig:
        if self.data.max_length > self.model.max_position_embeddings:
            raise ValueError(
                f"data.max_length {self.data.max_length} is more than model.max_position_embeddings "
                f"{self.model.max_position_embeddings}"
            )
        return self


class TunedConfig(StageConfig):
    """A stage that starts from a checkpoint."""

    parent: Path | None = None
    """the checkpoint to start from; none: the newest of the stage before"""
    lora: LoRAConfig | None = None
    """adapt with LoRA instead of training all weights"""
    data: RecordConfig = RecordConfig()
    train: TrainConfig = TrainConfig()
    optim: OptimConfig = OptimConfig()


class SftConfig(TunedConfig):
    wrong: float = Field(0.0, ge=0, le=1)
    """share of the bundled world's task demonstrations that are wrong, to leave online alignment something to mend"""
    flawed: float = Field(0.0, ge=0, le=1)
    """share of the bundled world's demonstrations that a judge would reject (wrong, padded, hedged, refused): what alignment is to mend"""
    packing: bool = False
    """several conversations in a row of data.max_length, which do not see each other; train.batch_size then counts such rows"""


class PreferenceConfig(TunedConfig):
    noise: float = Field(0.0, ge=0)
    """how unreliable the bundled world's judge of pairs is, as a temperature in units of gold; 0 always prefers the better answer"""


class RmConfig(PreferenceConfig):
    bradley_terry: algorithms.load("bradley_terry", "reward").Settings = algorithms.load(
        "bradley_terry", "reward"
    ).Settings()


def _with_algorithms(base: type[Config], name: str, family: str) -> type[Config]:
    """`base` with a section for every algorithm of the family, so that a new file in `algorithms` needs no line here."""
    settings = {file: algorithms.load(file, family).Settings for file in algorithms.names(family)}
    return create_model(
        name, __base__=base, __module__=__name__, **{file: (kind, kind()) for file, kind in settings.items()}
    )


class _Offline(PreferenceConfig):
    algorithm: str = "dpo"


class _Online(TunedConfig):
    algorithm: str = "grpo"
    rollout: RolloutConfig = RolloutConfig()
    rewards: dict[str, float] = Field({"gold": 1.0})
    """reward: weight. Built in: exact_answer, contains_answer, gold, reward_model; your own: path/to/file.py:function"""
    reward_model: Path | None = None
    """the checkpoint of the reward model; none: the newest, if `rewards` names reward_model"""
    best_by: str = "reward"
    """the held-out figure that decides ckpt_best, e.g. rewards/gold where that is known and the reward is a model's guess"""
    track_kl: bool = True
    """keep the parent beside the policy to report the distance between them, even where no KL enters the loss"""
    task: tuple[str, ...] = ()
    """tasks of the bundled world to take prompts from; empty: all"""


AlignOfflineConfig = _with_algorithms(_Offline, "AlignOfflineConfig", "offline")
AlignOnlineConfig = _with_algorithms(_Online, "AlignOnlineConfig", "online")


class EvalConfig(StageConfig):
    parent: Path | None = None
    """the checkpoint to evaluate; none: the newest pretrained one"""
    task: tuple[Literal["bits_per_byte", "choice", "exact_match", "gold", "pass@k"], ...] = ()
    """what is measured, see stages/evals/tasks.py; empty: perplexity and bits per byte of the documents"""
    data: DataConfig = DataConfig(train=(), val=("world:500",))
    rows: int = Field(2000, ge=1)
    """documents that are scored at most; with tasks: rows of every file"""
    batch_size: int = Field(16, ge=1)
    """rows of data.max_length in a forward pass; of shorter rows there are more"""
    options: Literal["text", "letters"] = "text"
    """of `question` and `choices`: compare the choices themselves, or list them in the question and compare A, B, C, D"""
    lead: str = ""
    """put in front of a whole text that is compared; lm-eval's own blimp has a space there"""
    template: Literal["auto", "plain", "chat"] = "auto"
    """plain text, or the chat template; auto: the template for questions and conversations, if the checkpoint was fine-tuned"""
    rule: str = "exact_answer"
    """what calls an answer right in exact_match and pass@k: exact_answer, contains_answer, gold, path/to/file.py:function"""
    max_new_tokens: int = Field(64, ge=1)
    """the longest answer"""
    until: tuple[str, ...] = ("\n\n", "Question:", "Q:")
    """where an answer in plain text ends"""
    k: tuple[int, ...] = Field((1, 8), min_length=1)
    """pass@k: at how many attempts"""
    samples: int = Field(8, ge=1)
    """pass@k: answers written to a question, at least the largest k"""
    temperature: float = Field(0.8, gt=0)
    """pass@k: of sampling; the other tasks are greedy"""

    @model_validator(mode="after")
    def _enough_samples(self) -> EvalConfig:
        if not 1 <= min(self.k) <= max(self.k) <= self.samples:
            raise ValueError(f"k {list(self.k)} must lie between 1 and samples {self.samples}")
        return self

    @field_validator("rule")
    @classmethod
    def _known_rule(cls, rule: str) -> str:
        if ".py:" not in rule and rule not in REWARDS:
            raise ValueError(f"expected one of {', '.join(REWARDS)} or path/to/file.py:function")
        return rule


class ChatConfig(StageConfig):
    parent: Path | None = None
    """the checkpoint to talk to; none: the newest one"""
    system: str = ""
    max_new_tokens: int = Field(128, ge=0)
    temperature: float = Field(0.7, ge=0)
    top_k: int = Field(0, ge=0)
    top_p: float = Field(0.95, gt=0, le=1)
