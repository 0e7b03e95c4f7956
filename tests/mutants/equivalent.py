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
    E("model/config.py", "return str(value).lower() if isinstance(value, bool) else value",
      "return str(value).lower() if True else value", "the other values are names in lower case"),
    E("model/lora.py", "def attach(model: Model, config: LoRAConfig, seed: int = 0) -> Model:",
      "def attach(model: Model, config: LoRAConfig, seed: int = 1) -> Model:",
      "training gives a seed; whoever gives none fills in the branches afterwards, so any seed will do"),
    E("rollout/answers/spelling.py", "if any(map(unicodedata.combining, characters)):", "if True:",
      "saves time: without a mark there is no run to shorten"),
    E("lifecycle/baselines.py", "held_out = np.concatenate([np.asarray(d, dtype=np.int64) for d in documents])",
      "held_out = np.concatenate([np.asarray(d) for d in documents])", "numpy's default, but for Windows before NumPy 2"),
]
