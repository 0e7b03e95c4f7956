"""Estimate of the peak memory of a training run, by arithmetic: for --dry-run, and before anything large is allocated. No torch.

The terms follow the code: `transformer.Block` and `kernels` decide what is kept for the backward pass, `heads` how many logits exist at
once, `engine` that gradients are summed in float32. Two moments can be the peak of a step: the beginning of the backward pass, when all
activations exist, and its end, when all gradients do; online, sampling is a third. `benchmarks/memory.py` compares with measured peaks.
Left out: the buffers of several ranks, the workspace of compiled code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tinyllm.model import sampling_memory
from tinyllm.model.config import LoRAConfig, ModelConfig

PROCESS = 380_000_000  # bytes of Python, torch and the code and tables of its libraries, tokenizer and records
COMFORTABLE = 0.6  # share of the memory there is, above which `activation_checkpointing: auto` is on
_HEAD_ROWS, _HEAD_LOGITS = 256, 1 << 20  # in a block of logits on a CPU; see `model.heads`
_KEPT_BYTES = 1 << 26  # of derivatives by logits that are kept, at most; those of pretraining and fine-tuning are not
# tokens up to which attention in bfloat16 keeps its probabilities, see `model.kernels`, and the last one, which may be left out
_EXPLICIT_LENGTH = 512 + 1
_MOMENTS = 2  # of AdamW
_HOLES = 0.5  # of a block: lost between tensors by the allocator, as measured
_MOST_HOLES = 256_000_000  # bytes: large tensors leave no holes


@dataclass(frozen=True)
class Training:
    """What the memory of a run depends on.

    Args:
        rows, length: of the largest micro-batch.
        weights: bytes of all weights that a forward pass of the loss uses, trained or frozen.
        trained: the number of weights that have a gradient and moments.
        bf16: forward passes compute in bfloat16, otherwise in float32.
        head: `trained`, `frozen`, or `none` for a reward model, which has no logits.
        accumulates: several micro-batches make a step.
        decoders: in a forward pass; 2 with a critic.
        frozen: bytes of other models: a reference, a reward model.
        sampled, context: answers of a rollout and tokens in each with its prompt, online.
    """

    shape: ModelConfig
    rows: int
    length: int
    weights: int
    trained: int
    bf16: bool
    head: str = "trained"
    checkpointing: bool = False
    accumulates: bool = True
    decoders: int = 1
    frozen: int = 0
    sampled: int = 0
    context: int = 0


def needs(run: Training) -> dict[str, int]:
    """Return what the memory is needed for at its peak, in bytes. The sum is the peak of the process."""
    gradients = 4 * run.trained
    head = 4 * run.shape.vocab_size * run.shape.hidden_size if run.head == "trained" else 0
    block = _block_bytes(run) + _working_bytes(run)
    held = {
        "process": PROCESS + min(round(_HOLES * block), _MOST_HOLES),
        "weights": run.weights + run.frozen,
        "optimizer state": 4 * _MOMENTS * run.trained,
    }
    begin = {
        "gradients": gradients + head if run.accumulates else head,
        "activations": kept(run) + (block if run.checkpointing else 0),
        "logits": _logits(run),
    }
    # the gradients of embedding and head are summed before they are added to those of earlier micro-batches
    end = {"gradients": gradients + head * (2 if run.accumulates else 1), "activations": block, "logits": 0}
    sampling = {"gradients": 0, "activations": _sampling_bytes(run), "logits": _sampling_logits(run)}
    return held | max((begin, end, sampling), key=lambda parts: sum(parts.values()))


def peak(run: Training) -> int:
    """Return the estimated peak of the process, in bytes."""
    return sum(needs(run).values())


def fixed(run: Training) -> int:
    """Return the bytes that no setting of the loop can lower: weights, gradients and optimizer state."""
    return run.weights + run.frozen + 4 * (1 + _MOMENTS) * run.trained


def micro_batch(run: Training) -> int:
    """Return the bytes that a micro-batch adds, activations and logits."""
    parts = needs(run)
    return parts["activations"] + parts["logits"]


def wants_checkpointing(run: Training, available: int) -> bool:
    """Return whether `activation_checkpointing: auto` is on: without it, the peak would not fit comfortably into the memory there is."""
    return peak(replace(run, checkpointing=False)) > COMFORTABLE * available


def adapter_parameters(shape: ModelConfig, lora: LoRAConfig) -> int:
    """Return the number of weights of an adapter, by arithmetic. Patterns that a name alone does not decide count in full."""
    q, kv = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    width, inner, matrix = shape.hidden_size, shape.intermediate_size, shape.vocab_size * shape.hidden_size
    sizes = {
        "q_proj": (width, q),
        "k_proj": (width, kv),
        "v_proj": (width, kv),
        "o_proj": (q, width),
        "gate_proj": (width, inner),
        "up_proj": (width, inner),
        "down_proj": (inner, width),
    }
    every = isinstance(lora.targets, str) or "all-linear" in lora.targets
    named = {target.rpartition(".")[2] for target in lora.targets} if not every else set(sizes)
    per_block = sum(lora.rank_pattern.get(name, lora.r) * sum(sizes[name]) for name in named & sizes.keys())
    magnitudes = sum(sizes[name][1] for name in named & sizes.keys()) if lora.dora else 0
    blocks = len(lora.layers) or shape.num_hidden_layers
    ends = sum(lora.r * (shape.vocab_size + width) for name in ("embed_tokens", "lm_head") if name in named)
    whole = sum(matrix for name in ("embed_tokens", "lm_head") if name in lora.modules_to_save)
    rows = sum(len(ids) * width for ids in lora.rows().values())
    return blocks * (per_block + magnitudes) + ends + whole + rows


def _width(run: Training) -> int:
    """Return the bytes of a number that is computed."""
    return 2 if run.bf16 else 4


def _block_bytes(run: Training) -> int:
    """Return the bytes that a block keeps for the backward pass, of one micro-batch."""
    shape, c = run.shape, _width(run)
    q, kv = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    residual = 2 * 4 * shape.hidden_size  # the input of both norms, in float32
    attention = c * (
        shape.hidden_size + 2 * q + 2 * kv + 2 * shape.head_dim
    )  # normalized input, q, k, v, result, rotary tables
    attention += c * (q + kv) if shape.qk_norm else 0
    if run.bf16 and run.length <= _EXPLICIT_LENGTH:  # probabilities, and keys and values repeated for every head
        attention += c * (shape.num_attention_heads * run.length + 2 * q)
    mlp = c * (shape.hidden_size + 4 * shape.intermediate_size)
    return run.rows * run.length * (residual + attention + mlp) * run.decoders


def _working_bytes(run: Training) -> int:
    """Return the bytes that exist only while a block's backward pass is computed."""
    shape, c = run.shape, _width(run)
    matrices = run.trained // shape.num_hidden_layers if run.head == "trained" else 0
    return run.rows * run.length * (3 * c * shape.intermediate_size + 12 * shape.hidden_size) + c * matrices


