"""Settings of each stage, composed of the settings of the rooms. No torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from tinyllm import algorithms
from tinyllm.algorithms.bradley_terry import Settings as BradleyTerrySettings
from tinyllm.config import Config, with_sections
from tinyllm.config.sampling import TemperatureOrGreedy
from tinyllm.data.config import RecordConfig, TextConfig
from tinyllm.errors import UserError
from tinyllm.model.config import LoRAConfig, ModelConfig
from tinyllm.rollout.config import RolloutConfig
from tinyllm.text.config import ChatFormatConfig
from tinyllm.train.config import OptimConfig, TrainConfig

C = TypeVar("C", bound=Config)
_MAX_NAME_BYTES = 200  # of a run; file systems allow 255, and the algorithm, `~1` and names of drafts are added


class StageConfig(Config):
    """Settings of every stage."""

    name: str = Field("default", pattern=r"^[\w][\w.~-]*$")
    """the run's name"""
    seed: int = Field(0, ge=0)
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"

    @field_validator("name")
    @classmethod
    def _name_fits_a_folder(cls, name: str) -> str:
        if (size := len(name.encode())) > _MAX_NAME_BYTES:
            raise ValueError(f"a name of {size} bytes, at most {_MAX_NAME_BYTES} fit into the name of a folder")
        return name


class PretrainConfig(StageConfig):
    """Settings of `pretrain`, `data prepare` and `data tokenizer`."""

    parent: Path | None = None
    """the checkpoint to continue from, with its model and tokenizer; none: new weights"""
    base: Path | None = None
    """the base model of a checkpoint that is an adapter, where it does not lie at the path that the adapter names"""
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
        if self.parent is None and self.data.max_length > self.model.max_position_embeddings:
            raise ValueError(
                f"data.max_length {self.data.max_length} is more than model.max_position_embeddings "
                f"{self.model.max_position_embeddings}"
            )
        return self


class TunedConfig(StageConfig):
    """A stage that starts from a checkpoint."""

    parent: Path | None = None
    """the checkpoint to start from; none: the newest of the stage before"""
    base: Path | None = None
    """the base model of a checkpoint that is an adapter, where it does not lie at the path that the adapter names"""
    lora: LoRAConfig | None = None
    """adapt with LoRA instead of training all weights"""
    chat: ChatFormatConfig = ChatFormatConfig()
    data: RecordConfig = RecordConfig()
    train: TrainConfig = TrainConfig()
    optim: OptimConfig = OptimConfig()


class SftConfig(TunedConfig):
    """Settings of `sft`."""

    wrong: float = Field(0.0, ge=0, le=1)
    """share of the bundled world's task demonstrations that are wrong, so that online alignment has something to improve"""
    flawed: float = Field(0.0, ge=0, le=1)
    """share of the bundled world's demonstrations that a judge would reject (wrong, padded, hedged, refused)"""
    packing: bool = False
    """several conversations in a row of data.max_length, which do not see each other; train.batch_size then counts such rows"""


class PreferenceConfig(TunedConfig):
    """Settings of stages that learn from preferences."""

    noise: float = Field(0.0, ge=0)
    """how unreliable the bundled world's judge of pairs is, as a temperature in units of gold; 0 always prefers the better answer"""


class RmConfig(PreferenceConfig):
    """Settings of `rm`."""

    bradley_terry: BradleyTerrySettings = BradleyTerrySettings()


def _with_algorithms(family: algorithms.Family) -> Callable[[type[C]], type[C]]:
    """Add a section for every built-in algorithm of the family, so that a new file in `algorithms` needs no line here."""

    def decorate(base: type[C]) -> type[C]:
        return with_sections(base, {name: algorithms.load(name, family).settings for name in algorithms.names(family)})

    return decorate


@_with_algorithms("offline")
class AlignOfflineConfig(PreferenceConfig):
    """Settings of `align-offline`."""

    algorithm: str = "dpo"
    """a file in tinyllm/algorithms, or path/to/my_loss.py"""

    def settings(self) -> Config:
        """Return the section of the chosen algorithm."""
        return _section_of(self, self.algorithm, "offline")


