"""A page of HTML that needs nothing beside itself: a title and a list of sections."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1d2733; 
  max-width: 62rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; padding-top: 1rem; border-top: 1px solid #dde3ea; }
p { max-width: 46rem; }
.lead, figcaption { color: #55626f; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; vertical-align: top; }
th, td { border-bottom: 1px solid #e8ecf1; }
th { font-weight: 600; white-space: nowrap; }
.figures td:not(:first-child), .figures th:not(:first-child) { text-align: right; }
.scroll { overflow-x: auto; }
h3 { font-size: 1rem; margin: 1.2rem 0 .2rem; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
pre { background: #f4f6f9; padding: .8rem 1rem; overflow-x: auto; font-size: .82rem; line-height: 1.35; }
"""


@dataclass(frozen=True)
class Section:
    """One part of a page.

    Args:
        title: its heading.
        html: its body; what comes from outside must be escaped already, as the functions below do.
    """

    title: str
    html: str


def page(title: str, lead: str, sections: Sequence[Section], script: str = "") -> str:
    """Return a complete page.

    Args:
        title: heading and window title, plain text.
        lead: one sentence under it, plain text.
        sections: in order; later parts append theirs.
        script: JavaScript that they need.

    Returns:
        HTML that opens without a network.
    """
    body = "\n".join(f"<section><h2>{escape(s.title)}</h2>\n{s.html}\n</section>" for s in sections)
    head = f"<script>{script}</script>" if script else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>{head}</head>\n"
        f'<body><h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n{body}\n</body></html>\n'
    )


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, figures: bool = False) -> str:
    """Return a table; ``figures`` aligns all columns but the first to the right."""
    head = "".join(f"<th>{escape(h)}</th>" for h in headings)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    kind = ' class="figures"' if figures else ""
    return f'<div class="scroll"><table{kind}><tr>{head}</tr>\n{body}</table></div>'


def image(png: bytes, caption: str) -> str:
    """Return a figure that holds its PNG inside the page."""
    data = base64.b64encode(png).decode()
    shown = f"<figcaption>{escape(caption)}</figcaption>"
    return f'<figure><img src="data:image/png;base64,{data}" alt="{escape(caption)}">{shown}</figure>'


def text(paragraph: str) -> str:
    """Return a paragraph."""
    return f"<p>{escape(paragraph)}</p>"


def links(targets: Mapping[str, str]) -> str:
    """Return a list of links, ``{what is shown: address relative to the page}``."""
    items = (f'<li><a href="{quote(to)}">{escape(shown)}</a></li>' for shown, to in targets.items())
    return f"<ul>{''.join(items)}</ul>"


def preformatted(content: str) -> str:
    """Return text in a fixed-width font."""
    return f"<pre>{escape(content)}</pre>"
