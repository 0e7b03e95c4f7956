"""Report of `tinyllm data inspect` as one self-contained HTML page without scripts (Content-Security-Policy).

Text from the data is escaped, and characters that are not printable (controls, bidirectional marks, unusual spaces) are written as escapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tinyllm.data.records.formats import TITLES
from tinyllm.data.records.report import FIRST_FILES, MAX_FILES
from tinyllm.diagnostics.inspect.rendered import GAP, MEANING
from tinyllm.errors import escape_unprintable
from tinyllm.html import charts
from tinyllm.html.page import document
from tinyllm.html.text import escape
from tinyllm.io.files import writing

Found = dict[str, Any]
_QUANTILES = {"min": "min", "p10": "10 %", "p50": "median", "p90": "90 %", "p99": "99 %", "max": "max", "mean": "mean"}
_SPLITS = {
    "val": "validation records from data.val",
    "world": "held out by the bundled world",
    "prompt": "by prompt: no prompt is in both splits",
    "text": "by text: no document is in both splits",
    "record": "by record: all records have the same prompt",
}


def write(found: Found, path: Path) -> None:
    """Raises: UserError (RESOURCES) where that is not possible."""
    with writing(path, "the page cannot be written", "choose another place for --html"):
        path.write_text(page(found), encoding="utf-8", newline="\n")


def page(found: Found) -> str:
    """Return the report as an HTML document."""
    sections = [
        ("findings", "Findings", _findings(found)),
        ("lengths", "Lengths", _lengths(found)),
        ("records", "Records", "".join(_records(found))),
        ("sources", "Sources", _sources(found)),
    ]
    title = f"tinyllm data inspect: {_title(found)}"
    return document(title, _header(found), sections, styles=[Path(__file__).with_name("inspect.css")])


def visible(text: str) -> str:
    """Return a text as HTML with line ends marked and characters that are not printable escaped."""
    parts = []
    for character in text:
        if character == "\n":
            parts.append('<i class="nl">↵</i>\n')
        elif character.isprintable():
            parts.append(escape(character))
        else:
            parts.append(f'<i class="odd">{escape_unprintable(character)}</i>')
    return "".join(parts)


# --- the parts -------------------------------------------------------------------------------------------------------------------


def _title(found: Found) -> str:
    return f"{sum(filter(None, found['records'].values())):,} {TITLES[found['kind']]}"


def _header(found: Found) -> str:
    counts, warnings = found["records"], sum(finding["level"] == "warning" for finding in found["findings"])
    if found["refused"]:
        badge = f'<span class="badge bad">tinyllm {escape(found["verb"])} would stop</span>'
    elif warnings:
        badge = f'<span class="badge bad">{warnings} warning{"s" * (warnings > 1)}</span>'
    else:
        badge = '<span class="badge ok">no problems found</span>'
    tiles = [("training records", f"{counts['train']:,}"), ("validation records", f"{counts['val']:,}")]
    tiles.append(("test records", "a part of these" if counts["test"] is None else f"{counts['test']:,}"))
    known = found["lengths"].get("tokens")
    if known:
        tiles += [("tokens, median", f"{known['p50']:,}"), ("tokens, max", f"{known['max']:,}")]
    shown = "".join(f"<div><dt>{name}</dt><dd><b>{value}</b></dd></div>" for name, value in tiles)
    return (
        f'<header><p class="eyebrow">tinyllm data inspect {badge}</p><h1>{escape(_title(found))}, as '
        f'<span class="verb">tinyllm {escape(found["verb"])}</span> reads them</h1><dl class="tiles">{shown}</dl></header>'
    )


def _findings(found: Found) -> str:
    rows = []
    for one in found["findings"]:
        word = "would stop" if one["level"] == "refused" else one["level"]
        fix = f"<p><small>{visible(one['fix'])}</small></p>" if one["fix"] else ""
        where = f" <code>{visible(one['where'])}</code>" if one["where"] else ""
        rows.append(f'<li><b class="bad">{word}</b> {visible(one["what"])}{where}{fix}</li>')
    body = f'<ul class="findings">{"".join(rows)}</ul>' if rows else '<p class="lead">No problems found.</p>'
    return body + _facts(_counts(found))


def _counts(found: Found) -> Iterator[tuple[str, str]]:
    fit, repeated = found["fit"], found["repeated"]
    if fit is not None:
        yield f"longer than {fit['max_length']:,} tokens", f"{fit['longer']:,}"
        if found["kind"] not in ("documents", "prompts"):
            yield "answers truncated", f"{fit['answers_cut']:,}"
            yield "without trainable tokens", f"{fit['never_trained']:,}"
            yield f"with trained end token {fit['end_token']}", f"{fit['train_an_end']:,}"
        if found["kind"] != "documents":
            yield "dropped at this length", f"{fit['dropped']:,}"
        yield "99 % of records have at most", f"{fit['fits_99']:,} tokens"
    yield "exact duplicates", ", ".join(f"{repeated[split]:,} in {split}" for split in ("train", "val", "test"))
    yield "val records also in train", f"{repeated['val_in_train']:,} records"
    yield "test records also in train, val", f"{repeated['test_in_train']:,}, {repeated['test_in_val']:,} records"
    if found["kind"] != "documents":
        yield "prompts in both train and val", f"{repeated['prompts_in_both']:,} records of val"
        shared = f"{repeated['test_prompts_in_train']:,}, {repeated['test_prompts_in_val']:,} records of test"
        yield "prompts of test also in train, val", shared
    yield from found["rewards"].items()


def _facts(rows: Iterable[tuple[str, str]]) -> str:
    return (
        '<dl class="facts split">'
        + "".join(f"<div><dt>{visible(n)}</dt><dd>{visible(v)}</dd></div>" for n, v in rows)
        + "</dl>"
    )


def _lengths(found: Found) -> str:
    known, sample = found["lengths"], found["sample"]
    total = sum(b["records"] for b in known["histogram"])
    bars = [
        (
            f"{b['from']:,}+" if b["to"] is None else f"{b['from']:,}–{b['to']:,}",
            b["records"],
            f"{b['records']:,} ({b['records'] / max(1, total):.0%})",
        )
        for b in known["histogram"]
    ]
    chart = charts.bar_chart(bars, title=f"{known['unit']} per record", width=360)
    units = [unit for unit in ("tokens", "trained", "words", "characters") if unit in known]
    head = "".join(f'<th scope="col"><span class="n">{name}</span></th>' for name in _QUANTILES.values())
    rows = "".join(
        f'<tr><th scope="row">{"trained tokens" if unit == "trained" else unit}</th>'
        + "".join(f'<td class="n">{known[unit][key]:,}</td>' for key in _QUANTILES)
        + "</tr>"
        for unit in units
    )
    note = f'<p class="lead">Measured on a sample of {sample["records"]:,} of {sample["of"]:,} records.</p>'
    note = note if sample["records"] < sample["of"] else ""
    figure = f"<figure><figcaption><b>{known['unit']} per record</b></figcaption>{chart}</figure>" if chart else ""
    table = (
        '<div class="scroll" tabindex="0" role="region" aria-label="Quantiles"><table>'
        f'<thead><tr><th scope="col">per record</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )
    return f'{note}<div class="grid wide">{figure}</div>{table}'


def _records(found: Found) -> Iterator[str]:
    if not found["examples"]:
        return
    yield (
        '<p class="lead legend">'
        + " ".join(f'<span class="{role}">{meaning}</span>' for role, meaning in MEANING.items())
        + "</p>"
    )
    for example in found["examples"]:
        for row in example["rows"]:
            name = f"record {example['record']:,}, {row['name']}"
            size = "" if row["length"] is None else f" <small>{row['length']:,} tokens</small>"
            text = "".join(map(_piece, row["pieces"]))
            yield f'<article><h3>{name}{size}</h3><div class="tokens" lang="">{text}</div>{_table(row, name)}</article>'


def _piece(piece: dict[str, Any]) -> str:
    if piece["role"] == GAP:
        return f'<span class="gap">… {escape(piece["text"])} …</span>'
    return f'<span class="{piece["role"]}" title="{_tooltip(piece)}">{visible(piece["text"])}</span>'


def _tooltip(piece: dict[str, Any]) -> str:
    ids = " ".join(map(str, piece["ids"]))
    return (f"id {ids}, " if ids else "") + MEANING[piece["role"]]


def _table(row: dict[str, Any], name: str) -> str:
    """Return a table of the ids, which tooltips cannot show on touch screens and with a keyboard."""
    if row["length"] is None:
        return ""
    lines = "".join(
        f'<tr><td>{" ".join(map(str, p["ids"]))}</td><td><span class="{p["role"]}">{visible(p["text"])}</span></td>'
        f"<td>{MEANING.get(p['role'], '')}</td></tr>"
        for p in row["pieces"]
    )
    return (
        f'<details><summary>Ids</summary><div class="scroll ids" tabindex="0" role="region" aria-label="Ids of {name}"><table>'
        f'<thead><tr><th scope="col">id</th><th scope="col">text</th><th scope="col">role</th></tr></thead>'
        f"<tbody>{lines}</tbody></table></div></details>"
    )


def _sources(found: Found) -> str:
    rows = [("split", _SPLITS[found["split"]])]
    sources = found["sources"]
    shown = len(sources) if len(sources) <= MAX_FILES else FIRST_FILES
    for source in sources[:shown]:
        counts = [f"{source['records']:,} of {source['rows']:,} rows"] if "rows" in source else []
        rows.append((source["source"], ", ".join([f"format {source['format']}", *counts, *source["notes"]])))
    if sources[shown:]:
        rows.append((f"{len(sources) - shown:,} more files", ""))
    for key, verb in (("dropped", "dropped"), ("mended", "repaired")):
        for reason, tally in found[key].items():
            rows.append((f"{verb} {tally['count']:,}", f"{reason} ({', '.join(tally['places'])})"))
    if found["removed"] and found["removed"]["exact"]:
        rows.append(
            (f"removed {found['removed']['exact']:,}", f"exact duplicates (data.dedup {found['removed']['dedup']})")
        )
    known = found["tokenizer"]
    if known is None:
        rows.append(("tokenizer", "none: name one with --tokenizer DIR or --checkpoint RUN to see tokens"))
    else:
        rows.append(("tokenizer", f"{known['folder']}: {known['vocab_size']:,} tokens, sha256 {known['sha256'][:12]}"))
    return _facts(rows)
