"""Arguments and options that the verbs of `vedette optimise` share."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from urllib.parse import urlsplit

import click

from agent.cli.options import PATH, FilePath


def tflite_path(_context: click.Context, option: click.Parameter, path: Path) -> Path:
    """Check that a file to write is called `.tflite`."""
    if path.suffix != ".tflite":
        raise click.BadParameter(f"{path}: expected the name of a .tflite file", param=option)
    return path


def _joined(_context: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> str:
    return ", ".join(texts)


def study_place(_context: click.Context, option: click.Parameter, text: str) -> str:
    """Check where a study is, and return it."""
    if not text.strip():
        raise click.BadParameter("expected a folder or the address of a database", param=option)
    if "://" in text and urlsplit(text).password is not None:
        told = "a password in an address is seen by everybody: PostgreSQL reads it from ~/.pgpass or PGPASSWORD"
        raise click.BadParameter(told, param=option)
    return text


def command_line() -> str:
    """Return the command line, for the report."""
    return shlex.join(["vedette", *sys.argv[1:]])


MODEL = click.argument("model")
OUT = click.argument("out", type=FilePath(dir_okay=False), callback=tflite_path)
DATA = click.option("--data", type=PATH, help="Folder, .tar or .npz of examples.")
RECIPE = click.option("--recipe", type=PATH, help="See `vedette optimise recipe`.")
LIMIT = click.option("--limit", type=click.IntRange(min=8), help="Use only N examples.", metavar="N")
FORCE = click.option("--force", is_flag=True, help="Replace OUT and the files beside it.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
BUDGET = click.option(
    "--budget",
    multiple=True,
    callback=_joined,
    help='What must be met: "size<2.8MB, loss<0.5pp, latency<20ms"; repeatable.',
)
MODULE = click.option(
    "--module",
    default="",
    metavar="PATH.py:FACTORY",
    help="What MODEL was imported from, or trained as; to prune.",
)
WEIGHTS = click.option("--weights", type=FilePath(dir_okay=False), help="To load, as torch saves them.")
