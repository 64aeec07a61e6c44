"""Printing JSON, for the `--json` of every verb."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from agent.text import plain


def print_json(value: Any, *, indent: int = 0) -> None:
    r"""Print a value as JSON.

    Bytes of a file name that are not UTF-8, which JSON cannot hold, are written as escapes, such as `\xff`.

    Args:
        value: what msgspec encodes.
        indent: spaces of each level; 0: everything on one line.
    """
    try:
        text = msgspec.json.encode(value)
    except UnicodeEncodeError:
        text = msgspec.json.encode(_plain(msgspec.to_builtins(value)))
    click.echo((msgspec.json.format(text, indent=indent) if indent else text).decode())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_plain(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return plain(value) if isinstance(value, str) else value
