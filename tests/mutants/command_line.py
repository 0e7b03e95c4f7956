"""One mistake for every stage that is compared with TRL as a command: records, chat template, masks, batches, engine and loss in one."""

from __future__ import annotations

from mutants.kind import Mutant

HERE = "parity/test_command_line.py"
ONLINE = ("grpo", "dapo", "dr_grpo", "gspo", "cispo", "rloo", "ppo")


def stage(name: str, plants: str, file: str, old: str, new: str) -> Mutant:
    test = "test_learning_from_a_rollout" if name in ONLINE else "test_learning_from_files"
    keeps = f"parity: `{name}` as a command computes TRL's loss and gradient"
    return Mutant(f"command-{name}", "extra", plants, file, old, new, f"{HERE}::{test}[{name}]", keeps=keeps)


# fmt: off
MUTANTS = [
    stage("sft", "micro-batches count alike, whatever they score", "algorithms/next_token.py",
          "Mean(-total, batch.mask.sum())", "Mean(-total / batch.mask.sum(), 1)"),
    stage("sft_packed", "conversations of one row see each other", "algorithms/next_token.py",
          "attend=batch.documents", "attend=None"),
    stage("sft_lora", "rsLoRA scales as LoRA does", "model/config.py",
          "self.alpha / math.sqrt(self.r) if self.rslora", "self.alpha / self.r if self.rslora"),
    stage("pretrain", "the tokens of the last micro-batch alone divide", "train/engine.py",
          "pooled[name] + mean if name in pooled else mean", "mean"),
    stage("rm", "rewards are centred by their absolute value", "algorithms/bradley_terry.py",
          "settings.centering * (chosen + rejected).square()", "settings.centering * (chosen + rejected).abs()"),
    stage("dpo", "the reference does not count", "algorithms/dpo.py",
          'log_ratios = log_probs - required(batch.ref_log_probs, "ref_log_probs")', "log_ratios = log_probs"),
    stage("orpo", "the NLL of a pair is divided by the pair's own tokens", "algorithms/orpo.py",
          "if tokens_per_pair is None:", "if True:"),
    stage("simpo", "the target margin is added", "algorithms/simpo.py",
          "-log_sigmoid(margin - settings.gamma)", "-log_sigmoid(margin + settings.gamma)"),
    stage("kto", "every micro-batch has its own z", "algorithms/kto.py",
          "[replace(batch, kl=(total / count).clamp(min=0)) for batch in batches]", "list(batches)"),
    stage("grpo", "all tokens of the batch count alike", "algorithms/grpo.py",
          "over(sequence_mean(per_token, batch.mask))", "Mean((per_token * batch.mask).sum(), batch.mask.sum())"),
    stage("dapo", "all answers count alike", "algorithms/dapo.py",
          "masked(per_token, batch.mask)",
          "Mean(((per_token * batch.mask).sum(1) / batch.mask.sum(1)).sum(), len(batch.ids))"),
    stage("dr_grpo", "the constant is the width of the batch", "algorithms/dr_grpo.py",
          "len(batch.ids) * batch.max_new_tokens", "len(batch.ids) * batch.mask.shape[1]"),
    stage("gspo", "the ratio of an answer is not normalised by its length", "algorithms/gspo.py",
          "sequence_mean(scores.log_probs - old, mask).exp()",
          "((scores.log_probs - old) * mask).sum(1).exp()"),
    stage("cispo", "the weight has a gradient", "algorithms/cispo.py", ".exp().detach().clamp(", ".exp().clamp("),
    stage("rloo", "the ratio of an answer is the mean of its tokens' ratios", "algorithms/rloo.py",
          "ratio = ((scores.log_probs - old) * mask).sum(1).exp()",
          "ratio = ((scores.log_probs - old).exp() * mask).sum(1) / mask.sum(1)"),
    stage("ppo", "advantages are not whitened", "algorithms/ppo.py",
          "advantages = masked_whiten(advantages, samples.mask)", "advantages = advantages * samples.mask"),
]
