"""`python tests/parity/table.py`: the comparison with TRL as a table. Exit code 1 if any difference exceeds 1e-5."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

if __name__ == "__main__":  # as a script, Python finds what lies beside this file only
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
warnings.simplefilter("ignore")

from tests.parity import cases, tiny  # noqa: E402

TOLERANCE = 1e-5


def main() -> int:
    torch.set_num_threads(1)
    line = "{:<32} {:<17} {:>13} {:>13} {:>9} {:>9}".format
    print(line("algorithm / variant", "oracle", "our loss", "its loss", "loss", "gradient"))
    worst = 0.0
    for name, case in cases.CASES.items():
        ours, oracle, source = case()
        found = tiny.difference(ours, oracle)
        worst = max(worst, *found)
        numbers = f"{ours.loss:.8f}", f"{oracle.loss:.8f}", f"{found.loss:.1e}", f"{found.gradient:.1e}"
        print(line(name, source, *numbers), flush=True)
    print(f"\nworst {worst:.1e}, allowed {TOLERANCE:.0e}")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
