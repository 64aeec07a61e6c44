"""`vedette guide`: the manual, which is shipped with the program as Markdown."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click

from agent.cli.output import console, print_json

FOLDER = Path(__file__).parent.parent / "guide"
TOPICS = (
    *("start", "configuration", "sources", "models", "chains", "choosing", "optimise", "evaluate", "inspection"),
    *("screening", "teaching", "fusion", "zones", "messages", "home-assistant", "hardware", "resources", "power"),
    *("metrics", "commands", "clips", "condition", "updates", "fleets", "troubleshooting", "security", "privacy"),
    "glossary",
)
"""In reading order. Each is a file `TOPIC.md` whose first line is `# Topic: summary`."""


class Hit(NamedTuple):
    """A line of the guide that contains the word."""

    topic: str
    heading: str
    line: int
    text: str


def _known(context: click.Context, parameter: click.Parameter, topic: str | None) -> str | None:
    if topic is None or topic in TOPICS:
        return topic
    near = difflib.get_close_matches(topic.lower(), TOPICS, 1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"topics: {', '.join(TOPICS)}"
    raise click.BadParameter(f"there is no topic {topic!r}; {hint}")


@click.command()
@click.argument("topic", required=False, callback=_known)
@click.option(
    "--find", "word", metavar="WORD", help="Show every line that contains WORD; in TOPIC only, if given."
)
@click.option("--json", "as_json", is_flag=True, help="Print the list of topics, or what --find found, as JSON.")
def guide(topic: str | None, word: str | None, as_json: bool) -> None:
    """Show the manual: the page about TOPIC, or the list of topics.

    A terminal gets formatted pages in a pager; a pipe or a file gets the Markdown. --find exits with 1 when
    nothing was found.
    """
    if word is not None:
        _print_hits(list(find(word, (topic,) if topic else TOPICS)), as_json)
    elif topic is not None:
        if as_json:
            raise click.UsageError("--json prints the list of topics or what --find found; leave TOPIC out")
        _print_page(page(topic))
    else:
        _print_topics(as_json)


def page(topic: str) -> str:
    """Return the Markdown of a topic."""
    return (FOLDER / f"{topic}.md").read_text(encoding="utf-8")


def summary(topic: str) -> str:
    """Return what a topic is about, from the heading of its page."""
    return page(topic).partition("\n")[0].partition(": ")[2]


def find(word: str, topics: tuple[str, ...] = TOPICS) -> Iterator[Hit]:
    """Yield the lines that contain a word, in any case, with the heading above each."""
    for topic in topics:
        heading, is_code = "", False
        for number, line in enumerate(page(topic).splitlines(), 1):
            is_code ^= line.startswith("```")
            if not is_code and (found := re.match(r"#+ (.*)", line)):
                heading = found[1]
            if word.casefold() in line.casefold():
                yield Hit(topic, heading, number, line.strip())


def _print_topics(as_json: bool) -> None:
    if as_json:
        print_json([{"topic": topic, "summary": summary(topic)} for topic in TOPICS], indent=2)
        return
    width = max(map(len, TOPICS))
    for topic in TOPICS:
        click.echo(f"{topic:{width}}  {summary(topic)}")
    click.echo("\nvedette guide TOPIC shows a page; vedette guide --find WORD searches all of them.")


def _print_hits(hits: list[Hit], as_json: bool) -> None:
    if as_json:
        print_json([hit._asdict() for hit in hits], indent=2)
    else:
        for hit in hits:
            click.echo(f"{hit.topic}:{hit.line}: {hit.heading}: {hit.text}")
    if not hits:
        click.echo("vedette: the guide does not contain this word; try a shorter one", err=True)
        sys.exit(1)


def _print_page(text: str) -> None:
    if not sys.stdout.isatty():
        click.echo(text, nl=False)
        return
    from rich.markdown import Markdown

    os.environ.setdefault("LESS", "-FRX")  # colours, and no pager for what fits on the screen
    out = console(100)
    with out.pager(styles=True):
        out.print(Markdown(text), width=min(out.width, 110))
