"""Mistakes in what keeps a run alive: checkpoints, resuming, retention, ranks. Each would pass unnoticed until the day it is needed."""

from __future__ import annotations

from mutants.kind import Mutant

M = Mutant
RESUME, CRASH, SURVIVES = "train/test_resume.py", "train/test_crash_sweep.py", "train/test_checkpointing.py"
RETENTION, LOCK, BATCHES = "train/test_retention.py", "train/test_lock.py", "data/test_batches.py"

# fmt: off
MUTANTS = [
    M("rollout-forgotten", "extra", "an unfinished rollout is not saved: a resumed run writes another", "rollout/source.py",
      "        if step % self.config.steps == 0 or self._samples is None:\n            return {}", "        return {}", RESUME),
    M("rollout-figures-forgotten", "extra", "a resumed rollout has lost its figures", "rollout/source.py",
      "return _to_file(self._samples) | metrics", "return _to_file(self._samples)", RESUME),
    M("dropout-unseeded", "extra", "dropout draws from wherever the generator stands", "train/engine.py",
      "            torch.manual_seed(_mixed_seed(self.seed, self.updates, dist.rank(), number))\n", "", RESUME),
    M("written-in-place", "extra", "a checkpoint is written under its final name", "train/checkpoint.py",
      'draft = folder / dist.broadcast_text(f"{_UNFINISHED}{step:08d}-{uuid.uuid4().hex[:8]}")', "draft = target", CRASH),
    M("removed-in-place", "extra", "a removal that is interrupted leaves something that looks whole", "train/checkpoint.py",
      "        os.replace(path, gone)\n    except OSError:", "        gone = path\n    except OSError:", CRASH),
    M("links-forgotten", "extra", "pruning removes the best checkpoint", "train/checkpoint.py",
      "if path.resolve() not in linked and not milestone:", "if not milestone:", RETENTION),
    M("milestones-forgotten", "extra", "pruning removes milestones", "train/checkpoint.py",
      "if path.resolve() not in linked and not milestone:", "if path.resolve() not in linked:", RETENTION),
    M("damaged-stays", "extra", "a damaged checkpoint keeps its name, and its place among the newest", "train/checkpointing.py",
      'say(f"renamed to {checkpoint.set_aside(path)}")', "pass",
      f"{SURVIVES}::test_damaged_best_and_newest_checkpoints_are_renamed"),
    M("broken-weights-saved", "extra", "weights that are not finite are saved", "train/checkpointing.py",
      "            self._refuse_broken_weights()\n", "", f"{SURVIVES}::test_non_finite_weights_are_never_saved"),
    M("no-room-asked", "extra", "the disk is not asked before the first step", "train/trainer.py",
      "            self.manager.check_disk_space()\n", "", f"{SURVIVES}::test_too_little_disk_space_is_refused_before_the_first_step"),
    M("no-rehearsal", "extra", "memory is found too small in the middle of the run", "train/trainer.py",
      "            self.engine.probe_memory(batch)\n", "", f"{SURVIVES}::test_too_little_memory_is_found_before_the_first_step"),
    M("changed-data-unnoticed", "extra", "a run goes on with other data", "train/run.py",
      "if not then or now == then:", "if True:", f"{SURVIVES}::test_changed_data_are_refused_unless_allowed"),
    M("lock-of-files", "extra", "a lock that is a file and nothing more", "train/lock.py",
      "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass", LOCK),
    M("stop-forgotten", "extra", "a signal ends the run without a checkpoint", "train/trainer.py",
      "if last or stopping or step %", "if last or step %", RESUME),
    M("packed-text-leaks", "extra", "packed documents are numbered alike and see each other", "data/datasets/packing.py",
      "numbers = [np.repeat(np.arange(1, len(row) + 1), self.sizes[row]) for row in rows]",
      "numbers = [np.repeat(np.ones(len(row), dtype=int), self.sizes[row]) for row in rows]", f"{BATCHES} stages/test_pretrain.py"),
]
