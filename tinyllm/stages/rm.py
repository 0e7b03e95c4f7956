"""`tinyllm rm`: a reward model from preference pairs, on the supervised model's decoder."""

from __future__ import annotations

from functools import partial
from typing import Any

from tinyllm.algorithms import bradley_terry
from tinyllm.errors import UserError
from tinyllm.model import hub
from tinyllm.stages import preflight
from tinyllm.stages.common import Call, Files, begin, facts_of, held_out, load_policy, result, source_of
from tinyllm.stages.config import RmConfig
from tinyllm.stages.fit import Fit, Job
from tinyllm.stages.parents import REWARD, RUNS
from tinyllm.stages.reading import preferences_from, read_split, room_of


def run(config: RmConfig, call: Call) -> dict[str, Any]:
    if config.lora is not None:
        raise UserError("reward models are trained whole", where="lora", fix="remove the section lora")
    device = begin(config)
    policy, tokenizer, parent = load_policy("rm", config, call, device)
    train, val, sources = read_split(config.data, "pairs", config.seed, noise=config.noise)
    room = room_of(config, policy.config.max_position_embeddings)
    dataset = preferences_from(train, tokenizer, room, "train")
    held = preferences_from(val, tokenizer, room, "val")
    preflight.settle(preflight.batch(len(dataset), config.train.batch_size, "pairs"))
    model = hub.scorer_from(policy, config.seed)
    folder = RUNS / REWARD / config.name
    run = call.open(folder, facts_of(model, tokenizer, sources, config.seed, parent))
    files = Files(model, tokenizer)
    job = Job(
        title="rm",
        model=model,
        loss=partial(bradley_terry.loss, config.bradley_terry),
        source=source_of(dataset, config),
        evaluate=held_out(source_of(held, config), config),
        write=files.write,
        restore=files.restore,
        train=config.train,
        optim=config.optim,
        seed=config.seed,
    )
    fitted = Fit(run, job).go()
    return result("rm", fitted, folder, "accuracy")
