"""`vedette screening run`: screen pictures, and keep a record of each."""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
import os
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, get_args

import click
import cv2
import numpy as np
from msgspec import Struct

from agent import __version__
from agent.apps.screening import (
    NOTICE,
    TO_REVIEW,
    PictureJudgement,
    PictureRecord,
    ScreeningPoint,
    ScreeningRecord,
    StartRecord,
    Status,
    judge,
)
from agent.capture.images import SUFFIXES
from agent.capture.source import check_size, header_size
from agent.cli.optimise import show_progress
from agent.cli.output import console, open_table, print_json
from agent.cli.screening.review import AUDIT, KEY, NAMES, REVIEW, page_written, refuse_links
from agent.compute.drawing import annotate_detections, jpeg
from agent.config.toml import problems_of, read_toml
from agent.errors import ModelError, SourceError, StorageError, reason_of
from agent.models.library import open_model_without_root
from agent.models.screener import Screener, open_screener
from agent.storage.audit_log import AuditLog
from agent.storage.files import add_line, make_folder, read_regular, write_atomic
from agent.structs import convert, json_decoder
from agent.text import plain, plural
from agent.types import Detection, Image

_KEY_BYTES, _ID = 32, 16
_LARGEST = 512 * 1024 * 1024
_QUALITY, _PRIVATE = 90, 0o600
_WIDTH = 100
_decoder: Any = json_decoder(ScreeningRecord)


class ScreeningSummary(Struct, frozen=True):
    """What a run has done.

    Attributes:
        notice: `NOTICE`.
        label: what was looked for.
        pictures: number in this run, by status.
        known: pictures that have a record already, which stays.
        unread: files that cannot be read, and have no record.
        queue: pictures that wait for a person, also from earlier runs.
        head: hash of the last record.
    """

    notice: str
    label: str
    pictures: dict[str, int]
    known: int
    unread: int
    queue: int
    head: str


class _Run(NamedTuple):
    """What one picture needs."""

    out: Path
    point: ScreeningPoint
    screener: Screener
    log: AuditLog[ScreeningRecord]
    key: bytes


def screen_and_print(target: Path, pictures: tuple[Path, ...], out: Path, *, threads: int, as_json: bool) -> bool:
    """Screen pictures, and print how many are to be reviewed.

    Args:
        target: path of the operating point.
        pictures: files and folders.
        out: folder of the records.
        threads: of the CPU.
        as_json: print JSON instead of a table.

    Returns:
        False if a file could not be read.

    Raises:
        ModelError: the operating point or its model cannot be used. SourceError: there are no pictures.
        StorageError: the folder cannot be written, belongs to another operating point, or was changed.
    """
    point, digest = read_point(target)
    files = list(_files(pictures, out))
    model = open_model_without_root(point.model)
    if model.sha256 != point.sha256:
        raise ModelError(
            f"{target}: is for another file of the model {point.model}: choose the operating point anew with "
            "vedette screening calibrate"
        )
    with ExitStack() as stack:
        screener = stack.enter_context(open_screener(model, point.label, threads=threads))
        _prepare_folder(out)
        log = stack.enter_context(AuditLog(out / AUDIT, _decoder.decode))
        if log.dropped:
            click.echo(f"{plain(str(out / AUDIT))}: an incomplete record at its end was removed", err=True)
        _start(log, point, digest, out)
        found = _screen(files, _Run(out, point, screener, log, _key(out / KEY)))
        waiting = page_written(out, log.records)
        summary = ScreeningSummary(
            NOTICE, point.label, found.counts, found.known, len(found.unread), waiting, log.head
        )
    print_json(summary, indent=2) if as_json else _print(summary, point, out)
    for why in found.unread:
        click.echo(f"vedette: {plain(why)}", err=True)
    return not found.unread


def read_point(path: Path) -> tuple[ScreeningPoint, str]:
    """Return an operating point and the SHA-256 of its file.

    Raises:
        ConfigError: it is no TOML. ModelError: it is no operating point. StorageError: it cannot be read.
    """
    file = read_toml(path, "the operating point")
    if wrong := problems_of(file.data, ScreeningPoint, ()):
        raise ModelError(f"{path}: {wrong[0][1]}: vedette screening calibrate writes an operating point")
    point = convert(file.data, ScreeningPoint)
    if point.doubt > point.threshold:
        raise ModelError(f"{path}: `doubt` is above `threshold`: expected at most {point.threshold}")
    return point, hashlib.sha256(read_regular(path, _LARGEST)).hexdigest()


def _files(pictures: tuple[Path, ...], out: Path) -> Iterator[Path]:
    """Yield pictures; those of a folder by their names, also from its sub-folders, without those in `out`."""
    for path in pictures:
        if path.is_dir():
            inside = sorted(one for one in path.rglob("*") if one.suffix.lower() in SUFFIXES and one.is_file())
            inside = [one for one in inside if out.resolve() not in one.resolve().parents]
            if not inside:
                raise SourceError(f"{path}: has no pictures: expected {', '.join(sorted(SUFFIXES))}")
            yield from inside
        elif path.exists():
            yield path
        else:
            raise SourceError(f"{path}: there is no such file")


