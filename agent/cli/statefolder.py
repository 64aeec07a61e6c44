"""`--folder` of the verbs that look into a state folder, and a word when it is another one."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_MARKS = ("lock", "spool.db", "clips")
"""What the daemon makes in its state folder: one of these at least."""
_CLIP = re.compile(r"\.?\d{4}-\d\d-\d\dT.*\.mkv(\.part)?")


def state_folder_option(verb: F) -> F:
    """Give a verb `folder`, the state folder, or None."""
    return click.option(
        "--folder",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        callback=_checked,
        help="The state folder, in place of the configured one.",
    )(verb)


def _checked(context: click.Context, option: click.Parameter, folder: Path | None) -> Path | None:
    if folder is not None and (why := _objection(folder)):
        raise click.BadParameter(why, context, option)
    return folder


def _objection(folder: Path) -> str:
    """Why this is no state folder; empty: it may be one."""
    if not os.access(folder, os.R_OK | os.X_OK):  # whoever opens what is in it says what is missing
        return ""
    if any(os.path.lexists(folder / mark) for mark in _MARKS):
        return ""
    full = folder.resolve()
    if _has_clips(full):
        return f"{folder} is the folder of a stream's clips: give the state folder, {full.parent.parent}"
    if full.name == "clips" or any(_has_clips(stream) for stream in full.iterdir() if stream.is_dir()):
        return (
            f"{folder} is a folder of clips: give the state folder, {full.parent}; where [storage] clips_folder "
            "is elsewhere, give the configuration with -c"
        )
    return f"{folder} is no state folder of vedette: it has none of {', '.join(_MARKS)}"


def _has_clips(folder: Path) -> bool:
    try:
        return any(_CLIP.fullmatch(file.name) for file in folder.iterdir())
    except OSError:
        return False
