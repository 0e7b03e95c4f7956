"""`tinyllm eval`: perplexity and bits per byte of a checkpoint on held-out text, every token scored once; with --task, benchmarks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from tinyllm import distributed as dist
from tinyllm.config import dump
from tinyllm.console import say
from tinyllm.data import world
from tinyllm.data.config import DataConfig, is_world
from tinyllm.data.record_source import BY_HASH, TEST, TRAIN, VAL, RecordSource, share_for_test
from tinyllm.data.records.types import Document
from tinyllm.data.spelling import SpelledDocuments
from tinyllm.data.tokens.documents import documents_for_test, held_out_documents
from tinyllm.errors import UserError
from tinyllm.evals import tasks
from tinyllm.evals.benchmark import Benchmark, read_all, read_texts, world_count
from tinyllm.evals.conventions import conventions
from tinyllm.evals.evaluator import Evaluator
from tinyllm.evals.formats import Question
from tinyllm.evals.results import BenchmarkResult, lm_eval_results
from tinyllm.evals.settings import EvalSettings
from tinyllm.evals.task import Task
from tinyllm.rollout import rewards
from tinyllm.stages.common import load_language_model, set_up
from tinyllm.stages.origin import is_chat_model
from tinyllm.stages.parents import Parent, find_checkpoint
from tinyllm.text.chat_format import choose
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train.run import Invocation


def run(config: EvalSettings, invocation: Invocation) -> dict[str, Any]:
    """Evaluate a checkpoint. Without tasks return the metrics of held-out text, with tasks an object in the shape of lm-eval's."""
    started = time.monotonic()
    device = set_up(config)
    parent = find_checkpoint("eval", config.parent, fast=invocation.fast, base=config.base)
    model, tokenizer = load_language_model(parent, device)
    chosen = choose(config.chat, tokenizer, trains=False)
    tokenizer = chosen.tokenizer
    if chosen.line and config.task:
        say(chosen.line)
    chat_model = is_chat_model(parent.folder, tokenizer)
    around = conventions(tokenizer, config)
    say(around.line())
    evaluator = Evaluator(model.eval(), tokenizer, around, chat_model, config)
    found = _run_tasks(evaluator, parent) if config.task else _score_text(evaluator)
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


def _score_text(evaluator: Evaluator) -> dict[str, Any]:
    split, texts = load_texts(evaluator.config, evaluator.tokenizer)
    metrics = evaluator.text_metrics(texts)
    return {
        "documents": len(texts),
        "split": split,
        "context": evaluator.context,
        "start": evaluator.conventions.names["start"],
        "score_end": evaluator.conventions.names["score_end"],
        **metrics,
        "uniform": evaluator.uniform_bits_per_byte(metrics),
        "moved": {"what": f"bits per byte ({split})", "from": None, "to": metrics["bits_per_byte"]},
    }


def load_texts(config: EvalSettings, tokenizer: Tokenizer) -> tuple[str, list[str]]:
    """Return the name of a split, and its documents: test where there is one, as pretraining divides them, otherwise val."""
    data = config.data
    if not data.val and not data.test and data.train:
        return _split_off(config, tokenizer)
    found: list[str] = []
    documents = SpelledDocuments(tokenizer, data.on_bad_line)
    for source in data.test or data.val:
        if is_world(source):
            count = world_count(source, config.rows)
            found += [row["text"] for row in world.documents(count, seed=config.seed, split=TEST)]
            say(f"{source}: texts of the bundled world; for a text of your own --set 'data.val=[FILE]'")
        else:
            texts, report = read_texts(source, config)
            found += documents.of({source: texts})[source]
            for line in report.lines():
                say(line)
    documents.tell()
    if not found:
        raise UserError("no documents to evaluate on", where="data.val", fix="name a file: --set 'data.val=[file.txt]'")
    if data.test or all(map(is_world, data.val)):
        return TEST, found[: config.rows]
    return _divide(found, data, tokenizer, config.rows)