def kept(run: Training) -> int:
    """Return the bytes that the model keeps for the backward pass, without the logits."""
    tokens, layers = run.rows * run.length, run.shape.num_hidden_layers
    final = tokens * 4 * run.shape.hidden_size * run.decoders  # the input of the last norm
    if run.checkpointing:
        return layers * final + final
    casts = 2 * run.trained if run.bf16 else 0  # of trained weights to bfloat16
    return layers * _block_bytes(run) + final + casts


def _logits(run: Training) -> int:
    """Return the bytes of a block of logits and of the head's cast, and of its gradient before it is summed."""
    vocabulary, width = run.shape.vocab_size, run.shape.hidden_size
    if run.head == "none":
        return 0
    rows = min(max(_HEAD_ROWS, _HEAD_LOGITS // vocabulary), run.rows * run.length)
    block = (
        rows * vocabulary * (4 + 2 * _width(run)) + 3 * 4 * run.rows * run.length * width
    )  # and states with their gradients
    casts = 2 * 2 * vocabulary * width if run.bf16 and run.head == "trained" else 0
    kept = min(_KEPT_BYTES, run.rows * run.length * vocabulary * _width(run))
    return block + casts + kept


def _sampling_bytes(run: Training) -> int:
    """Return the bytes of the keys and values of all rows that are decoded together, and of the weights that are copied for them."""
    if not run.sampled:
        return 0
    weights = 4 * run.shape.parameters()
    cache = _decoded_together(run) * run.context * sampling_memory.bytes_of_token(run.shape, _width(run))
    copied = weights // 2 if run.bf16 else 0  # to bfloat16
    return cache + (weights if weights <= sampling_memory.PACKED_BYTES else copied)


def _sampling_logits(run: Training) -> int:
    """Return the bytes of the logits of one decoding step, in float32, with their softmax and the sampled distribution."""
    return 4 * 4 * _decoded_together(run) * run.shape.vocab_size if run.sampled else 0


def _decoded_together(run: Training) -> int:
    return sampling_memory.together(run.shape, run.sampled, run.context, "cpu", _width(run))
