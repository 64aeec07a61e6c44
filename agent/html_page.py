"""Write HTML pages of texts and pictures that load nothing else and run nothing. All texts are escaped here."""

from __future__ import annotations

import html
from collections.abc import Iterable

from agent.text import plain

_STYLE = """
body { font: 15px sans-serif; margin: 2em; color: #222; }
figure { display: inline-block; margin: 0 1em 1em 0; }
img { max-width: 420px; }
"""
_POLICY = "default-src 'none'; img-src 'self' file:; style-src 'unsafe-inline'"


def html_page(title: str, parts: Iterable[str]) -> str:
    """Return a page.

    Args:
        title: as text.
        parts: of its body, from the functions of this module.
    """
    name, body = _escaped(title), "\n".join(parts)
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    head += f"<title>{name}</title><style>{_STYLE}</style>"
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n<h1>{name}</h1>\n{body}\n</body></html>\n'
    )


def html_text(text: str, tag: str = "p") -> str:
    """Return a text as a paragraph or, by another tag, as a heading."""
    return f"<{tag}>{_escaped(text)}</{tag}>"


def html_figure(caption: str, source: str) -> str:
    """Return a picture with a caption; `source`: its URL, or empty if there is only a caption."""
    about = _escaped(caption)
    picture = f'<img alt="{about}" loading="lazy" src="{html.escape(source)}">' if source else ""
    return f"<figure>{picture}<figcaption>{about}</figcaption></figure>"


def _escaped(text: str) -> str:
    return html.escape(plain(text))
