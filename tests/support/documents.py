"""Checks of Markdown documents: code blocks, command lines and links."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import click

from agent.cli.main import vedette


class Block(NamedTuple):
    """A fenced code block.

    Attributes:
        info: the words behind the fence, such as `toml manifest`.
        text: what is inside.
        where: `file:line` of the fence.
    """

    info: str
    text: str
    where: str


def blocks(path: Path) -> list[Block]:
    """Every fenced code block of a document."""
    text = path.read_text(encoding="utf-8")
    found = re.finditer(r"^```([^\n`]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(m[1].strip(), m[2], f"{path.name}:{text.count(chr(10), 0, m.start()) + 1}") for m in found]


def inline_code(path: Path) -> list[str]:
    """Every piece of code in running text."""
    prose = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", prose)


def commands(script: str) -> list[str]:
    """Every command of a shell script, one by one."""
    lines = script.replace("\\\n", " ").splitlines()
    return [
        part.strip() for line in lines for part in re.split(r"&&|;|\||>", line.partition(" #")[0]) if part.strip()
    ]


def vedette_lines(path: Path) -> list[str]:
    """Every `vedette …` in `sh` blocks and in text, without sudo and the folder of the program."""
    lines = [line for block in blocks(path) if block.info == "sh" for line in commands(block.text)]
    called = (re.sub(r"^(sudo )?(\S*/(?=vedette\b))?", "", line) for line in (*lines, *inline_code(path)))
    return sorted({line for line in called if re.match(r"vedette\s", line)})


def check_command_line(line: str) -> None:
    """Parse a line as the program would; types of values are not checked, so files need not exist.

    Raises:
        AssertionError: there is no such verb, or an argument is missing or unknown.
        click.UsageError: an option is unknown.
    """
    verb, words = resolved(line)
    assert not isinstance(verb, click.Group) or not words, f"{line}: the verb is missing"
    context = click.Context(verb, info_name=line)
    if not words or "…" in words or isinstance(verb, click.Group):
        return  # names a verb in running text
    values, left, _ = verb.make_parser(context).parse_args(words)
    assert not left or context.allow_extra_args or verb.allow_extra_args, f"{line}: too many arguments: {left}"
    missing = [
        p.name for p in verb.params if isinstance(p, click.Argument) and p.required and values.get(p.name) is None
    ]
    assert not missing or "--help" in words, f"{line}: missing {missing}"


def resolved(line: str) -> tuple[click.Command, list[str]]:
    """Return the verb that a command line calls, and the rest of the line.

    Raises:
        AssertionError: there is no such verb.
    """
    found: click.Command = vedette
    words = shlex.split(line)[1:]
    while isinstance(found, click.Group) and words and not words[0].startswith("-"):
        inner = found.get_command(click.Context(found), words[0])
        assert inner is not None, f"{line}: there is no verb {words[0]!r}"
        found, words = inner, words[1:]
    return found, words


def links(path: Path) -> list[str]:
    """Targets of every link, without anchors."""
    return sorted(set(re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8"))))
