"""The files of a checkpoint: a model or an adapter, its tokenizer, its origin and, for PPO, the critic."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from tinyllm import distributed as dist
from tinyllm.errors import INTEGRITY, UserError
from tinyllm.io import hub_cache
from tinyllm.io.special_ids import GENERATION
from tinyllm.model import hub, lora, tensors
from tinyllm.model.adapter_config import ADAPTER
from tinyllm.model.config import LoRAConfig
from tinyllm.model.hf_config import read_config
from tinyllm.model.transformer import ActorCritic, CausalLM, SequenceScorer
from tinyllm.stages.origin import read_origin, write_origin
from tinyllm.stages.parents import Parent
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train import checkpoint


class CheckpointFiles:
    """Writes a model into a checkpoint directory, and restores it when a run is resumed.

    A policy is written as a complete model or, with LoRA, as a PEFT adapter. A critic goes to `trainer/`, where other tools do not look.

    Args:
        stage: the stage that writes, for tinyllm.json; empty: no such file is written.
        adapter: write the adapter with these settings instead of the whole model.
        base: the path of the adapter's base model. It is written as an absolute one; `base_folder` finds runs that moved together. A
            model in the hub's cache is written by its name and commit.
        dtype: of model.safetensors. Beside one in less than float32, `trainer/` holds the float32 weights, from which a run is resumed.
            Adapters and critics are float32.
    """

    def __init__(
        self,
        model: CausalLM | SequenceScorer | ActorCritic,
        tokenizer: Tokenizer,
        *,
        stage: str = "",
        adapter: LoRAConfig | None = None,
        base: str = "",
        dtype: torch.dtype = torch.float32,
    ):
        self.model = model.policy if isinstance(model, ActorCritic) else model
        self.critic = model.critic if isinstance(model, ActorCritic) else None
        self.tokenizer, self.stage, self.adapter, self.base, self.dtype = tokenizer, stage, adapter, base, dtype
        self.base_sha256 = tensors.sha256(Path(base)) if adapter and Path(base).is_dir() else ""
        if self.base_sha256:  # PEFT takes a relative path from the working directory, wherever the adapter lies
            self.base = _named(Path(base).absolute())

    @property
    def bytes_per_weight(self) -> int:
        """Bytes that a checkpoint takes for each trained weight, without the optimizer's."""
        whole = self.adapter is None and self.dtype != torch.float32
        return self.dtype.itemsize + 4 if whole else 4

    def write(self, folder: Path) -> None:
        """Write all files into an existing directory."""
        tokenizer = self.tokenizer
        tokenizer.save(folder, model_max_length=self.model.config.max_position_embeddings)
        if self.adapter is not None:
            lora.save(self.model, self.adapter, folder, self.base, base_sha256=self.base_sha256)
            if tokenizer.special and tokenizer.special.generation:  # beside the tokenizer that is loaded from here
                hub.write_json(folder / GENERATION, tokenizer.special.generation)
        else:
            hub.save(
                self.model,
                folder,
                bos=tokenizer.bos,
                stop=tokenizer.stop_ids,
                pad=tokenizer.pad,
                original=tokenizer.special,
                dtype=self.dtype,
            )
            if self.dtype != torch.float32:
                (folder / "trainer").mkdir(exist_ok=True)
                save_file(hub.tensors_of(self.model), folder / hub.MASTER)
        if self.stage:
            write_origin(folder, self.stage)
        if self.critic is not None:
            (folder / "trainer").mkdir(exist_ok=True)
            save_file(hub.tensors_of(self.critic), folder / "trainer" / "critic.safetensors")

    def restore(self, folder: Path) -> None:
        """Load all weights of a checkpoint into the model, in place.

        Raises: UserError (INTEGRITY) for a checkpoint of another model, vocabulary or base.
        """
        found = Tokenizer.load(folder).sha256
        if found != self.tokenizer.sha256:
            raise UserError(
                f"a checkpoint with another vocabulary: sha256 {found[:12]}, this run's {self.tokenizer.sha256[:12]}",
                where=str(folder / "tokenizer.json"),
                fix=hub.START_OVER,
                code=INTEGRITY,
            )
        if self.adapter is not None:
            self._refuse_other_base(folder)
            lora.restore(self.model, self.adapter, folder)
        else:
            hub.restore(self.model, folder)
        if self.critic is not None:
            path = folder / "trainer" / "critic.safetensors"
            tensors.copy_into(self.critic.state_dict(), [path], path)

    def _refuse_other_base(self, folder: Path) -> None:
        recorded = tensors.metadata(folder / lora.WEIGHTS, lora.BASE_SHA256)
        self.base_sha256 = self.base_sha256 or recorded
        if recorded and recorded != self.base_sha256:
            raise lora.other_base(folder, self.base, recorded, self.base_sha256, hub.START_OVER)


def _named(base: Path) -> str:
    """Return the name and commit of a model where this machine finds it by them, its path elsewhere."""
    name = hub_cache.name_of(base)
    found = hub_cache.snapshot(name) if name else None
    return str(name) if found is not None and found.samefile(base) else base.as_posix()


def adapter_base(model: CausalLM, tokenizer: Tokenizer, parent: Parent, run_folder: Path) -> str:
    """Return the path that an adapter names as its base model.

    It is the parent. If the parent is itself an adapter, or the model has more tokens than its parent, it is the model before training,
    which is written to `base/` in the run directory first.
    """
    whole = not (parent.folder / ADAPTER).is_file()
    if whole and read_config(parent.folder)[0].vocab_size == model.config.vocab_size:
        return parent.folder.as_posix()
    written = dist.broadcast_text(next((p.as_posix() for p in checkpoint.steps(run_folder / "base")), ""))
    files = CheckpointFiles(model, tokenizer, stage=read_origin(parent.folder).stage)

    def write(draft: Path) -> None:
        if dist.is_main():
            files.write(draft)

    return written or checkpoint.save(run_folder / "base", 0, write).as_posix()
