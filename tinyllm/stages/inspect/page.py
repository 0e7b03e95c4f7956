"""What `tinyllm data inspect` found, as one HTML page that needs nothing else and may load nothing (Content-Security-Policy). No script.

Every text from data is escaped, and what is no plain character in it (controls, bidirectional marks, odd spaces) is written out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tinyllm.errors import RESOURCES, UserError, harmless
from tinyllm.stages import charts
from tinyllm.stages.inspect.rendered import GAP, MEANING
from tinyllm.stages.report import POLICY
from tinyllm.stages.report_words import escape

Found = dict[str, Any]
_NAMES = {"min": "least", "p10": "10 %", "p50": "median", "p90": "90 %", "p99": "99 %", "max": "most", "mean": "mean"}
_SPLITS = {
    "val": "validation records are those of data.val",
    "world": "the bundled world holds out its own",
    "prompt": "split by prompt: no prompt is on both sides",
    "text": "split by text: no document is on both sides",
    "record": "split by record: all have one prompt",
}


def write(found: Found, path: Path) -> None:
    """Raises: UserError (RESOURCES) where that is not possible."""
    try:
        path.write_text(page(found), encoding="utf-8", newline="\n")
    except OSError as error:
        what = f"the page cannot be written: {error.strerror}"
        raise UserError(what, where=str(path), fix="choose another place for --html", code=RESOURCES) from error


def page(found: Found) -> str:
    """The report as one HTML document."""
    made = [
        ("findings", "Findings", _findings(found)),
        ("lengths", "Lengths", _lengths(found)),
        ("records", "Records", "".join(_records(found))),
        ("sources", "Sources", _sources(found)),
    ]
    made = [(anchor, title, body) for anchor, title, body in made if body]
    links = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, title, _ in made)
    body = "".join(f'<section id="{anchor}"><h2>{title}</h2>{body}</section>' for anchor, title, body in made)
    here = Path(__file__).parent
    style = "".join(sheet.read_text(encoding="utf-8") for sheet in (here.parent / "report.css", here / "inspect.css"))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        f"<title>tinyllm data inspect: {escape(_title(found))}</title>\n<style>\n{style}</style>\n</head>\n"
        f'<body>\n{_header(found)}\n<nav aria-label="Sections">{links}</nav>\n<main>\n{body}\n</main>\n</body>\n</html>\n'
    )


def visible(text: str) -> str:
    """HTML of a text: ends of lines marked, and everything that is no plain character written out."""
    parts = []
    for character in text:
        if character == "\n":
            parts.append('<i class="nl">↵</i>\n')
        elif character.isprintable():
            parts.append(escape(character))
        else:
            parts.append(f'<i class="odd">{harmless(character)}</i>')
    return "".join(parts)


# --- the parts -------------------------------------------------------------------------------------------------------------------


def _title(found: Found) -> str:
    return f"{sum(found['records'].values()):,} {found['kind']}"


def _header(found: Found) -> str:
    counts, warnings = found["records"], len(found["findings"])
    if found["refused"]:
        badge = f'<span class="badge bad">tinyllm {escape(found["verb"])} would stop</span>'
    elif warnings:
        badge = f'<span class="badge bad">{warnings} warning{"s" * (warnings > 1)}</span>'
    else:
        badge = '<span class="badge ok">nothing wrong was found</span>'
    tiles = [("to train on", f"{counts['train']:,}"), ("to validate with", f"{counts['val']:,}")]
    known = found["lengths"].get("tokens")
    if known:
        tiles += [("tokens, median", f"{known['p50']:,}"), ("tokens, most", f"{known['max']:,}")]
    shown = "".join(f"<div><dt>{name}</dt><dd><b>{value}</b></dd></div>" for name, value in tiles)
    return (
        f'<header><p class="eyebrow">tinyllm data inspect {badge}</p><h1>{escape(_title(found))}, as '
        f'<span class="verb">tinyllm {escape(found["verb"])}</span> would read them</h1><dl class="tiles">{shown}</dl></header>'
    )


def _findings(found: Found) -> str:
    rows = []
    for one in found["findings"]:
        word = "would stop" if one["level"] == "refused" else "warning"
        fix = f"<p><small>{visible(one['fix'])}</small></p>" if one["fix"] else ""
        where = f" <code>{visible(one['where'])}</code>" if one["where"] else ""
        rows.append(f'<li><b class="bad">{word}</b> {visible(one["what"])}{where}{fix}</li>')
    body = f'<ul class="findings">{"".join(rows)}</ul>' if rows else '<p class="lead">Nothing wrong was found.</p>'
    return body + _facts(_counts(found))


def _counts(found: Found) -> Iterator[tuple[str, str]]:
    fit, again = found["fit"], found["repeated"]
    if fit is not None:
        yield f"longer than {fit['max_length']:,} tokens", f"{fit['longer']:,}"
        if found["kind"] not in ("documents", "prompts"):
            yield "answers that lose their end", f"{fit['answers_cut']:,}"
            yield "with nothing left to learn", f"{fit['never_trained']:,}"
            yield f"that train {fit['end_token']}", f"{fit['train_an_end']:,}"
        if found["kind"] != "documents":
            yield "dropped at this length", f"{fit['dropped']:,}"
        yield "99 % have at most", f"{fit['fits_99']:,} tokens"
    yield "exact duplicates", f"{again['train']:,} in train, {again['val']:,} in val"
    yield "of val also in train", f"{again['val_in_train']:,} records"
    if found["kind"] != "documents":
        yield "prompts on both sides", f"{again['prompts_in_both']:,} records of val"


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
    chart = charts.bar_chart(bars, title=f"{known['unit']} of a record", width=360)
    units = [unit for unit in ("tokens", "trained", "words", "characters") if unit in known]
    head = "".join(f'<th scope="col"><span class="n">{name}</span></th>' for name in _NAMES.values())
    rows = "".join(
        f'<tr><th scope="row">{"tokens learned" if unit == "trained" else unit}</th>'
        + "".join(f'<td class="n">{known[unit][key]:,}</td>' for key in _NAMES)
        + "</tr>"
        for unit in units
    )
    note = f'<p class="lead">Of an even sample of {sample["records"]:,} of {sample["of"]:,} records.</p>'
    note = note if sample["records"] < sample["of"] else ""
    figure = f"<figure><figcaption><b>{known['unit']} of a record</b></figcaption>{chart}</figure>" if chart else ""
    table = (
        '<div class="scroll" tabindex="0" role="region" aria-label="Quantiles"><table>'
        f'<thead><tr><th scope="col">of a record</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
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
    return f'<span class="{piece["role"]}" title="{_told(piece)}">{visible(piece["text"])}</span>'


def _told(piece: dict[str, Any]) -> str:
    ids = " ".join(map(str, piece["ids"]))
    return (f"id {ids}, " if ids else "") + MEANING[piece["role"]]


def _table(row: dict[str, Any], name: str) -> str:
    """The same with every id in reach of a thumb or a keyboard."""
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
    rows = [("how it is split", _SPLITS[found["split"]])]
    for source in found["sources"]:
        counts = [f"{source['records']:,} of {source['rows']:,} rows"] if "rows" in source else []
        rows.append((source["source"], ", ".join([f"format {source['format']}", *counts, *source["notes"]])))
    for what in ("dropped", "mended"):
        for reason, tally in found[what].items():
            rows.append((f"{what} {tally['count']:,}", f"{reason} ({', '.join(tally['places'])})"))
    known = found["tokenizer"]
    if known is None:
        rows.append(("tokenizer", "none: name one with --tokenizer DIR or --checkpoint RUN to see tokens"))
    else:
        rows.append(("tokenizer", f"{known['folder']}: {known['vocab_size']:,} tokens, sha256 {known['sha256'][:12]}"))
    return _facts(rows)
