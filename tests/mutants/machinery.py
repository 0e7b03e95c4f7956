"""Everything around the losses: engine, batches, packing, LoRA, rollouts, tokens, resuming."""

from __future__ import annotations

from mutants.kind import Mutant

M = Mutant
LORA, TRANSFORMER, GENERATE = (f"model/test_{name}.py" for name in ("lora", "transformer", "generate"))
ENGINE, OPTIM, BATCHES = "train/test_engine.py", "train/test_optimizers.py", "data/test_batches.py"
EVERY, COMMON, FIT = "algorithms/test_every.py", "stages/test_common.py", "train/test_trainer.py"
PADDING, SOURCE = "rollout/test_padding.py", "rollout/test_source.py"
SCORING = "rollout/test_scoring.py"
STAGE = "stages/test_align_online.py::test_"
FOREIGN = "text/test_foreign_tokenizers.py::test_"
FILES = "text/test_foreign_files.py::test_"
PACKED = f"{EVERY}::test_packed_rows_equal_separate_rows"

# fmt: off
MUTANTS = [
    # --- engine and optimizer ------------------------------------------------------------------------------------------------------
    M("gradient-undivided", "extra", "gradients are not divided by the count", "train/engine.py",
      "scale = dist.world_size() / float(loss.count)", "scale = float(dist.world_size())",
      f"{ENGINE}::test_the_update_follows_the_gradient_of_the_mean"),
    M("gradient-per-micro-batch", "extra", "each micro-batch is divided by its own count: a mean of means", "train/engine.py",
      "        loss.total.backward()\n", "        (loss.total / loss.count * 5).backward()\n",
      f"{ENGINE}::test_the_update_follows_the_gradient_of_the_mean"),
    M("gradient-not-times-ranks", "extra", "the ranks' average is taken for their sum", "train/engine.py",
      "scale = dist.world_size() / float(loss.count)", "scale = 1 / float(loss.count)", COMMON),
    M("no-clipping", "extra", "gradients are not clipped", "train/engine.py",
      "scale * min(1.0, self.config.clip_norm / (norm + 1e-12))", "scale",
      f"{ENGINE}::test_clipping_scales_the_gradient_and_reports_its_norm"),
    M("nan-goes-through", "extra", "what is not finite is trained on", "train/engine.py",
      "if not (torch.isfinite(torch.tensor([norm, loss.value])).all()):", "if False:",
      f"{ENGINE}::test_a_non_finite_loss_changes_nothing"),
    M("gradients-pile-up", "extra", "gradients are not cleared between steps", "train/engine.py",
      "        self.zero_grad()\n        self.updates += 1\n", "        self.updates += 1\n",
      f"{ENGINE}::test_state_and_restore_continue_bitwise"),
    M("metrics-averaged", "extra", "metrics of micro-batches overwrite each other", "train/engine.py",
      "pooled[name] = pooled[name] + mean if name in pooled else mean", "pooled[name] = mean",
      f"{ENGINE}::test_metrics_are_pooled_not_averaged"),
    M("pool-of-means", "extra", "adding two means averages them", "mean.py",
      "Mean(self.total + other.total, self.count + other.count)", "Mean(self.value + other.value, 2)", "test_mean.py"),
    M("nan-from-padding", "extra", "masked-out values are multiplied by zero", "mean.py",
      "values.where(mask, 0.0).sum()", "(values * mask).sum()", "test_mean.py"),
    M("resume-no-optimizer", "extra", "resume forgets the optimizer's state", "train/engine.py",
      "optimizer_of[id(parameter)].state[parameter][kind] = value.to(device)", "value.to(device)", FIT),
    M("resume-no-step", "extra", "resume forgets how far the schedule was", "train/engine.py",
      "        self.updates = updates\n", "        self.updates = 0 * updates\n", FIT),
    M("minimum-ignored", "extra", "the learning rate falls to zero", "train/schedules.py",
      "(config.min_lr_ratio + (1 - config.min_lr_ratio) * height)", "height", OPTIM),
    M("gains-decay", "extra", "weight decay on gains and biases", "train/optimizers/adamw.py",
      '"weight_decay": 0.0}', '"weight_decay": config.weight_decay}', OPTIM),
    M("evaluated-with-dropout", "extra", "dropout is on while a model is judged", "train/trainer.py",
      "            self.job.model.eval()\n", "", FIT),

    # Positions that go on counting from one packed document to the next are no mistake here: rotary attention sees distances alone.
    # --- batches and packing -------------------------------------------------------------------------------------------------------
    M("packing-leaks", "extra", "packed documents see each other", "algorithms/next_token.py",
      "attend=batch.documents", "attend=None", PACKED),
    M("packing-first-token", "extra", "a packed document's first token is predicted from the one before", "data/datasets/packing.py",
      "np.append(False, mask[1:])", "mask", BATCHES),
    M("mask-by-padding-only", "extra", "a mask hides padding but not other documents", "model/positions.py",
      "same = attend[:, start:, None] == attend[:, None, :]", "same = attend[:, start:, None] > -1", PACKED),
    M("mask-sees-future", "extra", "with a mask, attention sees the future", "model/positions.py",
      "seen = keys <= queries", "seen = keys >= 0", TRANSFORMER),
    M("positions-not-counted", "extra", "cached tokens all stand at the first position", "model/transformer.py",
      "rotary.at(positions[:, start:], lengths[:, start:], start + length)",
      "rotary.at(positions[:, :length], lengths[:, start:], start + length)", GENERATE),
    M("positions-across-padding", "extra", "masked rows have no positions", "model/positions.py",
      "return place - first, last - first + 1", "return 0 * place, last - first + 1", TRANSFORMER),
    M("epochs-alike", "extra", "every epoch has the first one's order", "data/datasets/batches.py",
      "Philox(key=[self.seed & (2**64 - 1), epoch])", "Philox(key=[self.seed & (2**64 - 1), 0])", BATCHES),
    M("rows-cut-short", "extra", "a minibatch cuts its longest answer's last token off", "data/datasets/batches.py",
      ".nonzero()[:, 1].max()) + 1)", ".nonzero()[:, 1].max()))",
      "algorithms/test_knobs.py::test_selected_rows_keep_their_last_token"),
    M("tokens-scored-twice", "extra", "evaluation scores a window's overlap again", "data/datasets/datasets.py",
      "[position >= scored for position", "[position > 0 for position", BATCHES),

    # --- LoRA ----------------------------------------------------------------------------------------------------------------------
    M("lora-unscaled", "extra", "LoRA is scaled by alpha alone", "model/config.py",
      "else self.alpha / self.r", "else self.alpha", LORA),
    M("rslora-alpha-over-r", "extra", "rsLoRA is scaled by alpha/r", "model/config.py",
      "self.alpha / math.sqrt(self.r) if", "self.alpha / self.r if", LORA),
    M("merge-unscaled", "extra", "merging forgets the scaling", "model/adapters/layers.py",
      "self.remaining().to(wide) + self.scaling * product", "self.remaining().to(wide) + product", LORA),
    M("merge-no-magnitude", "extra", "merging forgets DoRA's magnitude", "model/adapters/layers.py",
      "        if self.dora:\n", "        if False:\n", LORA),
    M("dora-ignored", "extra", "DoRA's magnitude is ignored", "model/adapters/layers.py",
      "        if not self.dora:  #", "        if True:  #", LORA),
    M("branch-unscaled", "extra", "the branch of LoRA is added without its scaling", "model/adapters/layers.py",
      ".T, alpha=self.scaling)", ".T)", LORA),
    M("dora-norm-gradient", "extra", "DoRA's norm takes a gradient", "model/adapters/layers.py",
      "self.adapted().detach().norm(dim=1)", "self.adapted().norm(dim=1)", LORA),
    M("base-trains-too", "extra", "LoRA leaves the base trainable", "model/lora.py",
      "    model.requires_grad_(False)\n", "", LORA),
    M("reference-with-adapter", "extra", "the reference of an adapted policy keeps its adapter", "model/lora.py",
      "        layer.enabled = False\n", "        layer.enabled = True\n", LORA),

    # --- rollouts and sampling -----------------------------------------------------------------------------------------------------
    M("sampler-unwatched", "extra", "a sampler that disagrees with training goes unnoticed", "rollout/source.py",
      "if not gap.value <= self.config.tolerance:", "if False:", SOURCE),
    M("sampler-temperature", "extra", "the sampler ignores the temperature", "model/generate.py",
      "_scaled(logits, sampling.temperature)", "logits", GENERATE),
    M("sampler-padding", "extra", "a left-padded row's padding is attended to once rows are dropped", "model/generate.py",
      "rows, ids, attend, text = rows[writing], ids[writing], attend[writing], text[writing]",
      "rows, ids, attend, text = rows[writing], ids[writing], attend[: left], text[writing]",
      f"{PADDING} {GENERATE}"),
    M("cache-of-other-rows", "extra", "rows that go on read the cache of rows that stopped", "model/generate.py",
      "cache.keep(writing.nonzero().squeeze(1))", "cache.keep(torch.arange(left))", f"{PADDING} {GENERATE}"),
    M("seed-ignored", "extra", "the sampler's seed does nothing", "model/generate.py",
      ".manual_seed(sampling.seed)", ".manual_seed(0)", GENERATE),
    M("groups-mixed", "extra", "answers to different prompts share a group", "rollout/source.py",
      "torch.arange(len(answers), device=self.device) // self", "torch.arange(len(answers), device=self.device) % self", SOURCE),
    M("minibatch-twice", "extra", "every minibatch holds the same answers", "rollout/source.py",
      "mine = order[minibatch :: self.config.minibatches]", "mine = order[:: self.config.minibatches]", SOURCE),
    M("unfinished-rewarded", "extra", "an answer cut off by the length limit is rewarded for it", "rollout/judge.py",
      "total -= self.unfinished_penalty * unfinished", "total += self.unfinished_penalty * unfinished", PADDING),
    M("scorer-weight-ignored", "extra", "the reward model's weight is ignored", "rollout/judge.py",
      "total += self.scorer_weight * scores", "total += scores", f"{STAGE}the_reward_is_the_score_of_the_reward_model_at_the_last_token"),
    M("watched-rewarded", "extra", "a reward of weight 0 is part of the sum", "rollout/judge.py",
      "            if weight:\n                total += weight * scores",
      "            if True:\n                total += weight * scores", SCORING),
    M("abstaining-counts", "extra", "an answer that a reward does not apply to counts in its mean", "rollout/judge.py",
      "Mean(scores.sum(), applies.sum())", "Mean(scores.sum(), len(rows))", SCORING),
    M("columns-shared", "extra", "a reward can change the data", "rollout/scoring.py",
      "copy.deepcopy(dict(row.columns)), row.text", "row.columns, row.text", SCORING),
    M("sign-lost", "extra", "a minus before a number is not read", "rollout/answers/quantities.py",
      'value = -value if sign == "-" else value', "value = value", "rollout/test_answers.py"),
    M("prompts-repeat", "extra", "every rollout answers the same prompts", "rollout/source.py",
      "first = number * self._prompts_per_round + self._offset", "first = self._offset", SOURCE),
    M("critic-not-copied", "extra", "the critic starts at random though there is a reward model", "stages/align_online.py",
      "if scorer is not None and scorer.config == policy.config:", "if False:", f"{STAGE}the_critic_starts_from_the_reward_model"),

    # --- tokens --------------------------------------------------------------------------------------------------------------------
    M("control-tokens-from-text", "extra", "a user's <|im_end|> ends the turn", "text/tokenizer.py",
      "self._text.encode_batch_fast(", "self._whole.encode_batch_fast(", "text/test_chat.py::test_no_content_forges_a_control_token"),
    M("pad-is-end", "extra", "padding is the end token", "text/special_tokens.py",
      'PAD = "<|pad|>"', 'PAD = "<|im_end|>"', "text/test_tokenizer.py::test_trained_vocabulary_has_control_tokens_first_and_every_byte"),
    M("never-stops", "extra", "<|im_end|> does not end an answer", "text/special_tokens.py",
      "found = [im_end, *(", "found = [*(", "data/test_loading.py"),
    M("other-ends-forgotten", "extra", "the ends in generation_config.json do not end an answer", "text/special_tokens.py",
      "(*named, eos) if named", "(eos,) if named", f"{FOREIGN}ends_starts_and_padding_are_the_checkpoints"),
    M("forged-turn-in-template", "extra", "a user's control token in a rendered template is read as one", "text/segments.py",
      "if any(_overlaps(span, users) for", "if any(False for", f"{FOREIGN}what_users_spell_in_a_rendered_template_stays_text"),
    M("added-tokens-forgotten", "extra", "an added token that is text is split into pieces", "text/vocabulary.py",
      'if old in protected}', 'if old}',
      f"{FOREIGN}text_like_added_tokens_are_text"),
    M("settings-not-kept", "extra", "a model's generation settings are replaced when it is saved", "model/hub.py",
      "generation = original.generation or generation", "pass", f"{FILES}ids_and_generation_settings_are_written_as_they_came"),
]
