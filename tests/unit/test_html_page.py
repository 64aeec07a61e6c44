"""Pages: no text in them escapes from its place, and they load nothing."""

from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.html_page import html_figure, html_page, html_text

HOSTILE = "<script>alert(1)</script>|`x`[a](javascript:b)$\\frac{&\"'\n# c\x1b[31m"


class Tags(HTMLParser):
    """Names of the elements, sources of the pictures, and all text outside of the style."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href") or name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def tags(text: str) -> Tags:
    found = Tags()
    found.feed(text)
    return found


def page(text: str) -> Tags:
    parts = [html_text(text, "h2"), html_figure(text, "review/1.jpg"), html_figure(text, "")]
    return tags(html_page(text, parts))


@given(st.text(max_size=40) | st.just(HOSTILE))
@settings(max_examples=15)
def test_no_text_escapes_from_its_place(text: str) -> None:
    found = page(text)
    assert found.names == page("a").names
    assert found.links == ["review/1.jpg"]


def test_all_is_shown() -> None:
    assert page("mobile").text.count("mobile") == 5
