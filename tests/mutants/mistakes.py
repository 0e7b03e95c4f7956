"""The twelve mistakes of public code, planted one by one. See `kind.MISTAKES`."""

from __future__ import annotations

from mutants.kind import Mutant

M = Mutant
HEADS, GENERATE, LORA, HUB = (f"model/test_{name}.py" for name in ("heads", "generate", "lora", "hub"))
ONLINE, PREFERENCES, KNOBS = (f"algorithms/test_{name}.py" for name in ("online", "preferences", "knobs"))
LOADING, TRAINER = "data/test_loading.py", "train/test_trainer.py"
OFFLINE, PARENTS, COMMON, PRETRAIN = (
    f"stages/test_{name}.py" for name in ("align_offline", "parents", "common", "pretrain")
)
PADDING, PACKAGE, TARGETS = "rollout/test_padding.py", "test_package.py", "data/test_targets.py"
STAGE = "stages/test_align_online.py::test_"

# fmt: off
MUTANTS = [
    # --- 1: the shift --------------------------------------------------------------------------------------------------------------
    M("no-shift-states", "1", "a token is scored with the state that has seen it", "model/heads.py",
      "places - 1 - places // length if short else places - 1", "places - places // length if short else places", HEADS),
    M("no-shift-targets", "1", "the state's own token is scored instead of the next", "model/heads.py",
      "[before], ids.flatten()[places]", "[before], ids.flatten()[places - 1]", HEADS),
    M("no-shift-sampler", "1", "the state before the last one chooses the next token", "model/decoding/prefill.py",
      "hidden[row, length - 1]", "hidden[row, max(0, length - 2)]", GENERATE),

    # --- 2: preference data --------------------------------------------------------------------------------------------------------
    M("pairs-without-prompt", "2", "pairs lose their prompt", "text/chatml.py",
      "return before, whole.ids[len(before)", "return before[-1:], whole.ids[len(before)", LOADING),
    M("pairs-without-end", "2", "answers of pairs lose their <|im_end|>", "text/chatml.py",
      "length = sum(whole.mask[len(before) :])", "length = sum(whole.mask[len(before) :]) - 1", LOADING),
    M("one-label-held-out", "2", "KTO's held-out side may have one label", "data/splits.py",
      "held if labels is None else keep_both_labels(held, hashes, labels)", "held", "data/test_validation.py"),
    M("own-pairs-measured-on-world", "2", "a reward model of own pairs is measured on pairs of the bundled world", "lifecycle/baselines.py",
      "    if of_world(data):\n", "    if True:\n", "lifecycle/test_pipeline.py"),
    M("pairs-mask-empty", "2", "the response mask of pairs is empty", "data/datasets/datasets.py",
      "[False] * len(prompt) + [True] * len(answer)", "[False] * len(prompt) + [False] * len(answer)",
      f"{OFFLINE}::test_dpo_starts_at_ln_2_and_learns", count=2),
    M("pairs-mask-prompt", "2", "the response mask of pairs covers the prompt", "data/datasets/datasets.py",
      "[False] * len(prompt) + [True] * len(answer)", "[False] + [True] * (len(prompt) - 1 + len(answer))", LOADING, count=2),
    M("equal-pairs-kept", "2", "pairs of equal answers are trained on", "data/tokenization.py",
      "report.equal[i] = chosen == rejected", "report.equal[i] = False",
      f"{LOADING} {OFFLINE}::test_data_of_equal_answers_only_are_refused"),
    M("pairs-cut-to-nothing", "2", "a long prompt leaves no room for the answer", "data/tokenization.py",
      "max(0, prompt - max(limit // 2, limit - longest))", "max(0, prompt - limit)", LOADING),

    # --- 3: GSPO, GRPO -------------------------------------------------------------------------------------------------------------
    M("gspo-no-length", "3", "GSPO's ratio without 1/|y|", "algorithms/gspo.py",
      "ratio = sequence_mean(scores.log_probs - old, mask).exp()",
      "ratio = ((scores.log_probs - old) * mask).sum(1).exp()", ONLINE),
    M("grpo-no-mask", "3", "GRPO's mean is over prompt and padding, too", "algorithms/grpo.py",
      "over(sequence_mean(per_token, batch.mask))", "over(per_token.mean(1))", ONLINE),
    M("grpo-no-reference", "3", "no reference is made though a KL is configured", "algorithms/grpo.py",
      "return settings.kl_coef > 0", "return False", f"{KNOBS}::test_a_configured_kl_needs_the_reference"),
    M("grpo-kl-dropped", "3", "the KL is measured but not in the loss", "algorithms/common.py",
      "per_token = per_token + settings.kl_coef * penalty", "per_token = per_token + 0 * penalty", ONLINE),
    M("gspo-kl-dropped", "3", "GSPO's KL is measured but not in the loss", "algorithms/gspo.py",
      "per_row = per_row + settings.kl_coef * sequence_mean(penalty, mask)", "per_row = per_row + 0 * penalty.sum(1)", KNOBS),
    M("reference-is-policy", "3", "the reference is the policy itself, so the KL is always 0", "stages/align_online.py",
      "return hub.frozen_copy(policy, narrow=precision == \"bf16\")", "return policy",
      f"{STAGE}the_kl_to_the_parent_is_measured_and_in_the_loss"),

    # --- 4: ORPO -------------------------------------------------------------------------------------------------------------------
    M("orpo-ratio", "4", "ORPO compares probabilities instead of odds", "algorithms/orpo.py",
      "log_odds = (chosen - rejected) - (log1mexp(chosen) - log1mexp(rejected))", "log_odds = chosen - rejected", PREFERENCES),
    M("orpo-summed", "4", "ORPO's odds are of summed log-probabilities", "algorithms/orpo.py",
      "(log_probs * batch.mask).sum(1) / batch.mask.sum(1)", "(log_probs * batch.mask).sum(1)", PREFERENCES),

    # --- 5: PPO --------------------------------------------------------------------------------------------------------------------
    M("ppo-gamma-ignored", "5", "gamma is not in the temporal difference", "algorithms/ppo.py",
      "rewards + gamma * following - values", "rewards + following - values", ONLINE),
    M("ppo-gamma-not-passed", "5", "the configured gamma is not handed on", "algorithms/ppo.py",
      "samples.mask, settings.gamma, settings.lam)", "samples.mask, 1.0, settings.lam)", KNOBS),
    M("ppo-lambda-ignored", "5", "lambda is not in the discounted sum", "algorithms/ppo.py",
      "weights = (gamma * lam) ** distance", "weights = gamma ** distance", ONLINE),
    M("ppo-lambda-not-passed", "5", "the configured lambda is not handed on", "algorithms/ppo.py",
      "settings.gamma, settings.lam)", "settings.gamma, 1.0)", KNOBS),
    M("rollout-mask-prompt", "5", "the mask of a rollout covers the prompt", "rollout/judge.py",
      "[False] * start + [True] * (len(row) - start)", "[False] + [True] * (len(row) - 1)",
      f"{PADDING}::test_mask_ends_with_the_end_token"),
    M("ppo-no-whitening", "5", "advantages are not whitened", "algorithms/ppo.py",
      "if settings.whiten:", "if False:", KNOBS),
    M("ppo-no-clip", "5", "the policy's ratio is not clipped", "algorithms/ppo.py",
      "masked(clipped_surrogate(ratio, batch.advantages, settings.clip, settings.clip), mask)",
      "masked(-ratio * batch.advantages, mask)", KNOBS),
    M("ppo-no-value-clip", "5", "the critic is not held near its old values", "algorithms/ppo.py",
      "(values - returns).square().maximum((clipped_values - returns).square())", "(values - returns).square()", ONLINE),

    # --- 6: padding ----------------------------------------------------------------------------------------------------------------
    M("last-token-by-count", "6", "the reward is read at mask.sum()-1", "model/heads.py",
      "last = torch.where(mask, positions, -1).amax(1).clamp(min=0)", "last = mask.sum(1) - 1", HEADS),
    M("reward-at-padding", "6", "a rollout's reward is read at the end of the padded row", "rollout/judge.py",
      "scores = self.scorer.rewards(ids, real)", "scores = self.scorer(ids)[:, -1]", PADDING),
    M("padding-after-eos", "6", "padding behind an answer is learned from", "rollout/judge.py",
      "for start, row in pairs], False)", "for start, row in pairs], True)",
      f"{PADDING}::test_mask_ends_with_the_end_token"),
    M("written-after-eos", "6", "rows go on writing behind their end token", "model/decoding/engine.py",
      "stop_columns[slot] + 1 if stopped else row.end, finished", "min(self.checked, row.end), finished", f"{PADDING} {GENERATE}"),
    M("no-attention-mask", "6", "a shorter prompt sees the columns before it while sampling", "model/decoding/ring.py",
      "            mask[slot] = -torch.inf\n", "            mask[slot] = 0.0\n", f"{PADDING} {GENERATE}"),
    M("no-template", "6", "rollouts start from bare text", "data/tokenization.py",
      'rendered = chat.render_many(tokenizer, messages, generation_prompt=True, name=f"{name} record")',
      "rendered = [chat.Rendered(tokenizer.encode(p.messages[-1]['content']), []) for p in records]", LOADING),
    M("no-generation-prompt", "6", "rollouts start without the assistant's header", "data/tokenization.py",
      'messages, generation_prompt=True, name=f"{name} record")', "messages)", LOADING),

    # --- 7: ends and starts --------------------------------------------------------------------------------------------------------
    M("shards-without-end", "7", "documents run into each other in the shards", "data/tokens/preparation.py",
      "one.append(tokenizer.endoftext)", "one.extend([])", "data/test_shards.py"),
    M("shards-without-end-by-words", "7", "the same where text is encoded word by word", "data/tokens/preparation.py",
      "encoded.append(end)", "encoded.append(b'')", TARGETS),
    M("end-not-a-target", "7", "the end of a document is masked out of the windows", "data/datasets/datasets.py",
      "mask = torch.ones(ids.shape, dtype=torch.bool)", "mask = ids != 0", TARGETS),
    M("end-not-evaluated", "7", "perplexity leaves the ends of documents out", "data/tokens/memmap.py",
      "yield tokens[start:end]", "yield tokens[start : end - 1]", PRETRAIN),
    M("first-token-untrained", "7", "the first token of an answer is never trained", "text/chatml.py",
      "mask += [is_trained(message)] * (len(content) + 1)",
      "mask += [False] + [is_trained(message)] * len(content)", LOADING),
    M("end-token-untrained", "7", "<|im_end|> is not in SFT's mask", "text/chatml.py",
      "mask += [is_trained(message)] * (len(content) + 1)",
      "mask += [is_trained(message)] * len(content) + [False]", LOADING),
    M("weight-0-trained", "7", "an answer of weight 0 is trained on", "text/messages.py",
      'message["role"] == "assistant" and message.get("weight", 1) != 0', 'message["role"] == "assistant"', "data/test_weights.py"),
    M("indentation-lost", "7", "the first line of an answer loses its indentation", "text/messages.py",
      'return text[blank.rfind("\\n") + 1 :]', "return text.lstrip()", "data/test_weights.py"),
    M("foreign-forged", "7", "a user's control token is one in another model's template", "text/foreign/rendering.py",
      "(text[start:stop], True)", "(text[start:stop], False)", "text/test_foreign_templates.py"),
    M("foreign-end-untrained", "7", "the end of a turn is not trained in another model's template", "text/foreign/rendering.py",
      "return start, found + 1", "return start, found", "text/test_foreign_templates.py"),
    M("foreign-prefix-unchecked", "7", "answers of a template that rewrites earlier turns are taken by prefixes", "text/foreign/layouts.py",
      "if all(t.startswith(b) and t and whole.startswith(t) for b, t in pairs):", "if True:", "text/test_foreign_templates.py"),
    M("foreign-tools-dropped", "7", "a template without tools loses them", "text/foreign/rendering.py",
      'or (message.get("tools") and not renders["tools"])', "", "text/test_foreign_templates.py"),
    M("added-nulls-trained", "7", "nulls that Arrow added to arguments are trained on", "data/records/nulls.py",
      "if not any(_has_null(call", "if True or any(_has_null(call", "data/test_tool_calls.py"),
    M("numbers-respelled", "7", "1.10 in an argument becomes 1.1", "data/sources/json_rows.py",
      "value.spelling = text", "value.spelling = repr(float(text))", "data/test_tool_calls.py"),
    M("chat-template-differs", "7", "chat asks without the header that training had", "stages/chat.py",
      "chat.render(self.tokenizer, self.messages, generation_prompt=True)", "chat.render(self.tokenizer, self.messages)", LOADING),
    M("chat-drops-system", "7", "chat sends the last message alone", "stages/chat.py",
      "chat.render(self.tokenizer, self.messages, gen", "chat.render(self.tokenizer, self.messages[-1:], gen", LOADING),
    M("exported-template-differs", "7", "the exported template forgets a line break", "text/template.py",
      "{{- '\\\\n' -}}\n{%- endfor -%}", "{%- endfor -%}", "text/test_chat.py::test_template_writes_chatml"),

    # --- 8: random weights ---------------------------------------------------------------------------------------------------------
    M("reward-model-made-up", "8", "a missing reward model becomes one with random weights", "stages/align_online.py",
      """        scorer, parent = load_reward_model(tokenizer, config.reward_model, device, fast=invocation.fast)
        facts = {"reward_model": parent.facts()}""",
      """        try:
            scorer, parent = load_reward_model(tokenizer, config.reward_model, device, fast=invocation.fast)
            facts = {"reward_model": parent.facts()}
        except Exception:
            from tinyllm.model.config import ModelConfig
            scorer = SequenceScorer(ModelConfig(vocab_size=tokenizer.vocab_size))""",
      f"{STAGE}a_missing_reward_model_is_an_error_before_training"),
    M("foreign-reward-model", "8", "a reward model that reads other tokens is taken", "stages/common.py",
      "if own.sha256 != tokenizer.sha256:", "if False:", f"{STAGE}only_a_matching_reward_model_is_accepted"),
    M("missing-tensors", "8", "tensors that are not in the file stay random", "model/tensors.py",
      'found = [f"{name} is missing" for name in wanted.keys() - there.keys()]', "found = []", "train/test_mismatched_checkpoints.py"),
    M("resume-without-weights", "8", "a resumed run goes on with fresh weights", "train/checkpointing.py",
      "        self.job.files.restore(folder)\n", "", TRAINER),
    M("resume-without-critic", "8", "a resumed PPO goes on with a fresh critic", "stages/checkpoint_files.py",
      "tensors.copy_into(self.critic.state_dict(), [path], path)", "pass",
      f"{STAGE}a_resumed_run_equals_the_uninterrupted_one_with_critic_and_rollouts"),
    M("damaged-resume", "8", "resume takes a checkpoint that does not verify", "train/checkpoint.py",
      "            verify(path)\n", "            pass\n", "train/test_checkpoint.py"),
    M("damaged-parent", "8", "a stage starts from a checkpoint that does not verify", "stages/parents.py",
      "        checkpoint.verify(folder)\n", "        pass\n", PARENTS),
    M("rehearsal-parent", "8", "a real run starts from a rehearsal's weights", "stages/parents.py",
      "if is_fast_dev_run(run, read_facts(run)) == fast and _completed(run)]", "if _completed(run)]", PARENTS),
    M("unfinished-parent", "8", "a stage starts from a run that never got beyond its first weights", "stages/parents.py",
      "== fast and _completed(run)]", "== fast]", PARENTS),
    M("damaged-starts-over", "8", "a run without a checkpoint that verifies starts over", "train/checkpointing.py",
      "        if dist.is_main() and damaged and newest is None:\n", "        if False:\n", TRAINER),

    # --- 9: figures ----------------------------------------------------------------------------------------------------------------
    M("mean-of-batch-means", "9", "held-out figures are means of batch means", "stages/held_out.py",
      "Mean(detached(mean).total * (not idle), detached(mean).count * (not idle))",
      "Mean(detached(mean).value * (not idle), 1.0 * (not idle))", PRETRAIN),
    M("mean-of-micro-batch-means", "9", "ORPO's held-out token mean is taken within each micro-batch", "data/datasets/batches.py",
      "yield self.dataset.collate(part, 0, whole)", "yield self.dataset.collate(part, 0, part)",
      f"{OFFLINE}::test_the_held_out_loss_does_not_depend_on_the_rows_in_a_forward_pass"),
    M("one-rank-measured", "9", "rank 0's share stands for all held-out records", "stages/held_out.py",
      "return pool_over_ranks(pooled, engine.device)", "return pooled", COMMON),
    M("one-rank-judged", "9", "rank 0's answers stand for all", "rollout/judging.py",
      "return pool_over_ranks(pooled, policy.lm_head.weight.device)", "return pooled", COMMON),
    M("best-is-last", "9", "every evaluation becomes the best", "train/trainer.py",
      "return not math.isfinite(best) or sign * figures[name] < sign * best", "return bool(sign)", TRAINER),
    M("nan-stays-best", "extra", "a best figure recorded as NaN is never beaten", "train/trainer.py",
      "return not math.isfinite(best) or sign * figures[name] < sign * best",
      'return "best" not in self.history or sign * figures[name] < sign * best', TRAINER),
    M("nan-selects", "extra", "a held-out figure that is NaN selects the best checkpoint", "train/nonfinite.py",
      "elif not math.isfinite(_value(figure)):", "elif False:", TRAINER),
    M("adapter-dropout-overwritten", "extra", "the blocks' dropout is also the adapter's", "model/transformer.py",
      "        if isinstance(module, Block):\n            module.dropout.p = probability",
      "        if isinstance(module, nn.Dropout):\n            module.p = probability", "model/test_lora.py"),
    M("space-in-front-counted", "extra", "the space that an encoder puts in front counts as a byte", "text/tokenizer.py",
      "found.append(int(lengths[ids].sum()) - in_front)", "found.append(int(lengths[ids].sum()))",
      "text/test_tokenizer.py"),
    M("best-upside-down", "9", "a reward is minimised when the best checkpoint is chosen", "train/trainer.py",
      'sign = 1 if direction == "min" else -1', "sign = 1", TRAINER),

    # --- 10: ranks -----------------------------------------------------------------------------------------------------------------
    M("unwrapped-forward", "10", "the forward pass goes around the hooks of the model", "model/transformer.py",
      "hidden = self(ids[:, :length],", "hidden = self.model(ids[:, :length],",
      COMMON),
    M("gradients-never-meet", "10", "ranks never exchange their gradients", "train/engine.py",
      "set_requires_gradient_sync(number == len(batches) - 1)", "set_requires_gradient_sync(False)", COMMON),
    M("every-rank-all-records", "10", "every rank trains on all records", "data/datasets/batches.py",
      "chosen[self.rank :: self.world_size]", "chosen[:]", "data/test_batches.py"),

    # --- 11: resume files, LoRA, warm-up -------------------------------------------------------------------------------------------
    M("half-weights", "11", "weights are saved as fp16", "model/hub.py",
      "{k: v.detach().contiguous().cpu() for", "{k: v.detach().half().contiguous().cpu() for", TRAINER),
    M("half-optimizer", "11", "optimizer state is saved as bf16", "train/checkpointing.py",
      "{k: v.contiguous() for k, v in self.engine.state().items()}",
      "{k: v.bfloat16().contiguous() for k, v in self.engine.state().items()}", TRAINER),
    M("lora-square-only", "11", "LoRA adapts square layers only", "model/adapters/plan.py",
      "for name, settings in chosen.items()}",
      "for name, settings in chosen.items() if len(set(weight_of(model, known[name]).shape)) == 1}", LORA),
    M("no-warmup", "11", "the learning rate starts at its peak", "train/schedules.py",
      "if step < config.warmup_steps:", "if step < 0:", f"train/test_optimizers.py {TRAINER}"),

    # --- 12: pickles, typos --------------------------------------------------------------------------------------------------------
    M("pickled-optimizer", "12", "optimizer state is saved with torch.save", "train/checkpointing.py",
      'save_file({k: v.contiguous() for k, v in self.engine.state().items()}, trainer / "optimizer.safetensors")',
      'torch.save(self.engine.state(), trainer / "optimizer.pt")', f"{TRAINER}::test_a_run_directory_holds_no_pickle"),
    M("pickled-weights-read", "12", "weights that are pickles are unpickled", "model/hub.py",
      "    row, files = ARCHITECTURES[config.model_type], tensors.files_of(folder)\n",
      "    row, files = ARCHITECTURES[config.model_type], tensors.files_of(folder)\n    try:\n"
      "        torch.load(files[0], weights_only=False)\n"
      "    except Exception:\n        pass\n", "test_no_code.py"),
    M("setting-with-default", "12", "a setting is read by getattr with a default", "train/engine.py",
      "min(1.0, self.config.clip_norm / (norm + 1e-12))", 'min(1.0, getattr(self.config, "clip_norm", 1.0) / (norm + 1e-12))', PACKAGE),
    M("typos-ignored", "12", "unknown keys of a configuration are passed over", "config/load.py",
      '                self.unknown[len(self.problems)] = (path, source, node.line)\n'
      '                self.problems.append(source.problem("unknown key", ""))\n', "", PACKAGE),
    M("override-suggested", "extra", "a typo is told an option that switches a check off", "cli/suggestions.py",
      "if meaning.key in _overrides(command):", "if not command:", "cli/test_suggestions.py"),
    M("name-guessed", "extra", "the first of several runs of one name is taken", "train/names.py",
      "    if len(usable) == 1:\n        return Found", "    if usable:\n        return Found", "train/test_names.py"),
    M("typos-in-python-ignored", "12", "unknown settings given in Python are passed over", "config/base.py",
      'extra="forbid"', 'extra="ignore"', "config/test_load.py::test_settings_made_in_python_are_strict_too"),
]
