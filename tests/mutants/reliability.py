"""Promises of docs/reliability.md about runs and their files, each broken once. `outside.py` has the others."""

from __future__ import annotations

from mutants.kind import Mutant

CRASH, FLUSHING, RETENTION = "train/test_crash_sweep.py", "train/test_flushing.py", "train/test_retention.py"
DECISIONS, TRAINER, CHECKPOINT = "train/test_run_decisions.py", "train/test_trainer.py", "train/checkpoint.py"
ALIGN_ONLINE = "stages/test_align_online.py"
KILLED = "reliability: a killed run resumes at its newest checkpoint, to the same result"
FLUSHED = "reliability: everything is flushed before the rename"
RUN, CHANGES, GOING_ON = "train/test_run.py", "train/test_changes.py", "train/test_going_on.py"
CHECKPOINTING, RESUMING = "train/test_checkpointing.py", "train/resuming.py"
LIST = "diagnostics/test_runs_list.py"
KILLED_WRITES = "io/test_killed_writes.py"
ORIGIN, DAMAGED, MISMATCHED = (
    "stages/test_origin.py",
    "train/test_damaged_checkpoints.py",
    "train/test_mismatched_checkpoints.py",
)
RENAMED = "reliability: records, reports and run.json are each written in one rename"
SPIKES = "reliability: a gradient norm of ten times the median is a warning"
KEPT = "reliability: nothing is removed unless the newest has all its files"


def plant(name: str, plants: str, file: str, old: str, new: str, targets: str, keeps: str, count: int = 1) -> Mutant:
    return Mutant(
        name,
        "extra",
        plants,
        file,
        old,
        new,
        targets,
        count,
        keeps if keeps.startswith("reliability: ") else f"reliability: {keeps}",
    )


