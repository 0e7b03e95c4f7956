"""`tinyllm sft`: conversations; the loss covers what the assistant said, its end token included. Full weights or LoRA."""

from __future__ import annotations

from functools import partial
from typing import Any

from tinyllm.algorithms import next_token
from tinyllm.stages import preflight
from tinyllm.stages.common import Call, Files, base_of, begin, facts_of, held_out, load_policy, result, source_of
from tinyllm.stages.config import SftConfig
from tinyllm.stages.fit import Fit, Job
from tinyllm.stages.judging import answer_figures, gold_judge
from tinyllm.stages.parents import RUNS, SFT_FULL, SFT_LORA
from tinyllm.stages.reading import answers_from, is_world, prompts_from, read_split, room_of
from tinyllm.train.engine import Engine


def run(config: SftConfig, call: Call) -> dict[str, Any]:
    device = begin(config)
    model, tokenizer, parent = load_policy("sft", config, call, device)
    train, val, sources = read_split(
        config.data, "conversations", config.seed, wrong=config.wrong, flawed=config.flawed
    )
    room = room_of(config, model.config.max_position_embeddings)
    dataset = answers_from(train, tokenizer, room, "train", packing=config.packing)
    loss_on_val = held_out(source_of(answers_from(val, tokenizer, room, "val"), config), config)
    preflight.settle(preflight.batch(len(dataset), config.train.batch_size, "rows" if config.packing else "records"))
    evaluate = loss_on_val
    if all(map(is_world, config.data.train)):  # the world knows what a right answer is
        _, asked, _ = read_split(
            config.data.model_copy(update={"train": ("world:1",), "val": ()}), "prompts", config.seed
        )
        prompts = prompts_from(asked[: config.train.eval_rows], tokenizer, config.data.max_length, "questions")
        judge = gold_judge(tokenizer)

        def evaluate(engine: Engine) -> dict[str, float]:
            return loss_on_val(engine) | answer_figures(model, prompts, judge, tokenizer, temperature=0.0)

    folder = RUNS / (SFT_LORA if config.lora else SFT_FULL) / config.name
    run = call.open(folder, facts_of(model, tokenizer, sources, config.seed, parent))
    base = base_of(model, tokenizer, parent, folder) if config.lora else ""
    files = Files(model, tokenizer, adapter=config.lora, base=base)
    job = Job(
        title="sft (LoRA)" if config.lora else "sft",
        model=model,
        loss=partial(next_token.loss, next_token.Settings()),
        source=source_of(dataset, config),
        evaluate=evaluate,
        write=files.write,
        restore=files.restore,
        train=config.train,
        optim=config.optim,
        seed=config.seed,
    )
    fitted = Fit(run, job).go()
    return result("sft-lora" if config.lora else "sft", fitted, folder, "loss")
