"""Changes by machine that no test can notice, each with the reason. `tests/mutate.py` does not show them again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Equivalent:
    file: str  # in tinyllm/
    before: str  # the lines that are changed, in one line
    after: str
    reason: str


E = Equivalent

# fmt: off
EQUIVALENT: list[Equivalent] = [
    E("model/config.py", 'return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)',
      'return "null" if value is None else str(value).lower() if True else str(value)', "the other values are names in lower case"),
    E("model/lora.py", "def attach(model: Model, config: LoRAConfig, seed: int = 0, *, token_rows: Sequence[int] = ()) -> Model:",
      "def attach(model: Model, config: LoRAConfig, seed: int = 1, *, token_rows: Sequence[int] = ()) -> Model:",
      "training gives a seed; whoever gives none fills in the branches afterwards, so any seed will do"),
    E("rollout/answers/spelling.py", "if any(map(unicodedata.combining, characters)):", "if True:",
      "saves time: without a mark there is no run to shorten"),
    E("lifecycle/baselines.py", "held_out = np.concatenate([np.asarray(d, dtype=np.int64) for d in documents])",
      "held_out = np.concatenate([np.asarray(d) for d in documents])", "numpy's default, but for Windows before NumPy 2"),
    E("model/hub.py", "return {k: v.detach().contiguous().cpu() for k, v in _own_state(model).items()}",
      "return {k: v.contiguous().cpu() for k, v in _own_state(model).items()}", "the tensors of a state dict are detached already"),
    E("model/tensors.py", 'start, end = header.index(b"{", 1), header.index(b"}") + 1',
      'start, end = header.index(b"{", 2), header.index(b"}") + 1', "the second character of the header is a quotation mark"),
    E("model/kernels.py",
      'elif plain and q.device.type == "cpu" and q.dtype == torch.bfloat16 and 1 < length <= _EXPLICIT_LENGTH:',
      'elif plain and q.device.type == "cpu" and q.dtype == torch.bfloat16 and 1 < length < _EXPLICIT_LENGTH:',
      "the kernels differ by rounding only; the bound is one of speed"),
    E("rollout/answers/__init__.py",
      'if before == "\\u200d" or text[end : end + 2] in ("\'t",) or (after.isdecimal() and text[end - 1].isdecimal()):',
      'if ((before == "\\u200d") or (text[end : end + 2] in ("\'t",))):',
      "all decimal digits are ASCII here (`spelling.words`), and `_free_behind` refuses one behind another"),
    E("train/run.py", "self.plan.segments = segments and tuple((start, end) for start, end in segments)",
      "self.plan.segments = segments", "nobody who reads them, and no file, tells a list from a tuple"),
    E("evals/generation.py", "for i, value in zip(mine, judged(rule, rows), strict=True):",
      "for i, value in zip(mine, judged(rule, rows), strict=False):", "`score` refuses another number of values"),
    E("lifecycle/evaluation.py", "value = float(found.mean())", "value = found.mean()",
      "NumPy's float64 is a float, also in JSON"),
]
