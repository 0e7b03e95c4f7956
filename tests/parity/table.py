"""`python -m tests.parity.table`: the comparison with TRL as a table. Exit code 1 if any difference exceeds 1e-5.

A row says what was compared: the tokens of the masks, the norm of the gradient, the share that was clipped; and how far the nearest of the
planted mistakes (`bugs`) was from the oracle.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

if __name__ == "__main__":  # as a script, Python finds what lies beside this file only
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
warnings.simplefilter("ignore")

from tests.parity import bugs, cases, tiny  # noqa: E402

TOLERANCE = 1e-5


def main() -> int:
    torch.set_num_threads(1)
    line = "{:<32} {:<17} {:>7} {:>9} {:>8} {:>13} {:>13} {:>9} {:>9}  {:<32}".format
    head = (
        "tokens",
        "gradient",
        "clipped",
        "our loss",
        "its loss",
        "loss",
        "gradient",
        "nearest of the planted mistakes",
    )
    print(line("algorithm / variant", "oracle", *head))
    worst, blind = 0.0, 0
    for name in cases.CASES:
        case = cases.of(name)
        ours, oracle = case.ours(tiny.NONE), case.oracle()
        found = tiny.difference(ours, oracle)
        worst = max(worst, *found)
        planted = bugs.bugs(name, case.settings)
        apart = {what: tiny.difference(case.ours(bug), oracle).gradient for what, bug in planted.items()}
        nearest = min(apart, key=lambda what: apart[what])
        blind += apart[nearest] < 100 * TOLERANCE or not ours.tokens or not ours.norm or ours.clipped == 0
        clipped = "" if ours.clipped is None else f"{ours.clipped:.2f}"
        numbers = f"{ours.loss:.8f}", f"{oracle.loss:.8f}", f"{found.loss:.1e}", f"{found.gradient:.1e}"
        seen = f"{apart[nearest]:.1e} {nearest}, of {len(apart)}"
        print(line(name, case.source, ours.tokens, f"{ours.norm:.3f}", clipped, *numbers, seen), flush=True)
    print(
        f"\nworst {worst:.1e}, allowed {TOLERANCE:.0e}; {blind} comparisons that saw nothing or miss a planted mistake"
    )
    return int(worst > TOLERANCE or blind > 0)


if __name__ == "__main__":
    sys.exit(main())
