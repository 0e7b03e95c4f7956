"""`tinyllm eval`: how good a checkpoint is on held-out data. Without a task: perplexity and bits per byte, every token counted once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from tinyllm import dist
from tinyllm.config import dump
from tinyllm.data import records, world
from tinyllm.errors import UserError
from tinyllm.model import hub
from tinyllm.rollout import rewards
from tinyllm.stages.common import Call, begin, tokenizer_of
from tinyllm.stages.config import EvalConfig
from tinyllm.stages.evals.items import Question
from tinyllm.stages.evals.likelihood import front_of
from tinyllm.stages.evals.results import Measured, in_lm_eval_s_shape
from tinyllm.stages.evals.sheets import Sheet, read_all, world_count
from tinyllm.stages.evals.tasks import TASKS, Bench, predicted
from tinyllm.stages.parents import PRETRAIN, Parent, find
from tinyllm.stages.reading import is_world
from tinyllm.train.progress import say


def run(config: EvalConfig, call: Call) -> dict[str, Any]:
    started = time.monotonic()
    device = begin(config)
    parent = find("eval", config.parent, fast=call.fast)
    model = hub.load_causal_lm(parent.folder, device).eval()
    tokenizer = tokenizer_of(model, parent.folder)
    parent.unchanged()
    chats = tokenizer.has_chat_tokens and f"/{PRETRAIN}/" not in f"/{parent.folder.as_posix()}"
    bench = Bench(model, tokenizer, front_of(parent.folder), chats, config)
    found = _tasks(bench, parent) if config.task else _text(bench)
    dist.barrier()
    return {
        "schema_version": 1,
        "stage": "eval",
        "checkpoint": parent.folder.as_posix(),
        "manifest_sha256": parent.sha256 or None,
        "seconds": round(time.monotonic() - started, 2),
        **found,
    }


# --- without a task --------------------------------------------------------------------------------------------------------------


def _text(bench: Bench) -> dict[str, Any]:
    texts = _texts(bench.config)
    figures, uniform, context = predicted(bench, texts)
    return {
        "documents": len(texts),
        "context": context,
        **figures,
        "moved": {"what": "bits per byte (from: knowing nothing)", "from": uniform, "to": figures["bits_per_byte"]},
    }


def _texts(config: EvalConfig) -> list[str]:
    data, found = config.data, []
    sources = data.val or data.train
    for source in sources:
        if is_world(source):
            count = world_count(source, config.rows)
            found += [row["text"] for row in world.documents(count, seed=config.seed, split="val")]
        else:
            reader = records.read(
                [source],
                "documents",
                format=data.format,
                field=data.field,
                on_bad_line=data.on_bad_line,
                encoding=data.encoding,
            )
            found += [record.text for record in reader if isinstance(record, records.Document)]
            for line in reader.report.lines():
                say(line)
    if not found:
        raise UserError("no documents to evaluate on", where="data.val", fix="name a file: --set data.val=[file.txt]")
    return found[: config.rows]


# --- with tasks ------------------------------------------------------------------------------------------------------------------


def _tasks(bench: Bench, parent: Parent) -> dict[str, Any]:
    config = bench.config
    tasks = list(dict.fromkeys(config.task))
    sheets = _sheets(tasks, config)
    kind = "a chat model" if bench.chats else "a base model: questions are text to continue"
    say(f"evaluating {parent.folder} ({kind})")
    measured: list[Measured] = []
    for task in tasks:
        for sheet in (s for s in sheets if s.kind == TASKS[task].reads):
            score = TASKS[task].measure(bench, sheet)
            measured.append(Measured(task, sheet, score, bench.through_chat(sheet)))
            name, estimate = next(iter(score.figures.items()))
            say(f"{task} {sheet.name}: {name} {estimate.value:.4g} (knowing nothing: {score.baseline:.4g})")
    found = in_lm_eval_s_shape(measured)
    first = next(iter(measured[0].score.figures))
    found["config"] = {
        "model": "tinyllm",
        "model_args": f"pretrained={parent.folder.as_posix()}",
        "batch_size": config.batch_size,
        "device": str(bench.model.lm_head.weight.device),
        "limit": config.rows,
        "random_seed": config.seed,
        "settings": dump(config),
    }
    found["moved"] = {
        "what": f"{first if first == tasks[0] else f'{tasks[0]} {first}'} (from: knowing nothing)",
        "from": found["baseline"][tasks[0]],
        "to": found["results"][tasks[0]][f"{first},none"],
    }
    return found


def _sheets(tasks: Sequence[str], config: EvalConfig) -> list[Sheet]:
    """The data, with every column that a rule will ask for."""
    sheets = read_all(list(dict.fromkeys(TASKS[task].reads for task in tasks)), config)
    for task in tasks:
        for rule in TASKS[task].rules(config):
            for question in (q for s in sheets if s.kind == TASKS[task].reads for q in s.items):
                _check(rule, question)
    return sheets


def _check(rule: str, question: Question) -> None:
    missing = next((column for column in rewards.NEEDS.get(rule, ()) if column not in question.columns), None)
    if missing:
        what = (
            f"the rule {rule} needs a column {missing!r}; beside the question there is: {', '.join(question.columns)}"
        )
        fix = "use --task exact_match" if rule == "gold" else f"name it: --set data.field.{missing}=COLUMN"
        raise UserError(what, where=question.place, fix=fix)
