"""Report of `tinyllm data inspect` for a terminal or a pipe. Without color, brackets mark the tokens that are trained on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tinyllm.data.records.formats import TITLES
from tinyllm.data.records.report import FIRST_FILES, MAX_FILES
from tinyllm.errors import escape_unprintable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_BAR_WIDTH = 32
# role: style on a terminal, and the brackets around it in a pipe
_ROLES = {
    "trained": ("green", "[[", "]]"),
    "stop": ("bold white on magenta", "[[!", "]]"),
    "ignored": ("dim", "", ""),
    "cut": ("red strike", "[[x ", "]]"),
    "gap": ("italic cyan", " [[… ", "]] "),
}


def show(found: dict[str, Any], console: Console) -> None:
    """Print the whole report. Text from the data is escaped here or was before."""
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
    """Return one row of tokens as text: neighboring tokens of one role together, colored or in brackets."""
    from rich.text import Text

    found, role, held = Text(), "", ""
    for piece in [*pieces, {"role": "", "text": ""}]:
        if piece["role"] != role and role:
            style, before, after = _ROLES[role]
            text = escape_unprintable(held, keep="\n")
            found.append(text if colour else f"{before}{text}{after}", style=style if colour else "")
            held = ""
        role, held = piece["role"], held + piece["text"]
    return found


def _legend(colour: bool) -> Text:
    from rich.text import Text

    from tinyllm.diagnostics.inspect.rendered import MEANING

    found = Text("\n")
    for role, meaning in MEANING.items():
        style, before, after = _ROLES[role]
        found.append(meaning if colour else f"{before}{meaning}{after}", style=style if colour else "")
        found.append("   ")
    return found


# --- lines -----------------------------------------------------------------------------------------------------------------------


def _summary(found: dict[str, Any]) -> Iterator[str]:
    counts = found["records"]
    yield f"{TITLES[found['kind']]}, as `tinyllm {found['verb']}` reads them"
    sources = found["sources"]
    shown = len(sources) if len(sources) <= MAX_FILES else FIRST_FILES
    for source in sources[:shown]:
        rows = f"{source['records']:,} of {source['rows']:,} rows, " if "rows" in source else ""
        notes = f" ({', '.join(source['notes'])})" if source["notes"] else ""
        yield f"  {source['source']}: {rows}format {source['format']}{notes}"
    if rest := sources[shown:]:
        formats = ", ".join(sorted({source["format"] for source in rest}))
        count = sum(source.get("records", 0) for source in rest)
        yield f"  {len(rest):,} more files: {count:,} {TITLES[found['kind']]}, format {formats}"
    for key, verb in (("dropped", "dropped"), ("mended", "repaired")):
        for reason, tally in found[key].items():
            yield f"  {verb} {tally['count']:,}: {reason} ({', '.join(tally['places'])})"
    yield from _removed(found["removed"] or {"exact": 0, "dedup": "none"})
    how = {"val": "data.val", "world": "held out by the bundled world"}.get(
        found["split"], f"split by {found['split']}"
    )
    held = f"{counts['val']:,} validation records"
    if counts["test"] is None:  # documents that were not tokenized
        held = f"{counts['val']:,} held-out records, which are divided into validation and test by their tokens"
    elif counts["test"]:
        held += f", {counts['test']:,} test records"
    yield f"  {counts['train']:,} training records, {held} ({how})"
    for name, what in found["rewards"].items():
        yield f"  {name}: {escape_unprintable(what)}"
    if found["tokenizer"] is None:
        yield "  no tokenizer: lengths in characters and words only; name one with --tokenizer DIR or --checkpoint RUN, or pretrain first"
    else:
        known = found["tokenizer"]
        room = f", model context {known['context']:,}" if known["context"] else ""
        yield f"  tokenizer {known['folder']}: {known['vocab_size']:,} tokens{room}"
    if found["sample"]["records"] < found["sample"]["of"]:
        yield f"  lengths measured on a sample of {found['sample']['records']:,} of {found['sample']['of']:,} records"


def _removed(removed: dict[str, Any]) -> Iterator[str]:
    if removed["exact"]:
        yield f"  removed {removed['exact']:,}: exact duplicates (data.dedup {removed['dedup']})"
    if removed["dedup"] == "near":
        yield "  near duplicates are found by their tokens in the preparation and are still counted here"


def _figures(found: dict[str, Any]) -> Iterator[str]:
    names = ("min", "p10", "p50", "p90", "p99", "max", "mean")
    known = found["lengths"]
    yield ""
    yield "per record    " + "".join(f"{name:>9}" for name in names)
    for unit in ("tokens", "trained", "words", "characters"):
        if unit in known:
            yield f"{unit:<14}" + "".join(
                f"{known[unit][n]:>9,.1f}" if n == "mean" else f"{known[unit][n]:>9,}" for n in names
            )
    yield ""
    bins = known["histogram"]
    most = max((b["records"] for b in bins), default=1)
    yield f"{known['unit']} per record"
    for b in bins:
        name = f"{b['from']:,}+" if b["to"] is None else f"{b['from']:,}-{b['to']:,}"
        bar = "#" * max(b["records"] > 0, round(_BAR_WIDTH * b["records"] / most))
        yield f"{name:>15}  {bar:<{_BAR_WIDTH}} {b['records']:,}"


def _checks(found: dict[str, Any]) -> Iterator[str | Text]:
    from rich.text import Text

    fit, again, sampled = found["fit"], found["repeated"], found["sample"]["records"]
    yield ""
    if fit is not None:
        yield f"at {fit['max_length']:,} tokens (data.max_length{_policy(found, fit)})"
        for count, what in _fates(found, fit):
            yield f"  {count:>9,}  {what} ({count / max(1, sampled):.1%})"
        yield f"  99 % of the records have at most {fit['fits_99']:,} tokens"
    yield f"exact duplicates: {again['train']:,} in train, {again['val']:,} in val, {again['val_in_train']:,} of val in train"
    if found["kind"] != "documents":
        yield f"prompts in both train and val: {again['prompts_in_both']:,} records of val"
    yield ""
    for finding in found["findings"]:
        refused = finding["level"] == "refused"
        place = f" ({finding['where']})" if finding["where"] and refused else ""
        label = (f"tinyllm {found['verb']} would stop", "bold red") if refused else (finding["level"], "yellow")
        yield Text.assemble(label, f": {finding['what']}{place}")
        if finding["fix"]:
            yield f"  fix: {finding['fix']}"
    if all(finding["level"] == "note" for finding in found["findings"]):
        yield Text("no problems found", style="green")


def _policy(found: dict[str, Any], fit: dict[str, Any]) -> str:
    if found["kind"] == "documents":
        return "; longer documents span several rows"
    return "" if found["kind"] == "prompts" else f", data.too_long {fit['too_long']}"


def _fates(found: dict[str, Any], fit: dict[str, Any]) -> Iterator[tuple[int, str]]:
    yield fit["longer"], "longer"
    if found["kind"] == "documents":
        return
    yield fit["dropped"], "dropped"
    if found["kind"] != "prompts":
        yield fit["answers_cut"], "answer truncated"
        yield fit["never_trained"], "without trainable tokens"
        yield fit["train_an_end"], f"with trained end token {escape_unprintable(fit['end_token'])}"
