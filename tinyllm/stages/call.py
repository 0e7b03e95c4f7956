"""How a stage was called. Light to import: a stage that needs no torch starts without it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyllm import dist
from tinyllm.train.run import Run


@dataclass(frozen=True)
class Call:
    """How a stage was called, beside its configuration."""

    yaml: str  # the resolved configuration
    fast: bool = False
    resume: bool = True
    allow_data_change: bool = False

    def open(self, folder: Path, facts: dict[str, Any]) -> Run:
        """The run directory, this process's own from now on."""
        dist.agree(facts)
        return Run(folder, self.yaml, facts, resume=self.resume, allow_data_change=self.allow_data_change)