# fmt: off
MUTANTS = [
    # --- checkpoints ---------------------------------------------------------------------------------------------------------------
    plant("resume-starts-over", "resuming finds nothing, and the run starts over", "train/trainer.py",
      "state = self.manager.resume()", "state = None", CRASH, KILLED),
    plant("manifest-after-the-rename", "a checkpoint is published before its manifest", CHECKPOINT,
      """            _write_manifest(draft)
            if target.exists():
                remove(target)
            os.replace(draft, target)
""", """            if target.exists():
                remove(target)
            os.replace(draft, target)
            _write_manifest(target)
""", CRASH, "at every moment each step-* directory is complete"),
    plant("pruned-before-publishing", "the earlier checkpoints are removed before the new one is published", CHECKPOINT,
      "            os.replace(draft, target)\n", """            for old in steps(folder):
                remove(old)
            os.replace(draft, target)
""", CRASH, "earlier checkpoints stay until the next is published"),
    plant("earlier-out-of-the-way", "the earlier checkpoints have other names while the new one is published", CHECKPOINT,
      "            _write_manifest(draft)\n", """            away = [(old, old.with_name(f"away-{old.name}")) for old in steps(folder)]
            for old, new in away:
                os.replace(old, new)
            _write_manifest(draft)
            for old, new in away:
                os.replace(new, old)
""", CRASH, "at every moment each step-* directory is complete"),
    plant("newest-removed-first", "pruning keeps the oldest", CHECKPOINT,
      "for path in found[: -max(1, keep)]:", "for path in found[max(1, keep) :]:", CRASH, "kept are the newest and the best"),
    plant("metrics-repeated", "a resumed run logs steps twice", "train/checkpointing.py",
      "        self.run.drop_metrics_after(step)\n", "", CRASH, KILLED),
    plant("draft-left-after-an-error", "an incomplete checkpoint stays on a full disk", CHECKPOINT,
      "        shutil.rmtree(draft, ignore_errors=True)\n        raise UserError(", "        raise UserError(", CRASH,
      "on a full disk the incomplete checkpoint is removed"),
    plant("best-link-after-a-kill", "killed before its link, the best checkpoint is pruned", "train/checkpointing.py",
      "if best.is_dir():", "if False:", f"{TRAINER}::test_a_kill_before_the_link_does_not_lose_the_best_checkpoint", KILLED),
    plant("data-unflushed", "the files of a checkpoint are not flushed", CHECKPOINT,
      "    for path in (*files, *(p for p in folder.rglob(\"*\") if p.is_dir())):\n        _sync(path)\n", "", FLUSHING, FLUSHED),
    plant("folders-unflushed", "the folders in a checkpoint are not flushed", CHECKPOINT,
      "(*files, *(p for p in folder.rglob(\"*\") if p.is_dir()))", "files", FLUSHING, FLUSHED),
    plant("manifest-unflushed", "the manifest is not flushed", CHECKPOINT,
      "    _sync(path)\n    _sync(folder)\n", "    _sync(folder)\n", FLUSHING, FLUSHED),
    plant("checkpoint-unflushed", "the names in a checkpoint are not flushed", CHECKPOINT,
      "    _sync(path)\n    _sync(folder)\n", "    _sync(path)\n", FLUSHING, FLUSHED),
    plant("rename-unflushed", "the rename is not flushed", CHECKPOINT,
      "            os.replace(draft, target)\n            _sync(folder)\n", "            os.replace(draft, target)\n", FLUSHING, FLUSHED),
    plant("flushed-too-late", "the rename comes before the flush", CHECKPOINT,
      "            _write_manifest(draft)\n", "            os.replace(draft, target)\n            os.replace(target, draft)\n"
      "            _write_manifest(draft)\n", FLUSHING, FLUSHED),
    plant("fsync-does-nothing", "nothing is flushed at all", CHECKPOINT, "        os.fsync(handle)\n", "        pass\n", FLUSHING, FLUSHED),
    plant("removed-unseen", "earlier checkpoints are removed although the newest is incomplete", CHECKPOINT,
      "if found and _has_its_files(found[-1]):", "if found:", RETENTION, KEPT),
    plant("one-kept", "one checkpoint is kept, whatever train.keep says", CHECKPOINT,
      "found[: -max(1, keep)]", "found[:-1]", RETENTION, "kept are the train.keep newest"),
    plant("removed-after-the-oldest", "removal looks at the oldest checkpoint", CHECKPOINT,
      "_has_its_files(found[-1])", "_has_its_files(found[0])", RETENTION, KEPT),
    # --- what the loop decides -----------------------------------------------------------------------------------------------------
    plant("spike-unnoticed", "a gradient of ten times the median is no warning", "train/trainer.py",
      "_NORMS_KEPT, _SPIKE = 50, 10.0", "_NORMS_KEPT, _SPIKE = 50, 11.0", DECISIONS, SPIKES),
    plant("spike-everywhere", "a gradient of nine times the median is a warning", "train/trainer.py",
      "_NORMS_KEPT, _SPIKE = 50, 10.0", "_NORMS_KEPT, _SPIKE = 50, 9.0", DECISIONS, SPIKES),
    plant("compiled-forgotten", "a resumed run decides again whether to compile", "train/trainer.py",
      'state.get("compiled")', "None", DECISIONS, "compiled is decided once and recorded"),
    plant("compiled-decided-after-the-stop", "a run stopped in the step that decides is compiled one step later", "train/trainer.py",
      "and engine.updates >= _MEASURED_STEPS and not last", "and engine.updates >= _MEASURED_STEPS and not (last or stopping)",
      f"{DECISIONS}::test_a_run_stopped_in_the_step_that_decides_is_compiled_from_the_same_step",
      "a resumed run is equal bit for bit, compiled"),
    plant("resumed-in-fp32", "a run in bf16 is resumed in fp32", "train/engine.py",
      "        self.updates = updates\n", '        self.updates, self.precision = updates, "fp32"\n',
      "train/test_resume.py", "a resumed run is equal bit for bit, in bf16"),
    plant("compiled-unrecorded", "run.json does not tell from where on the model is compiled", "train/trainer.py",
      "        self.run.note(compiled_from_step=self.engine.updates + 1)\n", "", DECISIONS, "compiled is decided once and recorded"),
    plant("critic-from-noise", "the critic starts from random weights", "stages/align_online.py",
      "return hub.scorer_from(policy, seed)", "return SequenceScorer(policy.config)",
      f"{ALIGN_ONLINE}::test_without_a_reward_model_the_critic_starts_from_the_decoder_of_the_policy",
      "algorithms: the critic starts from the decoder of the policy"),
    # --- the run directory ---------------------------------------------------------------------------------------------------------
    plant("another-parent", "a run goes on from another parent", RESUMING,
      'for role in ("parent", "reward_model"):', 'for role in ("reward_model",):',
      f"{RUN}::test_a_run_with_another_parent_or_reward_model_is_refused", "another parent is refused"),
    plant("another-reward-model", "a run goes on with another reward model", RESUMING,
      'for role in ("parent", "reward_model"):', 'for role in ("parent",):',
      f"{RUN}::test_a_run_with_another_parent_or_reward_model_is_refused", "another reward model is refused"),
    plant("comments-overwritten", "config.yaml loses the comments of its user", "train/run.py",
      "if not (checkpoint.steps(self.checkpoints) and resuming.settings_in(path)):", "if True:",
      f"{RUN}::test_comments_and_layout_of_the_configuration_are_no_difference", "comments and layout of config.yaml are no difference"),
    plant("aside-means-removed", "--no-resume removes the old run", "train/run.py",
      "        os.replace(self.folder, _free_name(self.folder))\n",
      "        import shutil\n\n        shutil.rmtree(self.folder)\n", f"{RUN}::test_moving_a_run_aside_overwrites_nothing",
      "--no-resume moves the old run aside, nothing is overwritten"),
    plant("removed-unlocked", "a fast-dev-run is removed before the directory is locked", "train/run.py",
      "        lock.acquire(self.folder, **self.call.lock_fix())\n        saved", "        saved",
      f"{RUN}::test_of_two_runs_started_together_one_gets_the_directory", "the lock is held while an earlier fast-dev-run is removed"),
    plant("owner-unnamed", "the refusal of a locked directory names no one", "train/lock.py",
      'who = f": pid', 'who = "" and f": pid', "train/test_lock.py::test_a_second_process_is_refused_and_the_error_names_the_owner",
      "a second process is told the owner"),
    plant("lock-outlives-its-owner", "a forked child keeps the lock of a killed parent", "train/lock.py",
      "    os.register_at_fork(after_in_child=_close_in_child)\n", "",
      "train/test_lock.py::test_a_forked_child_does_not_keep_the_lock_of_a_killed_parent",
      "the lock ends with its owner"),
    plant("lock-needs-writing", "a live run of another user seems dead", "train/lock.py",
      '        return path.open("r", encoding="utf-8")\n', '        raise FileNotFoundError\n',
      "train/test_lock.py::test_a_user_who_may_only_read_sees_that_a_run_is_alive", "to test the lock, reading suffices"),
    plant("memory-probe-leaves-gradients", "the rehearsal of a step changes the first one", "train/engine.py",
      "        self._backward(batch)\n        self.zero_grad()\n        del reserved",
      "        self._backward(batch)\n        del reserved",
      f"{CHECKPOINTING}::test_probing_memory_changes_nothing", "the result of the rehearsal is discarded"),
    plant("shortest-measured", "the memory of the shortest records is measured", "data/datasets/batches.py",
      "heapq.nlargest(", "heapq.nsmallest(", f"{CHECKPOINTING}::test_the_longest_records_are_measured",
      "the memory suffices for the longest records"),
    plant("live-needs-writing", "a live run on a read-only mount is unknown", "train/lock.py",
      '        return path.open("r", encoding="utf-8")\n', "        raise\n",
      f"{LIST}::test_a_live_run_is_running_on_a_read_only_mount "
      f"{LIST}::test_a_live_run_is_running_to_other_users_and_unknown_where_its_lock_may_not_be_read",
      "a live run is running on a read-only mount and to other users"),
    plant("unread-lock-is-free", "a run whose lock may not be read is interrupted", "train/lock.py",
      "    except OSError:\n        return None\n\n\ndef owner(", "    except OSError:\n        return False\n\n\ndef owner(",
      f"{LIST}::test_a_live_run_is_running_to_other_users_and_unknown_where_its_lock_may_not_be_read",
      "a run whose lock may not be read is unknown"),
    plant("unwritable-seen-late", "an unwritable directory is no error of the user", "train/lock.py",
      "        except OSError as error:\n            reason = str(error.strerror)\n",
      "        except BlockingIOError as error:\n            reason = str(error.strerror)\n",
      "train/test_lock.py::test_a_folder_that_is_not_writable_is_refused", "checked before training: the directory is writable"),
    # --- files that are replaced ---------------------------------------------------------------------------------------------------
    plant("text-in-place", "files are written in place", "io/files.py",
      'draft = path.with_name(f"{path.name}.new")', "draft = path", KILLED_WRITES, RENAMED),
    plant("record-in-place", "the record of a stage is written in place", "lifecycle/records.py",
      'write_text_atomically(path, strict_json.dumps(record, indent=1) + "\\n")', 'path.write_text(strict_json.dumps(record, indent=1))',
      KILLED_WRITES, RENAMED),
    plant("scorecard-in-place", "the scorecard is written in place", "lifecycle/run.py",
      'write_text_atomically(files["json"], strict', 'files["json"].write_text(strict', KILLED_WRITES, RENAMED),
    plant("report-in-place", "the report is written in place", "lifecycle/run.py",
      'write_text_atomically(files["html"], report', 'files["html"].write_text(report', KILLED_WRITES, RENAMED),
    plant("facts-in-place", "run.json is written in place", "train/run.py",
      'write_text_atomically(self.folder / "run.json", text + "\\n")', '(self.folder / "run.json").write_text(text)',
      KILLED_WRITES, RENAMED),
    plant("metrics-in-place", "metrics.jsonl is shortened in place", "train/run.py",
      "write_text_atomically(self.metrics, ", "self.metrics.write_text(", KILLED_WRITES, RENAMED),
    plant("lifecycle-unlocked", "two lifecycles write to one folder", "lifecycle/pipeline.py",
      "        lock.acquire(self.folder)\n", "        self.folder.mkdir(parents=True, exist_ok=True)\n",
      "lifecycle/test_pipeline.py::test_a_lifecycle_belongs_to_one_process", "a lifecycle is locked like a run"),
    # --- checkpoints that are used -------------------------------------------------------------------------------------------------
    plant("contents-unread", "resuming looks at names and sizes only", CHECKPOINT,
      "    for path, what in faults(folder):\n", "    for path, what in faults(folder, contents=False):\n",
      f"{TRAINER}::test_a_damaged_checkpoint_is_skipped", "resuming reads every byte"),
    plant("all-damaged-start-over", "a run of damaged checkpoints starts over", "train/checkpointing.py",
      "if dist.is_main() and damaged and newest is None:", "if False:",
      f"{TRAINER}::test_a_run_with_only_damaged_checkpoints_does_not_start_over", "if all are damaged, the run stops with exit code 3"),
    plant("one-too-many-kept", "one checkpoint more than train.keep stays", CHECKPOINT,
      "found[: -max(1, keep)]", "found[: -max(1, keep) - 1]", "train/test_checkpoint.py", "kept are the train.keep newest"),
    plant("manifest-spaces", "a changed byte between the words of a manifest is no change", CHECKPOINT,
      "same = path.read_text(encoding=\"utf-8\") == _manifest_text(found)", "same = bool(path.read_text(encoding=\"utf-8\"))", DAMAGED,
      "one flipped bit in any byte of manifest.json is detected"),
    plant("extra-files-unseen", "a file that no manifest lists is accepted", CHECKPOINT,
      "for name in sorted(present ^ set(entries)):", "for name in sorted(set(entries) - present):", "train/test_checkpoint.py",
      "a checkpoint is what its manifest lists"),
    plant("kind-by-path", "a copy is judged by its path", "stages/origin.py",
      "    if not path.is_file():\n        return Origin", "    if True:\n        return Origin", ORIGIN, "a copy keeps its kind"),
    plant("reward-model-answers", "chat and eval accept a reward model", "stages/common.py",
      'what = "this is a reward model: it scores', 'return; what = "this is a reward model: it scores',
      ORIGIN, "chat and eval refuse a reward model"),
    plant("nonfinite-gradient", "a gradient that is not finite updates the weights", "train/engine.py",
      "if not (torch.isfinite(torch.tensor([norm, loss.value])).all()):", "if False:",
      f"train/test_engine.py::test_a_non_finite_loss_changes_nothing "
      f"{CHECKPOINTING}::test_a_non_finite_gradient_names_the_records_of_its_step",
      "a loss that is not finite stops the run before the update"),
    plant("chosen-by-nan", "a NaN selects the best checkpoint", "train/trainer.py",
      "            nonfinite.check_selecting(found, name, self.engine.updates, self.engine.precision)\n", "            pass\n",
      f"{TRAINER}::test_a_selecting_figure_that_is_not_finite_ends_the_run", "the best checkpoint is never chosen by NaN"),
    plant("nothing-selects", "a figure of nothing selects the best checkpoint", "train/nonfinite.py",
      "if isinstance(figure, Mean) and not float(figure.count):", "if False:",
      f"{TRAINER}::test_a_selecting_figure_of_nothing_ends_the_run", "the best checkpoint is never chosen by NaN"),
    plant("told-again-and-again", "a figure that is not finite is told at every evaluation", "train/nonfinite.py",
      "            self._names |= set(new)\n", "",
      f"{TRAINER}::test_other_figures_that_are_not_finite_are_told_once_and_recorded_as_null",
      "any other figure that is not finite is told once"),
    plant("nan-in-json", "JSON holds NaN", "io/strict_json.py",
      "        return json.dumps(value, allow_nan=False, **options)\n    except", "        return json.dumps(value, **options)\n    except",
      "io/test_strict_json.py", "JSON is strict"),
    # --- the same run, and going on ------------------------------------------------------------------------------------------------
    plant("environment-unnamed", "another number of threads is not told", "train/checkpointing.py",
      '            "threads": torch.get_num_threads(),\n', "", f"{CHECKPOINTING}::test_a_changed_environment_is_reported_on_resume",
      "changed ranks, threads, device or torch are told"),
    plant("device-unnamed", "another device is not told", "train/checkpointing.py",
      '            "device": self.engine.device.type,\n', "", f"{CHECKPOINTING}::test_a_changed_environment_is_reported_on_resume",
      "changed ranks, threads, device or torch are told"),
    plant("rollout-of-others", "the lost rollout of other ranks is not told", "train/checkpointing.py",
      "        if lost_rollout:\n", "        if False:\n", f"{ALIGN_ONLINE}::test_the_rollout_of_another_number_of_ranks_is_sampled_anew",
      "an unfinished rollout of other ranks is sampled anew"),
    plant("decayed-cosine-continued", "a decayed cosine goes on as if it had not", RESUMING,
      "    if not SCHEDULES[schedule].plateau:\n", "    if False:\n", f"{GOING_ON} {CHANGES}", "a decayed cosine is refused"),
    plant("plateau-ignored", "an extended wsd goes on from after its decay", RESUMING,
      "    if kept:\n", "    if False:\n", f"{GOING_ON}::test_an_extended_wsd_run_is_the_straight_one_bit_for_bit",
      "wsd continues from its plateau, bit for bit"),
    plant("decayed-lost", "the checkpoints after the plateau are removed", RESUMING,
      "return [checkpoint.set_aside(path, checkpoint.DECAYED) for path in later]",
      "return [checkpoint.remove(path) or path for path in later]",
      f"{GOING_ON}::test_an_extended_wsd_run_is_the_straight_one_bit_for_bit", "later checkpoints are kept as decayed-step-*"),
    plant("fewer-steps-accepted", "a run goes on to fewer steps than it has done", RESUMING,
      "if steps < last or (rewarm and steps == last):", "if False:", CHANGES, "fewer steps than are done are refused"),
    plant("unused-change", "a change that no step would use is recorded", "train/changes.py",
      "if unused and steps <= done:", "if False:", f"{GOING_ON}::test_a_change_that_no_step_would_use_is_refused_and_leaves_the_record",
      "a change that no step would use is refused"),
    plant("optimizer-changed", "another optimizer goes on with this one's state", "train/changes.py",
      '    "optim.optimizer": "the saved state is that of the other optimizer",\n', "",
      CHANGES, "optim.optimizer and train.eval_rows cannot change"),
    plant("eval-rows-changed", "the held-out rows change within a run", "train/changes.py",
      '    "train.eval_rows": "held-out figures before and after it could not be compared",\n', "", CHANGES,
      "optim.optimizer and train.eval_rows cannot change"),
    plant("keep-every-needs-an-option", "train.keep_every cannot change without an option", "train/changes.py",
      '    "keep",\n    "keep_every",\n', '    "keep",\n', CHANGES, "what no weight depends on may change without an option"),
    plant("change-unlogged", "metrics.jsonl does not tell of a change", "train/run.py",
      '            self.log({"step": step, "split": CHANGE,', '            ({"step": step, "split": CHANGE,', f"{GOING_ON} {CHANGES}",
      "metrics.jsonl has a line of split change"),
    plant("saved-after-compiling", "nothing is saved before the model is compiled", "train/trainer.py",
      "            self.manager.save(self._state())  # compiling takes minutes, and a signal abandons it\n", "", DECISIONS,
      "before compiling, a checkpoint is saved"),
]
