"""The symptoms of `tinyllm explain`: each bound moved by half as much again in both directions, and faults of their logic."""

from __future__ import annotations

from mutants.kind import Mutant

M = Mutant
FACTOR = 1.5
NEAR_ONE = 0.8  # from here on, it is the distance from 1 that is moved
FOLDER = "diagnostics/symptoms"

# file: constant -> (value, a check that uses it)
BOUNDS: dict[str, dict[str, tuple[str, str]]] = {
    "advice": {
        "MIN_LEARNING_RATE": ("1e-4", "never_moved"),
        "MIN_ROLLOUTS": ("3", "zero_reward"),
    },
    "answers": {
        "MOST_UNFINISHED": ("0.5", "endless"),
        "MANY_UNFINISHED": ("0.8", "endless"),
        "LOOPS": ("0.5", "repeats"),
        "MORE_LOOPS": ("0.1", "repeats"),
        "AT_LIMIT": ("0.9", "endless"),
        "LONGER": ("2.0", "length_runs_away"),
        "MORE_TOKENS": ("8.0", "length_runs_away"),
        "FELL": ("0.1", "reward_fell"),
        "STILL_HIGH": ("0.1", "over_optimised"),
        "ERRORS": ("2.0", "reward_stays"),
        "MEDIAN_CHANGE": ("0.954", "reward_stays"),
        "MIN_POINTS": ("3", "reward_fell"),
    },
    "learning": {
        "UNCHANGED": ("0.005", "never_moved"),
        "NO_GRADIENT": ("1e-6", "never_moved"),
        "BATCH_NOISE": ("0.1", "never_moved"),
        "ROSE": ("0.03", "eval_turned"),
        "ROSE_AT_LEAST": ("0.01", "eval_turned"),
        "SPIKE": ("10.0", "gradient_spikes"),
        "VANISHED": ("0.05", "gradient_spikes"),
        "FREQUENT": ("0.02", "gradient_spikes"),
        "MIN_ROWS": ("10", "gradient_spikes"),
        "GAIN": ("0.02", "never_improved"),
        "_MOST_SHOWN": ("4", "not_finite"),
    },
    "policy": {
        "MANY_CONSTANT": ("0.5", "constant_groups"),
        "NEARLY_ALL_CONSTANT": ("0.9", "constant_groups"),
        "SOLVED": ("0.9", "constant_groups"),
        "CLIPPED": ("0.3", "clipping"),
        "CLIPPED_ANSWERS": ("0.8", "clipping"),
        "ON_POLICY": ("1e-4", "on_policy"),
        "FROZEN_KL": ("1e-8", "on_policy"),
        "TOKEN_KL": ("0.5", "kl_spike"),
        "SPIKE": ("10.0", "kl_spike"),
        "SPIKE_FROM": ("0.2", "kl_spike"),
        "ANSWER_KL": ("15.0", "far_from_parent"),
        "ANSWER_KL_PER_TOKEN": ("0.1", "far_from_parent"),
        "JUMP": ("5.0", "far_from_parent"),
        "JUMP_TIMES": ("4.0", "far_from_parent"),
        "LOW_ENTROPY": ("0.1", "entropy_collapse"),
        "GAP_SHARE": ("0.5", "sampler_gap"),
        "CRITIC_UNCHANGED": ("0.9", "idle_critic"),
        "CRITIC_GOOD": ("0.005", "idle_critic"),
        "MIN_POINTS": ("5", "idle_critic"),
    },
    "preferences": {
        "SAME_MARGIN": ("0.01", "stuck"),
        "FELL_SOME": ("0.1", "chosen_falls"),
        "FELL_FAR": ("0.5", "chosen_falls"),
        "CHANCE": ("0.55", "at_chance"),
        "BELOW": ("0.45", "below_chance"),
        "HUGE_MARGIN": ("8.0", "margin_explodes"),
        "PERFECT": ("0.99", "memorised"),
        "GAP": ("0.1", "memorised"),
        "FLAT": ("0.02", "memorised"),
        "SMALL_LOSS": ("0.05", "memorised"),
        "FAR_LEVEL": ("5.0", "rewards_drift"),
        "MIN_ROWS": ("5", "memorised"),
    },
    "process": {
        "SILENT_SECONDS": ("120.0", "unfinished"),
        "SILENT_ROWS": ("10.0", "unfinished"),
        "SLOWED": ("0.4", "slowed"),
        "MIN_ROWS": ("12", "slowed"),
    },
}
TESTS = {"advice": f"{FOLDER}/test_policy.py {FOLDER}/test_learning.py"}


