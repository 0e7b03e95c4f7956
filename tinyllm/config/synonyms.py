"""Names of settings in other tools, and the settings that do the same here: the only table of synonyms.

Terms are those of the Hugging Face Trainer, TRL, PEFT, nanoGPT, nanochat, litgpt, LLaMA-Factory, axolotl and lm-eval. A key that begins
with `*.` is in the section of the algorithm in use. A safety override is never the answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import NamedTuple

CHOICE = "algorithm"  # the key whose value names the section that `*.` stands for


class Row(NamedTuple):
    """Keys in the order of preference, the terms for them, a remark, advice where no key exists, and whether values differ."""

    keys: str
    terms: str
    remark: str = ""
    instead: str = ""
    convert: bool = False


_LIST = "it is a list: [a.jsonl, b.jsonl]"
_STEPS = "steps are counted, not epochs: one epoch is the number of records / train.batch_size"
_SHAPE = "the shape of the model is that of its checkpoint"
_LORA = "LoRA adapts a checkpoint: `tinyllm sft --lora`"
_TRAINS = "this command does not train"
_SAMPLES = "only align-online, eval and chat generate text"
_RECORDS = "metrics are written to metrics.jsonl of the run"
_RESUME = "the same command resumes its run"
_REPLICAS = "every rank holds the whole model: --nproc N"
_MEMORY = "lower train.micro_batch_size to save memory; results do not change"

_ROWS = (
    # --- optimizer
    Row("optim.learning_rate", "lr learning_rate max_lr peak_lr base_lr"),
    Row("optim.weight_decay", "wd weight_decay l2 adam_weight_decay"),
    Row("optim.warmup_steps", "warmup warmup_iters num_warmup_steps lr_warmup_steps lr_warmup_iters warmup_iterations"),
    Row(
        "optim.warmup_steps",
        "warmup_ratio warmup_fraction warmup_proportion warmup_epochs",
        "steps are counted: ratio x train.steps",
        convert=True,
    ),
    Row("optim.schedule", "lr_scheduler lr_scheduler_type scheduler lr_schedule lr_decay_style scheduler_type"),
    Row(
        "optim.min_lr_ratio",
        "min_lr min_learning_rate lr_min lr_end final_lr_frac min_lr_rate",
        "it is a fraction of the peak",
        convert=True,
    ),
    Row("optim.decay_fraction", "warmdown_ratio cooldown_fraction decay_ratio", "a fraction of the run"),
    Row(
        "optim.clip_norm",
        "grad_clip max_grad_norm gradient_clipping clip_grad clip_grad_norm gradient_clip_val max_norm",
    ),
    Row("optim.optimizer", "optim_type optimizer_name optimizer_type"),
    Row("optim.beta1", "adam_beta1 betas"),
    Row("optim.beta2", "adam_beta2"),
    Row("optim.eps", "adam_epsilon adam_eps"),
    # --- training loop
    Row(
        "train.steps",
        "max_steps num_steps max_iters iters num_iters num_iterations total_steps train_steps num_train_steps "
        "max_train_steps n_steps training_steps train_iters",
    ),
    Row(
        "train.steps", "epochs epoch num_train_epochs num_epochs max_epochs n_epochs train_epochs", _STEPS, convert=True
    ),
    Row(
        "train.batch_size batch_size",
        "bs batch_size train_batch_size global_batch_size total_batch_size batchsize",
        "rows per optimizer step, over all ranks",
    ),
    Row(
        "train.micro_batch_size batch_size",
        "per_device_train_batch_size per_device_eval_batch_size per_gpu_train_batch_size micro_batch_size device_batch_size "
        "micro_train_batch_size eval_batch_size",
        "rows per forward pass; train.batch_size is the whole optimizer step",
    ),
    Row(
        "train.batch_size",
        "gradient_accumulation_steps gradient_accumulation gradient_accumulation_iters grad_accum grad_accum_steps "
        "accumulate_grad_batches accumulation_steps",
        "it is the whole step: micro-batches of train.micro_batch_size rows are accumulated up to it",
        convert=True,
    ),
    Row("train.save_every", "save_steps save_interval save_freq checkpoint_interval save_every_n_steps"),
    Row(
        "train.eval_every",
        "eval_steps eval_interval eval_freq val_interval val_check_interval evaluation_steps eval_every_n_steps",
    ),
    Row("train.save_every", "save_strategy", "a number of steps", convert=True),
    Row("train.eval_every", "eval_strategy evaluation_strategy", "a number of steps", convert=True),
    Row("train.eval_rows rows", "eval_iters eval_batches max_eval_samples eval_samples limit max_samples"),
    Row("train.log_every", "logging_steps log_interval log_steps logging_interval log_every_n_steps"),
    Row("train.keep", "save_total_limit keep_last_n max_checkpoints keep_checkpoints"),
    Row("train.dropout", "resid_pdrop attn_pdrop attention_dropout hidden_dropout"),
    Row(
        "train.precision",
        "bf16 fp16 dtype torch_dtype mixed_precision amp precision fp32 half",
        "auto, bf16 or fp32",
        "inference is in float32",
        convert=True,
    ),
    Row("train.compile", "torch_compile compile use_compile", "auto, on or off", convert=True),
    # --- data
    Row(
        "data.train",
        "data dataset datasets train_file train_files train_data dataset_name data_path data_dir data_file data_files "
        "dataset_path dataset_dir train_dataset training_data corpus file files input input_file",
        _LIST,
        "chat reads no data; -p asks one question",
    ),
    Row(
        "data.val",
        "val validation val_data val_file eval_data eval_file eval_dataset validation_file validation_data test_data "
        "test_file val_dataset",
        _LIST,
    ),
    Row(
        "data.val_fraction",
        "validation_split val_split test_size val_set_size val_size split_ratio eval_split val_ratio",
    ),
    Row(
        "data.max_length",
        "max_length max_seq_length max_seq_len seq_len seq_length sequence_length sequence_len context_length context_size "
        "block_size cutoff_len max_len n_ctx model_max_length max_prompt_length max_input_length",
        "tokens per row, at most the model's positions",
        "the context is that of the checkpoint",
    ),
    Row("data.format", "dataset_format data_format dataset_type"),
    Row("data.encoding", "encoding charset file_encoding"),
    Row("data.delimiter", "delimiter delim sep separator field_separator", "comma, semicolon, tab or pipe"),
    Row(
        "data.field",
        "columns column column_mapping field_mapping text_column text_field dataset_text_field prompt_column response_column",
        "a mapping: {text: body}",
        convert=True,
    ),
    Row("packing", "sample_packing pack use_packing", instead="only pretrain and sft pack rows"),
    # --- model
    Row("model.vocab_size", "vocab vocab_size padded_vocab_size n_vocab"),
    Row("model.num_hidden_layers", "n_layer n_layers num_layers depth layers num_hidden_layers"),
    Row("model.num_attention_heads", "n_head n_heads num_heads heads num_attention_heads"),
    Row("model.num_key_value_heads", "n_kv_head n_kv_heads num_kv_heads kv_heads n_query_groups num_key_value_heads"),
    Row("model.hidden_size", "n_embd d_model dim embed_dim hidden_dim model_dim embedding_size hidden_size width"),
    Row("model.intermediate_size", "d_ff ffn_dim ffn_hidden_size mlp_dim n_inner intermediate_size"),
    Row("model.max_position_embeddings", "n_positions max_positions max_position_embeddings"),
    Row("model.rope_theta", "rope_base rope_theta"),
    Row("model.tie_word_embeddings", "tie_weights tie_embeddings weight_tying tied_embeddings"),
    Row("model.model_type", "architecture arch model_type"),
    Row(
        "parent",
        "model model_name_or_path model_name model_path base_model pretrained_model pretrained_model_name_or_path init_from "
        "checkpoint ckpt checkpoint_dir load_checkpoint base_model_name_or_path ref_model",
        "the run or checkpoint to start from",
    ),
    Row(
        "tokenizer",
        "tokenizer tokenizer_path tokenizer_name tokenizer_name_or_path tokenizer_dir",
        instead="the tokenizer is that of the checkpoint",
    ),
    Row(
        "name",
        "output_dir out_dir save_dir run_name output exp_name experiment_name wandb_run_name out_path",
        "a run is written to runs/STAGE/NAME",
        convert=True,
    ),
    # --- LoRA
    Row("lora.r", "lora_r lora_rank rank r"),
    Row("lora.alpha", "lora_alpha alpha"),
    Row("lora.dropout", "lora_dropout"),
    Row("lora.targets", "target_modules lora_target lora_targets lora_target_modules lora_modules", "it is a list"),
    Row("lora.dora", "use_dora dora"),
    Row("lora.rslora", "use_rslora rslora"),
    Row(
        "lora",
        "lora use_lora use_peft peft adapter finetuning_type peft_config",
        "--lora, or a section with lora.r",
        convert=True,
    ),
    # --- alignment
    Row("*.beta *.weight *.kl_coef", "beta dpo_beta kl_beta pref_beta"),
    Row("*.kl_coef *.beta", "kl_coef kl_penalty init_kl_coef kl_loss_coef kl_weight kl_coeff kl"),
    Row("*.weight", "orpo_alpha orpo_lambda"),
    Row("*.gamma", "gamma simpo_gamma discount gamma_beta_ratio"),
    Row("*.variant", "loss loss_type pref_loss", instead="every loss is an algorithm of its own: --algorithm NAME"),
    Row("*.label_smoothing", "label_smoothing label_smoothing_factor"),
    Row("*.lam", "gae_lambda lam"),
    Row("*.vf_coef", "vf_coef value_loss_coef vf_coeff"),
    Row("*.value_clip", "cliprange_value value_clip_range"),
    Row("*.clip *.clip_low *.clip_high", "cliprange clip_range clip_ratio eps_clip epsilon clip_eps clip_param"),
    Row("*.clip_high", "epsilon_high clip_ratio_high eps_clip_high"),
    Row("*.clip_low", "epsilon_low clip_ratio_low"),
    Row(
        "rollout.group_size samples", "num_generations group_size num_return_sequences rollout_n n_samples num_samples"
    ),
    Row(
        "rollout.max_new_tokens max_new_tokens",
        "max_completion_length max_new_tokens response_length max_response_length max_tokens completion_length "
        "max_generation_length max_gen_toks num_predict",
    ),
    Row("rollout.temperature temperature", "temperature temp sampling_temperature"),
    Row("rollout.epochs", "num_ppo_epochs ppo_epochs mu"),
    Row("rollout.minibatches", "num_mini_batches num_minibatches mini_batches"),
    Row(
        "rewards",
        "reward reward_funcs reward_functions reward_fn reward_func",
        "a mapping of names to weights",
        convert=True,
    ),
    Row("reward_model", "reward_model_path reward_model_name_or_path rm_path"),
    Row("top_p", "top_p nucleus", instead="training samples from the whole distribution"),
    Row("top_k", "top_k", instead="training samples from the whole distribution"),
    Row("system", "system_prompt system_message"),
    Row("task", "tasks benchmark benchmarks"),
    # --- what is done in another way, or not at all
    Row("", "gradient_checkpointing activation_checkpointing", instead=_MEMORY),
    Row("", "load_in_4bit load_in_8bit quantization quantization_bit bits", instead="weights are not quantized"),
    Row("", "deepspeed fsdp zero_stage ds_config sharding_strategy", instead=_REPLICAS),
    Row("", "num_gpus n_gpus gpus num_processes nproc_per_node devices world_size", instead=_REPLICAS),
    Row("", "report_to wandb wandb_project use_wandb tensorboard logging_dir log_dir", instead=_RECORDS),
    Row("", "resume_from_checkpoint resume resume_from auto_resume auto_resume_from_checkpoints", instead=_RESUME),
    Row("", "overwrite_output_dir overwrite", instead="every run has a folder of its own; choose another --name"),
    Row("", "load_best_model_at_end", instead="the best checkpoint is always kept, as ckpt_best"),
    Row("", "num_workers dataloader_num_workers preprocessing_num_workers", instead="batches need no worker processes"),
    Row("", "push_to_hub hub_model_id", instead="a checkpoint is a Hugging Face folder, ready to be uploaded"),
    Row("", "trust_remote_code", instead="code that comes with a checkpoint is never executed"),
    Row(
        "",
        "flash_attn flash_attention use_flash_attn attn_implementation",
        instead="the kernel is chosen automatically",
    ),
    Row("", "use_vllm vllm", instead="rollouts are sampled by the policy itself"),
)
_ABSENT = {  # section of the first key -> advice where a configuration has no such section
    "optim": _TRAINS,
    "train": _TRAINS,
    "model": _SHAPE,
    "lora": _LORA,
    "rollout": _SAMPLES,
    "*": "it is a setting of other algorithms",
}
_WITHOUT_TRAINING = {"data.train": "data.val"}  # eval reads held-out data only
_BY_TERM = {term: row for row in _ROWS for term in row.terms.split()}


@dataclass(frozen=True)
class Meaning:
    """The meaning of a term of another tool.

    key: the setting; empty if this configuration has none.
    remark: what differs, or what to do instead.
    convert: a value is written in another way, or in another unit.
    """

    key: str = ""
    remark: str = ""
    convert: bool = False


def find_meaning(word: str, known: Sequence[str], in_use: str = "") -> Meaning | None:
    """Return the meaning of a key or option that is not a setting, or None if it is no term of another tool.

    Args:
        word: as it was typed; of a dotted key, the last part counts.
        known: the dotted keys of the configuration.
        in_use: the algorithm, by its name or the path of its file.
    """
    row = _BY_TERM.get(word.lstrip("-").replace("-", "_").lower().rpartition(".")[2])
    if row is None:
        return None
    keys = row.keys.split()
    for found in (_spelled(key, known, PurePath(in_use).stem) for key in keys):
        if found:
            return Meaning(found, row.remark, row.convert)
    section = keys[0].partition(".")[0] if keys else ""
    return Meaning("", row.instead or _ABSENT.get(section) or f"{keys[0]} is a setting of other commands")


def terms() -> Iterable[str]:
    """Return all terms of the table."""
    return _BY_TERM


def _spelled(key: str, known: Sequence[str], in_use: str) -> str:
    """Return the key as this configuration has it (`*.beta` is in the section in use), or an empty string."""
    full = key.replace("*", in_use, 1)
    if "train" not in known:
        full = _WITHOUT_TRAINING.get(full, full)
    return full if full in known else ""