@_with_algorithms("online")
class AlignOnlineConfig(TunedConfig):
    """Settings of `align-online`."""

    algorithm: str = "grpo"
    """a file in tinyllm/algorithms, or path/to/my_loss.py"""
    rollout: RolloutConfig = RolloutConfig()
    rewards: dict[str, float] = Field({"gold": 1.0}, examples=[{"exact_answer": 1.0}])
    """reward: weight. Built in: exact_answer, contains_answer, gold, reward_model; your own: path/to/file.py:function"""
    reward_model: Path | None = None
    """the checkpoint of the reward model; none: the newest, if `rewards` names reward_model"""
    best_by: str = "reward"
    """the held-out metric that decides ckpt_best, e.g. rewards/gold where that is known and the reward is a model's estimate"""
    track_kl: bool = True
    """keep the parent beside the policy to report the KL between them, even if the loss has no KL term"""
    task: tuple[str, ...] = ()
    """tasks of the bundled world to take prompts from; empty: all"""

    @model_validator(mode="after")
    def _something_is_rewarded(self) -> AlignOnlineConfig:
        if not any(self.rewards.values()):
            what = "all weights of rewards are 0" if self.rewards else "rewards is empty"
            fix = "give a reward a weight: --set 'rewards={exact_answer: 1.0}'"
            raise UserError(f"{what}: there is nothing to learn from", where="rewards", fix=fix)
        return self

    @model_validator(mode="after")
    def _answers_can_be_compared(self) -> AlignOnlineConfig:
        if self.rollout.group_size < 2 and algorithms.load(self.algorithm, "online").needs_group:
            name = algorithms.name_of(self.algorithm)
            what = f"rollout.group_size is {self.rollout.group_size}, but {name} compares an answer with the others to its prompt"
            raise UserError(what, where="rollout.group_size", fix="set it to 2 or more: --set rollout.group_size=8")
        return self

    def settings(self) -> Config:
        """Return the section of the chosen algorithm."""
        return _section_of(self, self.algorithm, "online")


def align_offline_config(algorithm: str) -> type[AlignOfflineConfig]:
    """Return the configuration class for an algorithm. That of a user's own file has a section named by the file's stem.

    Raises:
        UserError: the file is not a usable offline algorithm; see `algorithms.load`.
    """
    return _for_algorithm(AlignOfflineConfig, algorithm, "offline")


def align_online_config(algorithm: str) -> type[AlignOnlineConfig]:
    """Return the configuration class for an algorithm; see `align_offline_config`."""
    return _for_algorithm(AlignOnlineConfig, algorithm, "online")


def _for_algorithm(base: type[C], algorithm: str, family: algorithms.Family) -> type[C]:
    if not algorithms.is_file(algorithm):
        return base
    entry = algorithms.load(algorithm, family)
    if entry.name in base.model_fields:
        raise UserError(f"{entry.name} is a section of the configuration", where=algorithm, fix="rename the file")
    return with_sections(base, {entry.name: entry.settings})


def _section_of(config: Config, algorithm: str, family: algorithms.Family) -> Config:
    name = algorithms.name_of(algorithm)
    if name not in type(config).model_fields:
        return algorithms.load(algorithm, family).settings()
    section = vars(config)[name]
    assert isinstance(section, Config)
    return section


class ChatConfig(StageConfig):
    """Settings of `chat`."""

    parent: Path | None = None
    """the checkpoint to talk to; none: the newest one"""
    base: Path | None = None
    """the base model of a checkpoint that is an adapter, where it does not lie at the path that the adapter names"""
    chat: ChatFormatConfig = ChatFormatConfig()
    system: str = ""
    """the same as chat.system"""
    max_new_tokens: int = Field(128, ge=0)
    temperature: TemperatureOrGreedy | None = None
    """none, here and below: as the checkpoint's generation_config.json says, or 0.7"""
    top_k: int | None = Field(None, ge=0)
    """none: 0, which keeps all tokens"""
    top_p: float | None = Field(None, gt=0, le=1)
    """none: 0.95"""
    repetition_penalty: float | None = Field(None, gt=0)
    """none: 1, no penalty"""


_KINDS: dict[type[StageConfig], str] = {
    PretrainConfig: "documents",
    SftConfig: "conversations",
    RmConfig: "pairs",
    AlignOnlineConfig: "prompts",
}


def data_kind(config: StageConfig) -> str | None:
    """Return the kind of records that the stage of this configuration trains on; None where it trains on nothing."""
    if isinstance(config, AlignOfflineConfig):
        return algorithms.load(config.algorithm, "offline").data
    return next((kind for stage, kind in _KINDS.items() if isinstance(config, stage)), None)