def _moved(value: str, up: bool) -> str:
    number = float(value)
    if value.isdecimal():
        return str(round(number * FACTOR) if up else int(number / FACTOR))
    if NEAR_ONE <= number < 1:
        return f"{1 - (1 - number) * (1 / FACTOR if up else FACTOR):.6g}"
    return f"{number * (FACTOR if up else 1 / FACTOR):.6g}"


def _bounds() -> list[Mutant]:
    return [
        M(
            f"{file}-{name.strip('_').lower()}-{'up' if up else 'down'}", "extra", f"{name} {value} -> {_moved(value, up)}",
            f"{FOLDER}/{file}.py", f"\n{name} = {value}", f"\n{name} = {_moved(value, up)}",
            TESTS.get(file, f"{FOLDER}/test_{file}.py"), keeps=f"symptom: {check}",
        )
        for file, constants in BOUNDS.items()
        for name, (value, check) in constants.items()
        for up in (True, False)
    ]  # fmt: skip


ALL = f"{FOLDER}/__init__.py"
CHECK = f"{FOLDER}/check.py"
ANSWERS, LEARNING, POLICY, PREFERENCES, PROCESS = (
    f"{FOLDER}/test_{name}.py" for name in ("answers", "learning", "policy", "preferences", "process")
)
EXPLAIN, COMPLETE = "diagnostics/test_explain.py", f"{FOLDER}/test_complete.py"


def _s(check: str, plants: str, old: str, new: str, *, number: int = 0, targets: str = "") -> Mutant:
    """Return a fault of one check, in the file that the check's tests are named after."""
    file = next(f for f, checks in OWNERS.items() if check in checks)
    name = f"symptom-{check}" + (f"-{number}" if number else "")
    where = targets or f"{FOLDER}/test_{file}.py"
    return M(name, "extra", plants, f"{FOLDER}/{file}.py", old, new, where, keeps=f"symptom: {check}")


OWNERS = {
    "answers": [
        "endless",
        "repeats",
        "length_runs_away",
        "reward_stays",
        "reward_fell",
        "over_optimised",
        "worse_answers",
    ],
    "learning": ["not_finite", "still_warming", "never_moved", "eval_turned", "gradient_spikes", "never_improved"],
    "policy": [
        "zero_reward",
        "constant_groups",
        "clipping",
        "on_policy",
        "kl_spike",
        "far_from_parent",
        "entropy_collapse",
        "sampler_gap",
        "idle_critic",
    ],
    "preferences": [
        "stuck",
        "below_chance",
        "chosen_falls",
        "margin_explodes",
        "memorised",
        "at_chance",
        "rewards_drift",
    ],
    "process": ["failed", "nothing_logged", "unfinished", "rows_missing", "damaged_lines", "slowed"],
}

