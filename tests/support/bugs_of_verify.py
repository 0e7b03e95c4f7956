"""What fails in `tinyllm verify` with each planted bug.

Comparisons are "check: comparison", effects "check: comparison: effect", and errors "check". Together they are all comparisons and
all effects: of the machine's checks in `BUGS`, of those of checkpoints in `CHECKPOINT_BUGS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.support import planted_bugs
from tests.support.planted_bugs import Patch


@dataclass(frozen=True)
class Bug:
    plant: Callable[[Patch], None]
    in_process: frozenset[str]  # what must fail in checks that run in one process
    in_subprocess: frozenset[str]  # and in those that start other processes or import transformers

    @property
    def failing(self) -> frozenset[str]:
        """The checks that must fail, and no others."""
        return frozenset(name.partition(":")[0] for name in self.in_process | self.in_subprocess)


def _bug(plant: Callable[[Patch], None], *in_process: str, elsewhere: tuple[str, ...] = ()) -> Bug:
    return Bug(plant, frozenset(in_process), frozenset(elsewhere))


_GREEDY, _SAMPLED = "generation: greedy log-probabilities", "generation: sampled log-probabilities"
_MEANS = ("ranks: gradients",)
BUGS = {
    bug.plant.__name__: bug
    for bug in (
        _bug(planted_bugs.cache_off_by_one, "generation: tokens", _GREEDY, _SAMPLED),
        _bug(planted_bugs.temperature_ignored_by_the_sampler, _SAMPLED),
        _bug(planted_bugs.stop_tokens_ignored, "generation: sampled log-probabilities: completion lengths"),
        _bug(planted_bugs.prompts_of_one_length, "generation: tokens: prompt lengths"),
        _bug(planted_bugs.merged_with_twice_the_scale, "lora: merged"),
        _bug(planted_bugs.adapter_without_scale, "lora: merged: adapter"),
        _bug(planted_bugs.adapter_stays_enabled, "lora: disabled"),
        _bug(planted_bugs.adapter_starts_at_random, "lora: untrained"),
        _bug(planted_bugs.mean_per_micro_batch, "micro-batches: gradients", elsewhere=_MEANS),
        _bug(planted_bugs.grpo_mean_per_micro_batch, "micro-batches: gradients", elsewhere=_MEANS),
        _bug(
            planted_bugs.gradient_zero,
            "micro-batches: gradients: gradient",
            "repeat: weights: update",
            elsewhere=("ranks: gradients: gradient", "resume: weights: change after resuming"),
        ),
        _bug(
            planted_bugs.update_frozen, "repeat: weights: update", elsewhere=("resume: weights: change after resuming",)
        ),
        _bug(planted_bugs.optimizer_state_not_restored, elsewhere=("resume: weights", "resume: optimizer state")),
        _bug(planted_bugs.resume_starts_over, elsewhere=("resume: first step",)),
        _bug(
            planted_bugs.dropout_not_seeded, "repeat: weights", elsewhere=("resume: weights", "resume: optimizer state")
        ),
        _bug(planted_bugs.dropout_off, "repeat: weights: another seed", elsewhere=("resume: weights: dropout",)),
        _bug(planted_bugs.attention_across_documents, "packing: log-probabilities"),
        _bug(planted_bugs.one_document_in_each_row, "packing: log-probabilities: document mask"),
        _bug(
            planted_bugs.constant_model,
            "packing: log-probabilities: document mask",
            "generation: tokens: distinct tokens",
            "lora: merged: adapter",
            "export: outputs: range of outputs",
            "precision: loss: bf16",
            elsewhere=("transformers: outputs: range of outputs",),
        ),
        _bug(planted_bugs.gradients_not_summed_over_ranks, elsewhere=("ranks: gradients",)),
        _bug(planted_bugs.every_rank_trains_on_all_rows, elsewhere=("ranks: rows",)),
        _bug(planted_bugs.control_tokens_parsed_in_text, "tokenizer: control tokens", "tokenizer: turns"),
        _bug(planted_bugs.control_tokens_without_names, "tokenizer: control tokens: control tokens spelled"),
        _bug(planted_bugs.decoded_without_spaces_around, "tokenizer: round trip"),
        _bug(planted_bugs.no_texts, "tokenizer: round trip: distinct tokens", "template: ids: distinct tokens"),
        _bug(planted_bugs.template_without_newline, "template: ids"),
        _bug(planted_bugs.manifest_not_verified, "checkpoint: damage", "checkpoint: fallback"),
        _bug(
            planted_bugs.newest_checkpoint_is_the_oldest,
            "checkpoint: fallback: intact one used",
            elsewhere=("resume: first step",),
        ),  # it continues from an earlier step
        _bug(
            planted_bugs.wrong_rope_theta_in_config_json, "export: outputs", elsewhere=("resume",)
        ),  # it refuses another model
        _bug(planted_bugs.wrong_rope_theta_for_transformers, elsewhere=("transformers: outputs",)),
        _bug(planted_bugs.norm_too_large_in_bf16, "precision: loss"),
        _bug(planted_bugs.autocast_off, "precision: loss: bf16"),
        _bug(
            planted_bugs.nothing_is_scored,
            "repeat",
            "micro-batches",
            "packing: log-probabilities",
            elsewhere=("ranks", "resume"),
        ),
        _bug(
            planted_bugs.prompts_without_tokens,
            *("packing", "generation", "lora: merged", "lora: disabled", "lora: untrained", "export", "precision"),
            elsewhere=("transformers",),
        ),
        _bug(
            planted_bugs.checkpoint_without_files, "checkpoint: damage", "export", elsewhere=("resume", "transformers")
        ),
    )
}


# The checks of a checkpoint. Of those that are the same as on the machine, each comparison and effect is seen red once more.
CHECKPOINT_BUGS = {
    "full": (
        _bug(planted_bugs.manifest_not_verified, "manifest: files: damaged copies detected"),
        _bug(planted_bugs.norm_far_too_large_in_bf16, "precision: loss"),
        _bug(planted_bugs.weights_not_restored, "state: model.safetensors"),
        _bug(planted_bugs.weights_kept_before_restoring, "state: model.safetensors: other tensors before"),
        _bug(planted_bugs.optimizer_state_not_restored, "state: trainer/optimizer.safetensors"),
        _bug(
            planted_bugs.state_is_what_was_read_from_the_file,
            "state: trainer/optimizer.safetensors: other tensors before",
        ),
        _bug(
            planted_bugs.constant_checkpoint,
            "packing: log-probabilities: document mask",
            "generation: tokens: distinct tokens",
            "export: outputs: range of outputs",
            "precision: loss: bf16",
        ),
        *(
            BUGS[plant.__name__]
            for plant in (
                planted_bugs.attention_across_documents,
                planted_bugs.one_document_in_each_row,
                planted_bugs.cache_off_by_one,
                planted_bugs.prompts_of_one_length,
                planted_bugs.temperature_ignored_by_the_sampler,
                planted_bugs.control_tokens_parsed_in_text,
                planted_bugs.control_tokens_without_names,
                planted_bugs.decoded_without_spaces_around,
                planted_bugs.no_texts,
                planted_bugs.autocast_off,
            )
        ),
    ),
    "adapter": (
        _bug(planted_bugs.merged_with_twice_the_scale, "lora: merged"),
        _bug(planted_bugs.adapter_without_scale, "lora: merged: adapter"),
        _bug(planted_bugs.weights_not_restored, "state: adapter_model.safetensors"),
        _bug(planted_bugs.weights_kept_before_restoring, "state: adapter_model.safetensors: other tensors before"),
        _bug(planted_bugs.optimizer_state_not_restored, "state: trainer/optimizer.safetensors"),
    ),
    "reward model": (
        _bug(planted_bugs.weights_not_restored, "state: model.safetensors"),
        _bug(planted_bugs.constant_checkpoint, "export: outputs: range of outputs"),
        _bug(planted_bugs.wrong_rope_theta_in_config_json, "export: outputs"),
    ),
    "critic": (
        _bug(planted_bugs.critic_not_restored, "state: trainer/critic.safetensors"),
        _bug(planted_bugs.weights_kept_before_restoring, "state: trainer/critic.safetensors: other tensors before"),
        _bug(planted_bugs.optimizer_state_not_restored, "state: trainer/optimizer.safetensors"),
    ),
    "foreign": (
        BUGS["cache_off_by_one"],
        BUGS["attention_across_documents"],
        BUGS["template_without_newline"],
        _bug(planted_bugs.wrong_rope_theta_in_config_json, "export: outputs"),
    ),
}