def _prepare_folder(out: Path) -> None:
    refuse_links(out)
    for folder in (out, out / REVIEW):
        make_folder(folder)


def _key(path: Path) -> bytes:
    """Return the folder's key, with which names become pseudonyms; it is made at the first run."""
    if not path.exists():
        write_atomic(path, secrets.token_bytes(_KEY_BYTES), _PRIVATE, follow=False)
    key = read_regular(path, _KEY_BYTES)
    if len(key) != _KEY_BYTES:
        raise StorageError(f"{path}: is damaged: expected {_KEY_BYTES} bytes, found {len(key)}")
    return key


def _start(log: AuditLog[ScreeningRecord], point: ScreeningPoint, digest: str, out: Path) -> None:
    """Record with what is screened; refuse the folder of another operating point."""
    starts = [one for one in log.records if isinstance(one, StartRecord)]
    if any(one.point != digest for one in starts):
        raise StorageError(f"{out}: was made with another operating point: give another --out")
    log.append(StartRecord(NOTICE, datetime.now(UTC), __version__, digest, point.sha256, point.label))


class _Screened(NamedTuple):
    counts: dict[str, int]
    known: int
    unread: list[str]


def _screen(files: list[Path], run: _Run) -> _Screened:
    done = {one.id for one in run.log.records if isinstance(one, PictureRecord)}
    counts, known, unread = Counter(dict.fromkeys(get_args(Status), 0)), 0, list[str]()
    try:
        for number, path in enumerate(files, 1):
            show_progress(f"{number} of {len(files)} pictures screened")
            try:
                content = read_regular(path, _LARGEST)
            except OSError as error:
                unread.append(f"{path}: cannot be read: {reason_of(error)}")
                continue
            except StorageError as error:
                unread.append(str(error))
                continue
            name = hmac.new(run.key, content, "sha256").hexdigest()[:_ID]
            if name in done:
                known += 1
            else:
                done.add(name)
                counts[_screen_one(path, content, name, run)] += 1
    finally:
        show_progress("")
    return _Screened(dict(counts), known, unread)


def _screen_one(path: Path, content: bytes, name: str, run: _Run) -> Status:
    """Screen a picture; its record comes last, so that nothing is missing once it is there."""
    picture, why = _decoded(content)
    if picture is None:
        found, width, height = PictureJudgement("unusable", (why,), ()), 0, 0
    else:
        height, width = picture.shape[:2]
        look = run.screener.look(picture, run.point.pictures, run.point.overlap)
        found = judge(look.found, look.quality, width, height, run.point)
    _name(run.out / NAMES, name, path)
    if picture is not None and found.status in TO_REVIEW:
        drawn = _drawn(picture, found, run.point.label)
        write_atomic(run.out / REVIEW / f"{name}.jpg", drawn, _PRIVATE, follow=False)
    run.log.append(
        PictureRecord(name, datetime.now(UTC), width, height, found.status, found.reasons, found.findings)
    )
    return found.status


def _decoded(content: bytes) -> tuple[Image | None, str]:
    """Return a picture, H×W×3 uint8 BGR, or why there is none."""
    try:
        check_size("it", *(header_size(content) or (0, 0)))
        found = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    except SourceError as error:
        return None, str(error)
    except cv2.error:
        found = None
    return (None, "cannot be decoded as a picture") if found is None else (np.asarray(found, np.uint8), "")


def _drawn(picture: Image, found: PictureJudgement, label: str) -> bytes:
    """Return a JPEG with the findings, without the metadata of the file."""
    shown = [Detection(label, one.probability, one.box) for one in found.findings]
    return jpeg(annotate_detections(picture, shown, order="bgr"), _QUALITY, "bgr")


def _name(path: Path, name: str, picture: Path) -> None:
    """Add a line to the table of names, which only its owner may read."""
    if not path.exists():
        write_atomic(path, b"id,picture\n", _PRIVATE, follow=False)
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow([name, os.fspath(picture.absolute())])
    add_line(path, line.getvalue().encode(errors="surrogateescape"))


def _print(summary: ScreeningSummary, point: ScreeningPoint, out: Path) -> None:
    table = open_table("status", "pictures", right=("pictures",))
    for status, count in summary.pictures.items():
        table.add_row(status, str(count))
    console(_WIDTH, markup=False).print(table)
    if summary.known:
        click.echo(f"{plural(summary.known, 'picture')} had a record already")
    low, high = point.expected.interval
    click.echo(
        plain(
            f"{point.label}: on the labelled pictures {point.expected.sensitivity:.1%} were found ({low:.1%} to "
            f"{high:.1%}) at {point.expected.false_positives:.2f} false positives a picture"
        )
    )
    click.echo(plain(f"{plural(summary.queue, 'picture')} to review: {out / 'review.html'}"))
    click.echo(NOTICE)