# fmt: off
LOGIC = [
    _s("failed", "only a stopped run has failed",
      'if log.facts.get("status") != FAILED_STATUS:\n        return None\n    error',
       'if log.facts.get("status") != STOPPED:\n        return None\n    error'),
    _s("nothing_logged", "an empty log is always in order", "if log.rows or log.facts", "if not log.rows or log.facts"),
    _s("unfinished", "a killed run is taken for a running one", "if log.seconds_since_write <= max(",
       "if log.seconds_since_write >= max("),
    _s("rows_missing", "duplicate lines are not counted", "if not missing and not duplicates:", "if not missing:"),
    _s("rows_missing", "missing lines are not counted", "missing, duplicates = sorted(expected - set(logged))",
       "missing, duplicates = sorted(set(logged) - expected)", number=2),
    _s("damaged_lines", "one damaged line is none", "if not log.damaged_lines:", "if log.damaged_lines < 2:"),
    _s("slowed", "steps that sample are compared with steps that do not",
       "series = log.train if log.steps_per_rollout == 1 else log.after_first_minibatch", "series = log.train"),
    _s("not_finite", "null is never a loss that was not finite", "if (value is None and name in judged) or", "if"),
    _s("not_finite", "the error of a refused step is not read", "if (stopped := _refused_step(log)) is not None:",
       "if (stopped := None) is not None:", number=2),
    _s("not_finite", "the note of the log is not read", "note = row.get(NONFINITE)", "note = None", number=3),
    _s("still_warming", "a warm-up as long as the run is short enough", "warmup < log.steps:", "warmup <= log.steps:"),
    _s("never_moved", "the sign of a change matters", "return abs(loss.last.value - loss.first.value) <",
       "return (loss.last.value - loss.first.value) <"),
    _s("eval_turned", "the best is the first", "best, last = held.lowest, held.last",
       "best, last = held.first, held.last"),
    _s("gradient_spikes", "the warm-up counts", "step > int(log.setting(\"optim.warmup_steps\", 0))", "step > 0"),
    _s("never_improved", "the best may be any evaluation", "if best is None or best.step != 0:", "if best is None:"),
    _s("zero_reward", "one zero reward among others makes the run useless", "useless = nothing_rewarded(log)",
       "useless = True"),
    _s("constant_groups", "the first rollouts are judged, not the last",
       "if constant.tail(1 / 3).mean < MANY_CONSTANT:",
       "if constant.head(1 / 3).mean < MANY_CONSTANT:"),
    _s("clipping", "fractions of answers have the bound of tokens", "(CLIPPED_ANSWERS if by_answer else CLIPPED)",
       "CLIPPED"),
    _s("on_policy", "a policy that changes slowly is called frozen", "if len(kl) and kl.median > FROZEN_KL:",
       "if not len(kl):"),
    _s("kl_spike", "the first minibatches count, where KL is 0",
       "kl = log.after_first_minibatch(\"approx_kl\")\n    top",
       "kl = log.train(\"approx_kl\")\n    top"),
    _s("far_from_parent", "short and long answers have the same bound",
       "far = kl.last.value > ANSWER_KL and per_token > ANSWER_KL_PER_TOKEN",
       "far = kl.last.value > ANSWER_KL"),
    _s("entropy_collapse", "any fall of the reward is excused",
       "if rose and reward.highest.value - reward.last.value < GAIN * log.max_reward:",
       "if True:"),
    _s("sampler_gap", "the first rollouts are judged, not the last", "if gap.tail(0.5).mean <",
       "if gap.head(0.5).mean <"),
    _s("idle_critic", "the end is compared with itself", "early, late = value.head(1 / 3), value.tail(1 / 3)",
       "early, late = value.tail(1 / 3), value.tail(1 / 3)"),
    _s("stuck", "margins may move", "if abs(margin.last.value - margin.first.value) > SAME_MARGIN:",
       "if margin.last.value < -1e9:"),
    _s("below_chance", "an unchanged policy is blamed",
       "if held.last.value >= BELOW or is_unchanged(log.held_out(\"loss\")):",
       "if held.last.value >= BELOW:"),
    _s("chosen_falls", "a falling margin is no matter", "if margin.last.value <= margin.first.value:", "if False:"),
    _s("margin_explodes", "ORPO's weighted margin is read", "return log.train(\"log_odds_chosen\") or log.train",
       "return log.train"),
    _s("memorised", "held-out accuracy may be as high", "if train.tail(0.2).mean - held.last.value < GAP or", "if"),
    _s("at_chance", "an unchanged model is blamed",
       "if held.last.value > CHANCE or is_unchanged(log.held_out(\"loss\")):",
       "if held.last.value > CHANCE:"),
    _s("rewards_drift", "a large margin is called drift", "last < FAR_LEVEL or last < 2 * margin or",
       "last < FAR_LEVEL or"),
    _s("rewards_drift", "a level that was there from the start is called drift", "or last < 2 * first:",
       "or last < 0 * first:", number=2),
    _s("endless", "unfinished answers at the limit are blamed on the penalty",
       "if limit and length.last.value >= AT_LIMIT * limit:",
       "if limit and length.last.value >= 2 * limit:"),
    _s("repeats", "a parent that repeated as much is blamed", "\"warning\" if worse else \"note\", \"answers repeat",
       "\"warning\", \"answers repeat"),
    _s("length_runs_away", "answers of two tokens run away", "or last - first < MORE_TOKENS:", ":"),
    _s("reward_stays", "the rollouts are not looked at", "if abs(late.mean - early.mean) >",
       "if 0 * abs(late.mean - early.mean) >"),
    _s("reward_fell", "a reward that never rose fell", "if held.highest.step == held.first.step:", "if False:"),
    _s("over_optimised", "the score may fall as well",
       "if rise <= 0 or proxy.highest.value - proxy.last.value > STILL_HIGH * rise:",
       "if False:"),
    _s("worse_answers", "an unchanged model is blamed",
       "if is_unchanged(log.held_out(\"loss\")):\n        return None  # an",
       "if False:\n        return None  # an"),
    M("explain-figures-needed", "extra", "a check without its figures has examined the run", CHECK,
      "if len(series) < need.points:", "if len(series) < 0:", EXPLAIN, keeps="symptom: figures examined"),
    M("explain-counts-everything", "extra", "checks without figures are counted as examined", "diagnostics/explain.py",
      "len(CHECKS[log.family]) - len(left_out)", "len(CHECKS[log.family])", EXPLAIN, keeps="symptom: figures examined"),
    M("explain-healthy-on-nothing", "extra", "a log without figures is healthy", "diagnostics/explain.py",
      '"healthy": measured and all(', '"healthy": all(', EXPLAIN, keeps="symptom: figures examined"),
    M("explain-offline-answers", "extra", "offline alignment has checks of answers that it never generates", ALL,
      "*preferences.OFFLINE)", "*preferences.OFFLINE, *answers.FINE_TUNING)",
       COMPLETE, keeps="symptom: figures examined"),
    M("explain-near-zero-up", "extra", "margins start at 0 up to 0.015", "diagnostics/explain.py",
       "_NEAR_ZERO = 0.01 ", "_NEAR_ZERO = 0.015 ", EXPLAIN,
      keeps="symptom: main metric"),
    M("explain-near-zero-down", "extra", "margins start at 0 up to 0.0067", "diagnostics/explain.py",
       "_NEAR_ZERO = 0.01 ", "_NEAR_ZERO = 0.0067 ",
      EXPLAIN, keeps="symptom: main metric"),
    M("onset-up", "extra", "reward hacking begins 0.2 below the peak of gold", "lifecycle/overoptimization.py",
       "FALL = 0.1 ", "FALL = 0.2 ",
      "lifecycle/test_overoptimization.py", keeps="symptom: onset of overoptimization"),
    M("onset-down", "extra", "reward hacking begins 0.067 below the peak of gold", "lifecycle/overoptimization.py",
       "FALL = 0.1 ", "FALL = 0.067 ",
      "lifecycle/test_overoptimization.py", keeps="symptom: onset of overoptimization"),
    M("explain-needs-too-many", "extra", "a shipped run is too short for a check", f"{FOLDER}/learning.py",
      "@check(evaluations(\"loss\", 3))",
      "@check(evaluations(\"loss\", 30))", f"{FOLDER}/test_shipped.py", keeps="symptom: figures examined"),
    M("explain-unlogged", "extra", "a check reads a figure that no trainer logs", f"{FOLDER}/policy.py",
      '@check(rollouts("sampler_gap"))',
      '@check(rollouts("sampler_gap_of_old"))', f"{FOLDER}/test_real_runs.py", keeps="symptom: figures examined"),
]
WEAK = [  # bugs that a test used to accept
    M("constant-groups-inverted", "extra", "the groups that differ are counted as constant", "algorithms/common.py",
      "return over(spread == 0)",
      "return over(spread != 0)", "algorithms/test_online.py"),
    M("bf16-loss-zero", "extra", "under autocast the loss of Dr. GRPO is 0", "algorithms/dr_grpo.py",
      "Mean((per_token * batch.mask).sum(),",
      'Mean((per_token * batch.mask).sum() * (not __import__("torch").is_autocast_enabled("cpu")),', "algorithms/test_every.py"),
    M("bf16-loss-sign", "extra", "under autocast the loss of RLOO has the other sign", "algorithms/rloo.py",
      "return over(clipped_surrogate(",
      'return over((1 - 2 * __import__("torch").is_autocast_enabled("cpu")) * clipped_surrogate(', "algorithms/test_every.py"),
    M("best-by-reward", "extra", "the best checkpoint is the best by reward, whatever best_by says",
      "stages/align_online.py",
      'best=(best_by, "max")', 'best=("reward", "max")',
      "stages/test_align_online.py::test_best_by_must_name_a_held_out_metric"),
]
# fmt: on
MUTANTS = [*_bounds(), *LOGIC, *WEAK]