def _split_off(config: EvalSettings, tokenizer: Tokenizer) -> tuple[str, list[str]]:
    records = RecordSource(config.data, "documents", config.seed)
    texts: dict[str, list[str]] = {TRAIN: [], VAL: [], TEST: [], BY_HASH: []}
    for split, record in records:
        assert isinstance(record, Document)
        texts[split].append(record.text)
    for line in records.lines():
        say(line)
    held_out = held_out_documents(texts[BY_HASH], config.data.val_fraction)
    say(f"{len(held_out + texts[VAL] + texts[TEST]):,} of {sum(map(len, texts.values())):,} documents are held out")
    documents = SpelledDocuments(tokenizer, config.data.on_bad_line)  # those of train are not encoded
    kept = documents.of({"": held_out, VAL: texts[VAL], TEST: texts[TEST]})
    held_out, texts[VAL], texts[TEST] = (list(some) for some in kept.values())
    documents.tell()
    if texts[TEST]:
        return TEST, texts[TEST][: config.rows]
    return _divide(held_out or texts[VAL], config.data, tokenizer, config.rows)


def _divide(texts: list[str], data: DataConfig, tokenizer: Tokenizer, limit: int) -> tuple[str, list[str]]:
    """Return those of the held-out documents that pretraining keeps for test; all, as "val", where it keeps none."""
    is_test = documents_for_test(texts, tokenizer, share_for_test(data))
    found = [text for text, chosen in zip(texts, is_test, strict=True) if chosen]
    if found:
        say(f"{len(found):,} of {len(texts):,} held-out documents are the test split")
    return (TEST, found[:limit]) if found else (VAL, texts[:limit])


# --- with tasks ------------------------------------------------------------------------------------------------------------------


def _run_tasks(evaluator: Evaluator, parent: Parent) -> dict[str, Any]:
    config = evaluator.config
    chosen = [tasks.load(name) for name in dict.fromkeys(config.task)]
    benchmarks = _load_benchmarks(chosen, config)
    kind = "chat model" if evaluator.is_chat_model else "base model: questions are text to continue"
    say(f"evaluating {parent.folder} ({kind})")
    measured: list[BenchmarkResult] = []
    for task in chosen:
        for benchmark in (b for b in benchmarks if b.kind == task.reads):
            result = task.measure(evaluator, benchmark, task.settings_in(config))
            measured.append(BenchmarkResult(task.name, benchmark, result, evaluator.uses_chat_template(benchmark)))
            name, estimate = next(iter(result.metrics.items()))
            say(f"{task.name} {benchmark.name}: {name} {estimate.value:.4g} (chance level: {result.baseline:.4g})")
    found = lm_eval_results(measured)
    first, metric = chosen[0].name, next(iter(measured[0].result.metrics))
    found["config"] = {
        "model": "tinyllm",
        "model_args": f"pretrained={parent.folder.as_posix()}",
        "batch_size": config.batch_size,
        "device": str(evaluator.model.lm_head.weight.device),
        "limit": config.rows,
        "random_seed": config.seed,
        **evaluator.conventions.names,
        "settings": dump(config),
    }
    found["moved"] = {
        "what": metric if metric == first else f"{first} {metric}",
        "from": None,
        "to": found["results"][first][f"{metric},none"],
    }
    return found


def _load_benchmarks(chosen: Sequence[Task], config: EvalSettings) -> list[Benchmark]:
    """Read the benchmarks of the tasks, and check for the columns that their rules read."""
    benchmarks = read_all(list(dict.fromkeys(task.reads for task in chosen)), config)
    for task in chosen:
        for name in task.rules(task.settings_in(config)):
            rule = rewards.load_reward(name)
            for question in (q for b in benchmarks if b.kind == task.reads for q in b.items):
                _check_columns(rule, question)
    return benchmarks


def _check_columns(rule: rewards.Reward, question: Question) -> None:
    missing = next((column for column in rule.required if column not in question.columns), None)
    if missing:
        what = f"the rule {rule.name} needs a column {missing!r}; the question has {', '.join(question.columns)}"
        fix = (
            "use --task exact_match"
            if rule is rewards.REWARDS["gold"]
            else f"name it: --set data.field.{missing}=COLUMN"
        )
        raise UserError(what, where=question.place, fix=fix)
