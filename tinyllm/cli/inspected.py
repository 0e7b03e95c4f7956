"""`tinyllm data inspect`: which stage is meant, and what was found, for a terminal or a pipe: without colour, marks say what is learned."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinyllm.cli.options import Common
from tinyllm.errors import USAGE, UserError, harmless
from tinyllm.train import progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from tinyllm.cli.stages import Stage

INSPECTING = ("config", "set", "seed", "checkpoint", "json", "quiet", "debug")
_STAGE_OF = {"documents": "pretrain", "conversations": "sft", "pairs": "dpo", "judgements": "kto", "prompts": "grpo"}

Files = Annotated[
    list[str] | None,
    typer.Argument(metavar="[FILE]...", help="Files, folders, globs, - or world:N; data.train of the configuration."),
]
Kind = Annotated[str | None, typer.Option("--kind", help="documents, conversations, pairs, judgements or prompts.")]
TokenizerFolder = Annotated[Path | None, typer.Option("--tokenizer", help="Count with this one: a folder.")]
MaxLength = Annotated[int | None, typer.Option("--max-length", help="data.max_length.")]
Format = Annotated[str | None, typer.Option("--format", help="data.format, where detection guesses wrong.")]
Field = Annotated[
    list[str] | None, typer.Option("--field", help="WANTED=COLUMN: the name a column has here; may be repeated.")
]
Html = Annotated[Path | None, typer.Option("--html", help="Write the report as one HTML page, too.")]
Records = Annotated[int, typer.Option("--records", min=0, help="Records shown token by token.")]


def inspect(
    common: Common,
    files: Files = None,
    kind: Kind = None,
    tokenizer: TokenizerFolder = None,
    max_length: MaxLength = None,
    format: Format = None,
    field: Field = None,
    html: Html = None,
    records: Records = 3,
) -> None:
    """What a stage would see of its data: counts, lengths, what is learned of three records, and what is wrong; exit 2 if it would stop."""
    from tinyllm.cli.stages import resolve

    progress.Quiet.on = common.quiet
    if tokenizer and common.checkpoint:
        raise UserError("a checkpoint has a tokenizer of its own", where="--tokenizer", fix="leave out one of the two")
    if html and not html.parent.is_dir():
        raise UserError(f"there is no folder {html.parent}", where="--html", fix="make it, or choose another place")
    stage = _stage(common.config, kind, files or [])
    options = {"seed": common.seed, "data.max_length": max_length, "data.format": format}
    if files:
        options["data.train"] = json.dumps(files)
    sets = [*(common.set or []), *(f"data.field.{pair}" for pair in field or [])]
    config = resolve(stage, common.config, sets, options, os.environ, fast=False).config
    from tinyllm.stages import inspect as looking
    from tinyllm.stages.inspect.tokenizer import vocabulary

    reads = looking.kind_of(stage.place, config)
    if kind not in (None, reads):
        what = f"`tinyllm {stage.place}` with this configuration reads {reads}"
        raise UserError(what, where="--kind", fix=f"leave out --kind, or name a configuration for {kind}")
    known = vocabulary(config, stage.place, tokenizer, common.checkpoint)
    found = looking.run(config, reads, stage.place, known, shown=records)
    if html:
        from tinyllm.stages.inspect.page import write

        write(found, html)
    if common.json:
        print(json.dumps(found))  # in ASCII: what a terminal would act on is written out
    else:
        from rich.console import Console

        show(found, Console(soft_wrap=True, highlight=False))
        if html:
            print(f"\n  {harmless(str(html))}")
    if found["refused"]:
        raise typer.Exit(USAGE)


# --- which stage -----------------------------------------------------------------------------------------------------------------


def _stage(config: Path | None, kind: str | None, files: list[str]) -> Stage:
    """The stage that a configuration is for by its name, or that reads this kind of data."""
    from tinyllm.cli.stages import STAGES

    if kind is not None and kind not in _STAGE_OF:
        raise UserError(f"{kind!r} is no kind of data", where="--kind", fix=f"use one of {', '.join(_STAGE_OF)}")
    if config is not None and (named := _named(config)):
        return named
    if config is not None and kind is None:
        what = "the name of this configuration does not say which stage it is for"
        raise UserError(what, where=str(config), fix=f"add --kind {' or '.join(_STAGE_OF)}")
    return STAGES[_STAGE_OF[kind or _kind_of_files(files)]]


def _named(config: Path) -> Stage | None:
    """`my_sft.yaml` and `configs/rlhf/rm/x.yaml` say what they are for."""
    from tinyllm import algorithms
    from tinyllm.cli.stages import STAGES, stage_of

    known = {name: STAGES[name] for name in ("pretrain", "sft", "rm")}
    for family, default in (("offline", "dpo"), ("online", "grpo")):
        known |= {name: stage_of(name, default) for name in algorithms.names(family)}
    for part in (config.stem, *reversed(config.parts[:-1])):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in known:
                return known[word]
    return None


def _kind_of_files(files: list[str]) -> str:
    from tinyllm.data import records
    from tinyllm.stages.config import is_world

    fix = f"add --kind {' or '.join(_STAGE_OF)}"
    if not files:
        raise UserError(
            "nothing to look at", where="FILE", fix="name a file, or --config, or --kind for the bundled world"
        )
    if files[0] == "-" or is_world(files[0]):
        raise UserError(f"what is in {files[0]!r} has to be said", where="--kind", fix=fix)
    try:
        return records.kind_of(files[0])
    except UserError as error:
        if "prompts=" not in error.fix:  # lifecycle's way to say it
            raise
        raise UserError(error.what, where=error.where, fix=fix) from None


# --- the report ------------------------------------------------------------------------------------------------------------------

_BAR = 32  # characters of the longest bar
# role: its style on a terminal, and what stands around it in a pipe
_ROLES = {
    "trained": ("green", "[[", "]]"),
    "stop": ("bold white on magenta", "[[!", "]]"),
    "ignored": ("dim", "", ""),
    "cut": ("red strike", "[[x ", "]]"),
    "gap": ("italic cyan", " [[… ", "]] "),
}


def show(found: dict[str, Any], console: Console) -> None:
    """The whole report. Everything in it that came from data is made harmless here or was before."""
    from rich.text import Text

    for line in (*_summary(found), *_figures(found), *_checks(found)):
        console.print(line if isinstance(line, Text) else Text(line))
    for example in found["examples"]:
        for row in example["rows"]:
            size = "" if row["length"] is None else f", {row['length']:,} tokens"
            console.print(Text(f"\n--- record {example['record']:,}, {row['name']}{size}", style="bold"))
            console.print(tokens(row["pieces"], colour=console.color_system is not None))
    if found["examples"]:
        console.print(_legend(console.color_system is not None))


def tokens(pieces: list[dict[str, Any]], *, colour: bool) -> Text:
    """One row as text: neighbours of one role together, coloured or between marks."""
    from rich.text import Text

    found, role, held = Text(), "", ""
    for piece in [*pieces, {"role": "", "text": ""}]:
        if piece["role"] != role and role:
            style, before, after = _ROLES[role]
            text = harmless(held, keep="\n")
            found.append(text if colour else f"{before}{text}{after}", style=style if colour else "")
            held = ""
        role, held = piece["role"], held + piece["text"]
    return found


def _legend(colour: bool) -> Text:
    from rich.text import Text

    from tinyllm.stages.inspect.rendered import MEANING

    found = Text("\n")
    for role, meaning in MEANING.items():
        style, before, after = _ROLES[role]
        found.append(meaning if colour else f"{before}{meaning}{after}", style=style if colour else "")
        found.append("   ")
    return found


# --- lines -----------------------------------------------------------------------------------------------------------------------


def _summary(found: dict[str, Any]) -> Iterator[str]:
    counts = found["records"]
    yield f"{found['kind']}, as `tinyllm {found['verb']}` would read them"
    for source in found["sources"]:
        rows = f"{source['records']:,} of {source['rows']:,} rows, " if "rows" in source else ""
        notes = f" ({', '.join(source['notes'])})" if source["notes"] else ""
        yield f"  {source['source']}: {rows}format {source['format']}{notes}"
    for what in ("dropped", "mended"):
        for reason, tally in found[what].items():
            yield f"  {what} {tally['count']:,}: {reason} ({', '.join(tally['places'])})"
    how = {"val": "data.val", "world": "held out by the world"}.get(found["split"], f"split by {found['split']}")
    yield f"  {counts['train']:,} to train on, {counts['val']:,} to validate with ({how})"
    if found["tokenizer"] is None:
        yield "  no tokenizer, so characters and words only: name one with --tokenizer DIR or --checkpoint RUN, or pretrain first"
    else:
        known = found["tokenizer"]
        room = f", a model of {known['context']:,} positions" if known["context"] else ""
        yield f"  tokenizer {known['folder']}: {known['vocab_size']:,} tokens{room}"
    if found["sample"]["records"] < found["sample"]["of"]:
        yield f"  lengths are of an even sample of {found['sample']['records']:,} of {found['sample']['of']:,} records"


def _figures(found: dict[str, Any]) -> Iterator[str]:
    names = ("min", "p10", "p50", "p90", "p99", "max", "mean")
    known = found["lengths"]
    yield ""
    yield "of a record   " + "".join(f"{name:>9}" for name in names)
    for unit in ("tokens", "trained", "words", "characters"):
        if unit in known:
            yield f"{unit:<14}" + "".join(
                f"{known[unit][n]:>9,.1f}" if n == "mean" else f"{known[unit][n]:>9,}" for n in names
            )
    yield ""
    bins = known["histogram"]
    most = max((b["records"] for b in bins), default=1)
    yield f"{known['unit']} of a record"
    for b in bins:
        name = f"{b['from']:,}+" if b["to"] is None else f"{b['from']:,}-{b['to']:,}"
        bar = "#" * max(b["records"] > 0, round(_BAR * b["records"] / most))
        yield f"{name:>15}  {bar:<{_BAR}} {b['records']:,}"


def _checks(found: dict[str, Any]) -> Iterator[str | Text]:
    from rich.text import Text

    fit, again, sampled = found["fit"], found["repeated"], found["sample"]["records"]
    yield ""
    if fit is not None:
        yield f"at {fit['max_length']:,} tokens (data.max_length{_policy(found, fit)})"
        for count, what in _fates(found, fit):
            yield f"  {count:>9,}  {what} ({count / max(1, sampled):.1%})"
        yield f"  99 % of the records have {fit['fits_99']:,} tokens or fewer"
    yield f"exact duplicates: {again['train']:,} in train, {again['val']:,} in val, {again['val_in_train']:,} of val in train"
    if found["kind"] != "documents":
        yield f"prompts in both train and val: {again['prompts_in_both']:,} records of val"
    yield ""
    for finding in found["findings"]:
        refused = finding["level"] == "refused"
        place = f" ({finding['where']})" if finding["where"] and refused else ""
        label = (f"tinyllm {found['verb']} would stop", "bold red") if refused else ("warning", "yellow")
        yield Text.assemble(label, f": {finding['what']}{place}")
        if finding["fix"]:
            yield f"  fix: {finding['fix']}"
    if not found["findings"]:
        yield Text("nothing wrong was found", style="green")


def _policy(found: dict[str, Any], fit: dict[str, Any]) -> str:
    if found["kind"] == "documents":
        return "; documents are split over rows"
    return "" if found["kind"] == "prompts" else f", data.too_long {fit['too_long']}"


def _fates(found: dict[str, Any], fit: dict[str, Any]) -> Iterator[tuple[int, str]]:
    yield fit["longer"], "are longer"
    if found["kind"] == "documents":
        return
    yield fit["dropped"], "are dropped"
    if found["kind"] != "prompts":
        yield fit["answers_cut"], "lose the end of an answer"
        yield fit["never_trained"], "have nothing left to learn"
        yield fit["train_an_end"], f"train {harmless(fit['end_token'])}"
