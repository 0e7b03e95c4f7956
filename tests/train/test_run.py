"""The run directory's log: what is dropped when a run goes back to a checkpoint."""

from __future__ import annotations

from pathlib import Path

from tinyllm.train.run import Run


def test_a_half_written_line_is_dropped_with_the_steps_that_are_done_again(tmp_path: Path) -> None:
    run = Run(tmp_path / "default", "name: default\n", {})
    for step in (1, 2, 3):
        run.log({"step": step, "loss": 0.5})
    with run.metrics.open("a") as file:
        file.write('{"step": 2, "lo')  # killed here
    run.forget_after(2)
    assert run.metrics.read_text().splitlines() == ['{"step": 1, "loss": 0.5}', '{"step": 2, "loss": 0.5}']
    run.finish("completed")
