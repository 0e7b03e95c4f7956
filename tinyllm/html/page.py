"""Self-contained HTML documents: no scripts, and nothing is loaded (Content-Security-Policy)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tinyllm.html.text import escape

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE = Path(__file__).with_name("report.css")


def document(title: str, header: str, sections: Iterable[tuple[str, str, str]], styles: Iterable[Path] = ()) -> str:
    """Return a page with a header, links to its sections, and the sections.

    Args:
        title: plain text.
        header: HTML.
        sections: (anchor, title, HTML); sections without HTML are left out.
        styles: style sheets after the common one.
    """
    shown = [(anchor, name, body) for anchor, name, body in sections if body]
    links = "".join(f'<a href="#{anchor}">{name}</a>' for anchor, name, _ in shown)
    main = "".join(f'<section id="{anchor}"><h2>{name}</h2>{body}</section>' for anchor, name, body in shown)
    style = "".join(sheet.read_text(encoding="utf-8") for sheet in (_STYLE, *styles))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f'<body>\n{header}\n<nav aria-label="Sections">{links}</nav>\n<main>\n{main}\n</main>\n</body>\n</html>\n'
    )
