"""What `tinyllm verify` and `tinyllm runs verify` look at, overlooked once each. Bugs in what they check: `support/bugs_of_verify.py`."""

from __future__ import annotations

from mutants.kind import Mutant

RUNS = "diagnostics/test_runs_verify.py"
DAMAGE = f"{RUNS}::test_damage_is_reported_with_its_file_and_nothing_else_is"
NOTHING = "diagnostics/test_verify.py::test_comparison_of_nothing_does_not_pass"
BUGS = "diagnostics/test_verify_checkpoint_bugs.py::test_planted_bug_fails_its_checks"
RESULT, CHECKPOINTS = "diagnostics/checks/result.py", "diagnostics/checks/checkpoints.py"
VERIFY, FILES, RECORD = "diagnostics/runs/verify.py", "diagnostics/runs/files.py", "diagnostics/runs/record.py"


def plant(name: str, plants: str, file: str, old: str, new: str, targets: str, keeps: str) -> Mutant:
    return Mutant(name, "extra", plants, file, old, new, targets, keeps=keeps)


def row(name: str, plants: str, file: str, old: str, new: str, row: str, targets: str = DAMAGE) -> Mutant:
    """Plant a mistake in a row of the table of `runs verify`."""
    return plant(name, plants, file, old, new, targets, f"reliability: runs verify: {row}")


# fmt: off
MUTANTS = [
    # --- tinyllm verify ------------------------------------------------------------------------------------------------------------
    plant("nothing-compared-passes", "a comparison of no values passes", RESULT, " and self.n > 0", "", NOTHING,
          "check: all"),
    plant("effects-ignored", "a comparison passes with nothing under test", RESULT,
          " and all(effect.passed for effect in self.effects)", "", NOTHING, "check: all"),
    plant("state-from-its-own-weights", "`state` restores a checkpoint into the weights that it loaded from it", CHECKPOINTS,
          'weight.fill_(float("nan"))', "weight.detach_()", BUGS, "check: state"),
    # --- tinyllm runs verify -------------------------------------------------------------------------------------------------------
    row("contents-not-read", "files are compared by size only", VERIFY, "found = list(checkpoint.faults(folder))",
        "found = list(checkpoint.faults(folder, contents=False))", "checkpoints"),
    row("weights-only-by-manifest", "a manifest without weights is intact", VERIFY,
        "            found = found or list(weight_faults(folder))\n", "", "checkpoints"),
    row("weights-without-tensors", "weights without tensors are intact", FILES, 'return "" if ends else "it has no tensors"',
        'return ""', "checkpoints"),
    row("completed-without-checkpoint", "a completed run needs no checkpoint", VERIFY,
        "if record.last_step is not None and (newest is None or newest < record.last_step):", "if False:", "checkpoints"),
    row("completed-without-its-last", "any checkpoint of a completed run is enough", VERIFY,
        "(newest is None or newest < record.last_step)", "newest is None", "checkpoints"),
    row("trained-without-checkpoint", "a killed run that trained needs no checkpoint", VERIFY,
        "elif newest is None and (record.step or 0) > 0 and record.owner is None:", "elif False:", "checkpoints"),
    row("session-not-asked", "a run without sessions completed after step 0", RECORD,
        'of_type(session, dict, {}).get("to_step"), int, self.steps or 0)', 'of_type(session, dict, {}).get("to_step"), int, 0)',
        "checkpoints"),
    row("tokenizer-of-another-run", "a checkpoint may have any tokenizer", VERIFY, "elif recorded and found != recorded:",
        "elif False:", "tokenizer"),
    row("base-not-compared", "an adapter may stand on any base", VERIFY,
        "if recorded and recorded != now and (weights", "if False and (weights", "adapters",
        f"{RUNS}::test_retrained_parent_is_a_problem_and_moved_parent_a_note"),
    row("parent-not-compared", "a run may have any parent", VERIFY,
        "if link.status == CHANGED and not record.is_fast_dev_run:", "if False:", "parent, reward model"),
    row("shards-not-read", "shards are compared by size only", VERIFY, "verify=True", "verify=False", "shards"),
    row("other-shards", "a run may have been trained on other shards", VERIFY,
        'fingerprint != source["fingerprint"]:', "not fingerprint:", "shards"),
    row("config-not-compared", "config.yaml may be edited", VERIFY, "text_sha256(folder / CONFIG) != recorded", "not recorded",
        "`config.yaml`, `run.json`"),
    row("unreadable-record", "a damaged run.json is no problem", VERIFY, "for fault in record.faults:", "for fault in ():",
        "`config.yaml`, `run.json`"),
    row("broken-lines", "a line of metrics that is not JSON is no problem", FILES, "if finished or number < len(lines):",
        "if False:", "`metrics.jsonl`"),
    row("steps-in-any-order", "steps of metrics may repeat", FILES, "if step <= last.get(split, -1) and", "if False and",
        "`metrics.jsonl`"),
    row("metrics-end-early", "metrics of a completed run may end anywhere", FILES,
        'if until is not None and last.get("train", -1) < until:', "if False:", "`metrics.jsonl`"),
    row("link-to-nothing", "ckpt_latest may point to nothing", VERIFY, "if folder / target not in checkpoints_in(folder) and",
        "if False and", "`ckpt_latest`, `ckpt_best`"),
    row("link-missing", "a link may be missing", VERIFY, "elif checkpoints_in(folder) and record.owner is None:", "elif False:",
        "`ckpt_latest`, `ckpt_best`"),
    row("nothing-verified", "verifying nothing is success", VERIFY, "if not (names or verifier.runs):", "if False:",
        "RUN", f"{RUNS}::test_verifying_nothing_is_a_problem"),
    row("nothing-counted", "files are not counted", VERIFY, "self.files += sum(", "sum(", "RUN",
        f"{RUNS}::test_intact_runs_have_no_problems_and_every_byte_is_read"),
]
