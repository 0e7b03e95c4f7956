"""Val selects and test examines: what is chosen by is examined, or examined by what was trained on."""

from __future__ import annotations

from mutants.kind import Mutant

WORLD, FILES, STAGES = "data/test_world_split.py", "data/test_splits.py", "stages/test_test_split.py"
EXAM = "train/test_examination.py"


def split(name: str, plants: str, file: str, old: str, new: str, targets: str, keeps: str) -> Mutant:
    return Mutant(f"split-{name}", "extra", plants, file, old, new, targets, keeps=f"data: {keeps}")


# fmt: off
MUTANTS = [
    # --- the bundled world -------------------------------------------------------------------------------------------------------
    split("world-questions", "questions of val are those of test", "data/world/exchanges.py",
          "if in_half(item.question, split):", "if True:", WORLD, "a question is in one of val and test"),
    split("world-lead-in", "a lead-in moves a question to the other split", "data/world/exchanges.py",
          "if in_half(item.question, split):", "if in_half(rng.choice(LEAD_INS) + item.question, split):", WORLD,
          "a question is in one of val and test"),
    split("world-documents", "documents of val are those of test", "data/world/documents.py",
          "if belongs(text, content) and in_half(text, split):", "if belongs(text, content):", WORLD,
          "no document is in two splits"),
    split("world-stream", "test has the stream of val", "data/world/draw.py",
          'f"{name}/{seed}/{split}/{index}"', 'f"{name}/{seed}/{content_of(split)}/{index}"', WORLD,
          "a record is a function of seed, split and i"),
    split("world-content", "test draws from the content of train", "data/world/draw.py",
          '"train" if split == "train" else "val"', '"val" if split == "val" else "train"', WORLD,
          "what is held out is not asked for in train"),
    # --- files -------------------------------------------------------------------------------------------------------------------
    split("same-bits", "the bits that hold out divide as well", "data/splits.py",
          "low = hashes % np.uint64(_LOW)", "low = hashes // np.uint64(_LOW)", FILES, "half of what is split off is for test"),
    split("val-divided", "a validation file of one's own loses half", "data/record_source.py",
          "0.0 if data.val else HALF", "HALF", FILES, "none of an explicit data.val is for test"),
    split("test-and-half", "beside data.test, val loses half", "data/record_source.py",
          "    if data.test:\n        return 0.0\n", "", FILES, "with data.test all held-out records are val"),
    split("one-label", "answers of one label are a test split", "data/splits.py",
          "return test if all(", "return test if True or all(", FILES, "all splits of labeled answers have both labels"),
    split("unasserted", "splits that overlap are not noticed", "data/splits.py",
          "for other in names[number + 1 :]:", "for other in ():", FILES,
          "an overlap ends the run"),
    split("unasserted-in-the-run", "the run does not compare its splits", "data/splits.py",
          "        check_disjoint(self.ours)\n", "", f"{STAGES}::test_a_division_that_is_not_one_is_noticed_in_the_run",
          "an overlap ends the run"),
    split("overlap-untold", "test records that select are not counted", "data/validation.py",
          '(selecting, "val",', '(0, "val",', FILES, "an overlap of files is said"),
    # --- documents ---------------------------------------------------------------------------------------------------------------
    split("documents", "all held-out documents select", "data/tokens/shards.py",
          'if split != "train":\n                documents', 'if split == "test":\n                documents',
          f"{STAGES}::test_documents_of_val_and_test_are_disjoint", "a document is in one of val and test"),
    split("own-documents", "pretraining is examined by what selects", "stages/documents.py",
          'own = Documents(config, "test")', 'own = Documents(config, "val")',
          f"{STAGES}::test_documents_of_val_and_test_are_disjoint", "a document is in one of val and test"),
    split("tokenizer", "the tokenizer learns from held-out documents", "stages/documents.py",
          "if split_hash(text) >= threshold)", "if split_hash(text) >= 0)",
          "stages/test_data.py::test_the_tokenizer_learns_from_training_documents_only",
          "a tokenizer learns from training documents only"),
    split("eval-of-val", "eval measures on the questions that selected", "evals/benchmark.py",
          'seed=config.seed, split="test"))', 'seed=config.seed, split="val"))',
          "evals/test_eval.py::test_gold_equals_the_evaluation_of_the_training_stages", "eval scores the test split"),
    # --- the run -----------------------------------------------------------------------------------------------------------------
    split("selected-by-test", "the best checkpoint is chosen by test figures", "train/trainer.py",
          "found = self.job.evaluate(self.engine)", "found = self.job.evaluate(self.engine) if self.job.test is None else "
          '{"planned": self.job.test(self.engine)["score"]}', EXAM, "nothing is chosen by test figures"),
    split("best-not-restored", "the last checkpoint is examined as the best", "train/examination.py",
          "self.job.files.restore(folder / checkpoint.BEST)\n", "pass\n", EXAM, "test figures of the best checkpoint are its own"),
    split("test-records-changed", "figures of other records from before the first step are kept", "train/examination.py",
          'if state.get("test_sha256", self.run.test_sha256) == self.run.test_sha256:', 'if state.get("test"):', EXAM,
          "figures of other test records are not compared"),
    split("test-untrained-unmeasured", "the checkpoint before the first step has no figures of changed records", "train/examination.py",
          "elif best == 0 and self.before:", "elif best == 0:", EXAM, "figures of other test records are not compared"),
    split("test-figures-of-other-records", "figures that were recorded of other records are used", "train/run.py",
          'earlier.get("test") if _test_sha256(earlier) == self.test_sha256 else None', 'earlier.get("test")', EXAM,
          "figures of other test records are not compared"),
    split("test-records-forgotten", "the hash of the test records is not saved", "train/examination.py",
          ', "test_sha256": self.run.test_sha256}', "}", EXAM, "figures of other test records are not compared"),
    split("last-not-restored", "a run ends with the weights of the best checkpoint", "train/examination.py",
          "self.job.files.restore(checkpoint.steps(folder)[-1])", "pass", EXAM, "a run ends with its last weights"),
    split("before-forgotten", "a resumed run has no figures from before the first step", "train/trainer.py",
          "found |= self._examination.state()", "found |= {}", EXAM, "a resumed run keeps its test figures"),
    split("examined-twice", "test figures of a run that has ended are logged again", "train/run.py",
          """'"split": "test"' not in line or not _step_of(line)""", "True", EXAM, "metrics have one line for a step"),
    split("val-as-test", "sft is examined by val", "stages/sft.py",
          "make_test, split.test,", "make_test, split.val,", f"{STAGES}::test_exchanged_files_exchange_the_figures_of_val_and_test",
          "stages examine by test"),
    split("pairs-as-test", "a reward model is examined by val", "stages/rm.py",
          "make_test, split.test,", "make_test, split.val,", f"{STAGES}::test_exchanged_files_exchange_the_figures_of_val_and_test",
          "stages examine by test"),
    split("best-of-val-moved", "without test records, the best of val is said to have moved", "stages/common.py",
          '"to": trained.last.get(what)}', '"to": trained.best.get(what)}', f"{STAGES}::test_what_moved_can_fall", "what moved can fall"),
    split("best-of-val-explained", "explain reports the best of val", "diagnostics/explain.py",
          '"to": series.last.value', '"to": series.lowest.value', "diagnostics/test_explain.py", "what moved can fall"),
]
