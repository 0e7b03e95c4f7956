"""The gates of a lifecycle: each made to pass what it should refuse. And the exam: made to read what trained or selected."""

from __future__ import annotations

from mutants.kind import Mutant

GATES, EXAM = "lifecycle/gates.py", "lifecycle/sources.py"
SIDES, SPLITS = "lifecycle/test_gates.py", "lifecycle/test_splits.py"


def gate(name: str, plants: str, old: str, new: str, broken: str, count: int = 1) -> Mutant:
    return Mutant(
        f"gate-{name}", "extra", plants, GATES, old, new, SIDES, count, keeps=f"gate: {broken}" if broken else ""
    )


def exam(name: str, plants: str, old: str, new: str) -> Mutant:
    return Mutant(f"exam-{name}", "extra", plants, EXAM, old, new, SPLITS)


MUTANTS = [
    gate(
        "comparison-flipped",
        "<= and >= exchanged",
        'value <= bound if self.rule == "<="',
        'value >= bound if self.rule == "<="',
        "beats n-gram baseline",
    ),
    gate(
        "bound-ignored",
        "the n-gram model's figure replaced by 8 bits",
        'inputs.baseline(stage, "ngram_bits_per_byte")[0]',
        "7.99",
        "beats n-gram baseline",
    ),
    gate("eos", "0.95 -> 0.90", "        0.95,\n", "        0.9,\n", "emits EOS"),
    gate(
        "pretrained-margin",
        "compared with the parent itself",
        '_parent_plus("gold", 0.5)',
        '_parent_plus("gold", 0.0)',
        "improves on pretrained",
    ),
    gate(
        "wrong-parent",
        "LoRA compared with its parent, not with full fine-tuning",
        '_sft_plus("gold", -0.15)',
        '_parent_plus("gold", -0.15)',
        "near full fine-tuning",
    ),
    gate(
        "ceiling-unseen",
        "a missing ceiling is 1",
        'inputs.baseline(stage, "ceiling")[0]',
        'inputs.baselines[stage].get("ceiling", 1.0)',
        "near label-noise ceiling",
    ),
    gate(
        "bound-zero",
        "0.85 of the ceiling -> none of it",
        "0.85 * inputs.baseline",
        "0.0 * inputs.baseline",
        "near label-noise ceiling",
    ),
    gate(
        "wrong-metric",
        "accuracy for correlation",
        '_baseline("correlation", "answers")',
        '_baseline("accuracy", "answers")',
        "correlates with gold",
    ),
    gate("win-rate", "0.58 -> 0.5", "        0.58,\n", "        0.5,\n", "wins against parent"),
    gate(
        "gold-margin",
        "no margin over the parent",
        '_parent_plus("gold", 0.05)',
        '_parent_plus("gold", 0.0)',
        "improves gold reward",
    ),
    gate("kl", "12 nats -> 1,200", "        12.0,\n", "        1200.0,\n", "KL within bound"),
    gate(
        "loss-factor",
        "any loss below 1.1 of the parent's",
        '_before("loss", factor=0.9)',
        '_before("loss", factor=1.1)',
        "lowers held-out loss",
    ),
    gate(
        "own-accuracy",
        "0.55 -> 0.45",
        '_test("accuracy"),\n        ">=",\n        0.55,',
        '_test("accuracy"),\n        ">=",\n        0.45,',
        "accuracy above chance",
    ),
    gate(
        "own-pairs",
        "accuracy of the reward model for the ranking of the policy",
        '_test("rewards/accuracies")',
        '_test("accuracy")',
        "ranks chosen above rejected",
    ),
    gate(
        "own-reward",
        "compared with the parent itself",
        '_before("reward", margin=0.02)',
        '_before("reward")',
        "improves reward",
    ),
    gate("nothing", "n = 0 passes", "if not n > 0:", "if n < 0:", ""),
    gate("value-undefined", "NaN is compared", "if not math.isfinite(value):", "if False:", ""),
    gate("bound-undefined", "an infinite bound is met", "if not math.isfinite(bound):", "if False:", ""),
    gate("bound-senseless", "a bound outside its range is met", "if not low < bound < high:", "if False:", ""),
    gate(
        "last-is-best",
        "the last checkpoint's row repeats the best one's",
        "gate.check(at_last, stage)",
        "gate.check(inputs, stage)",
        "",
    ),
    gate(
        "last-own",
        "the last checkpoint is judged by the best one's test figures",
        '            checkpoint="last",\n',
        "",
        "",
    ),
    Mutant(
        "win-rate-of-nothing",
        "extra",
        "a parent compared with itself wins half",
        "lifecycle/evaluation.py",
        "        return proportion(wins, wins + losses)\n",
        '        return proportion(wins, wins + losses) if wins + losses else {"value": 0.5, "n": 0}\n',
        "lifecycle/test_evaluation.py::test_a_win_rate_of_nothing_and_means_of_nothing_are_undefined",
        keeps="gate: wins against parent",
    ),
    exam(
        "reads-val",
        "the questions of the exam are those that select",
        'read_split(config.data.model_copy(update=drawn), "prompts", _SEED).test',
        'read_split(config.data.model_copy(update=drawn | {"val": drawn["test"]}), "prompts", _SEED).val',
    ),
    exam("own-reads-val", "of one's own data too", "list(read[online].test)", "list(read[online].val)"),
    exam(
        "own-test-is-val",
        "the test figures are counted as those of val",
        "test = list(split.test)",
        "test = list(split.val)",
    ),
    exam(
        "other-files",
        "questions that another file trains on are asked",
        "return any(overlap.in_common(keys, others).values()) or (",
        "return False and (",
    ),
    Mutant(
        "exam-pairs-of-val",
        "extra",
        "the pairs that select the reward model judge it",
        "lifecycle/baselines.py",
        "noise=config.noise).test[:_PAIRS]",
        "noise=config.noise).val[:_PAIRS]",
        SPLITS,
    ),
    Mutant(
        "exam-documents-of-val",
        "extra",
        "the documents that select judge",
        "lifecycle/examination.py",
        'shards, tokenizer, "test", DOCUMENTS',
        'shards, tokenizer, "val", DOCUMENTS',
        SPLITS,
    ),
    Mutant(
        "exam-unchecked",
        "extra",
        "an exam that trained or selected is not refused before training",
        "lifecycle/pipeline.py",
        "            self.splits.check(stage)\n",
        "            self.splits.rows(stage)\n",
        f"{SPLITS}::test_an_exam_that_reads_another_split_is_refused_before_training",
    ),
    Mutant(
        "exam-other-data",
        "extra",
        "the run has read other records than were compared",
        "lifecycle/pipeline.py",
        "not in (None, self.parts_facts.get(stage))",
        "is False",
        f"{SPLITS}::test_data_that_changed_after_the_exam_was_drawn_are_refused",
    ),
    Mutant(
        "overlap-no-ancestors",
        "extra",
        "what trained the parent and the reward model does not count",
        "lifecycle/overlap.py",
        "for name in self._lineage(stage)",
        "for name in ()",
        "lifecycle/test_overlap.py",
    ),
    Mutant(
        "overlap-no-reward-model",
        "extra",
        "what trained the reward model does not count",
        "lifecycle/overlap.py",
        "for name in self.ancestors.get(stage, ()):",
        "for name in self.ancestors.get(stage, ())[:1]:",
        "lifecycle/test_overlap.py",
    ),
    Mutant(
        "overlap-no-selection",
        "extra",
        "what selected does not count",
        "lifecycle/overlap.py",
        "in_common(own.exam, merged(own.selection,",
        "in_common(own.exam, merged({},",
        "lifecycle/test_overlap.py",
    ),
    Mutant(
        "overlap-nothing-is-zero",
        "extra",
        "0 of 0 shown where nothing was compared",
        "html/splits.py",
        "if n else NOTHING",
        "if n >= 0 else NOTHING",
        "html/test_report.py",
    ),
    Mutant(
        "overlap-not-out-of-n",
        "extra",
        "the training records taken for those of the exam that were compared",
        "html/splits.py",
        'row.get("exam", {})',
        'row.get("train", {})',
        "html/test_report.py",
    ),
    Mutant(
        "last-not-examined",
        "extra",
        "the best checkpoint's figures stand for the last one's",
        "lifecycle/examination.py",
        "at_last = found if best == last else",
        "at_last = found if best is not None else",
        "lifecycle/test_pipeline.py::test_a_stage_that_got_worse_shows_its_last_checkpoint_beside_the_parent_it_kept",
    ),
]
