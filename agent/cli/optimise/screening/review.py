"""`vedette optimise screening review` and `verify`: what waits for a person, is decided, and was recorded."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import click

from agent.cli.output import console, open_table, print_json
from agent.errors import CommandError, StorageError
from agent.features.screening.rules import (
    NOTICE,
    PictureRecord,
    ReviewRecord,
    ScreeningRecord,
    Verdict,
    priority,
    queue_of,
)
from agent.html_page import html_figure, html_page, html_text
from agent.storage.audit_log import AuditLog, head_path, read_audit
from agent.storage.files import remove, write_atomic
from agent.structs import json_decoder
from agent.text import plain, plural

AUDIT, REVIEW, PAGE, NAMES, KEY = "audit.jsonl", "review", "review.html", "names.csv", "key"
_HEAD = "audit.head"
_SHOWN = 50
_WIDTH = 100
_NOTE = 500
_decoder: Any = json_decoder(ScreeningRecord)


def list_queue(out: Path, *, as_json: bool) -> None:
    """Print the pictures that wait for a person.

    Raises:
        StorageError: there are no records, or they were changed.
    """
    waiting = queue_of(_records(out))
    if as_json:
        print_json({"notice": NOTICE, "queue": waiting}, indent=2)
        return
    table = open_table("picture", "status", "probability", "found", "why", right=("probability", "found"))
    for one in waiting[:_SHOWN]:
        table.add_row(one.id, one.status, _percent(one), str(len(one.findings)), plain("; ".join(one.reasons)))
    console(_WIDTH, markup=False).print(table)
    more = f", the first {_SHOWN} shown" if len(waiting) > _SHOWN else ""
    click.echo(f"{plural(len(waiting), 'picture')} to review{more}: {plain(str(out / PAGE))}")
    click.echo(NOTICE)


def record_review(
    out: Path, picture: str, verdict: str, reviewer: str, note: str, *, as_json: bool = False
) -> None:
    """Record what a person has decided on a picture.

    Raises:
        CommandError: there is no such picture, or a text is too long. StorageError: the records cannot be used.
    """
    if max(len(reviewer), len(note)) > _NOTE:
        raise CommandError(f"--reviewer and --note: expected at most {_NOTE} characters")
    _require(out)
    with AuditLog(out / AUDIT, _decoder.decode) as log:
        known = {one.id for one in log.records if isinstance(one, PictureRecord)}
        if picture not in known:
            raise CommandError(f"{picture}: there is no record of such a picture in {out}")
        (chosen,) = (one for one in get_args(Verdict) if one == verdict)
        made = ReviewRecord(picture, datetime.now(UTC), chosen, plain(reviewer), plain(note, keep="\n"))
        log.append(made)
        waiting = page_written(out, log.records)
    remove(out / REVIEW / f"{picture}.jpg")
    if as_json:
        print_json({"id": picture, "verdict": verdict, "queue": waiting})
    else:
        click.echo(f"{picture}: {verdict}; {plural(waiting, 'picture')} to review")


def verify_records(out: Path, head: str, *, as_json: bool) -> None:
    """Check the records, and print how many there are.

    Raises:
        StorageError: one was changed, or `head` is the hash of none.
    """
    _require(out)
    found, last, seen = 0, "", not head
    for _, last in read_audit(out / AUDIT, _decoder.decode):
        found += 1
        seen = seen or last == head.lower()
    if not found:
        raise StorageError(f"{out / AUDIT}: is empty")
    if not seen:
        raise StorageError(f"{out / AUDIT}: no record has the hash {head}: that record was changed or removed")
    if as_json:
        print_json({"records": found, "head": last})
    else:
        click.echo(f"{plural(found, 'record')}, one behind the other; the last one has the hash {last}")


def page_written(out: Path, records: Sequence[ScreeningRecord]) -> int:
    """Write the page of the pictures that wait for a person; return their number.

    Raises:
        StorageError: it cannot be written.
    """
    waiting = queue_of(records)
    parts = [html_text(NOTICE), *map(_figure, waiting)]
    page = html_page(f"Screening: {plural(len(waiting), 'picture')} to review", parts)
    write_atomic(out / PAGE, page.encode(), 0o600, follow=False)
    return len(waiting)


def _figure(one: PictureRecord) -> str:
    why = "; ".join(one.reasons)
    told = f"{one.id} {one.status} {_percent(one)}{': ' if why else ''}{why}"
    return html_figure(told, f"{REVIEW}/{one.id}.jpg" if one.width else "")


def _percent(one: PictureRecord) -> str:
    return f"{priority(one):.0%}" if one.findings else ""


def _records(out: Path) -> list[ScreeningRecord]:
    _require(out)
    return [record for record, _ in read_audit(out / AUDIT, _decoder.decode)]


def refuse_links(out: Path) -> None:
    """Refuse a folder in which one of our files is a link, which leads elsewhere.

    Raises:
        StorageError: one is.
    """
    for name in (AUDIT, _HEAD, REVIEW, PAGE, NAMES, KEY):
        if (out / name).is_symlink():
            raise StorageError(f"{out / name}: is a symbolic link, and is not followed: remove it")


def _require(out: Path) -> None:
    refuse_links(out)
    if head_path(out / AUDIT).exists() and not (out / AUDIT).exists():
        raise StorageError(f"{out / AUDIT}: is gone: records were removed")
    if not (out / AUDIT).is_file():
        raise StorageError(f"{out}: has no records: vedette optimise screening run writes them")
