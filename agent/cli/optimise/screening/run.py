"""`vedette optimise screening run`: screen pictures, and keep a record of each."""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
import os
import secrets
from collections import Counter
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, get_args

import click
import cv2
import numpy as np
from msgspec import Struct

from agent import __version__
from agent.capture.local import SUFFIXES
from agent.capture.source import LARGEST_PIXELS, header_size
from agent.cli.optimise.screening.review import AUDIT, KEY, NAMES, REVIEW, page_written, refuse_links
from agent.cli.output import console, open_table, print_json, show_progress
from agent.compute.drawing import annotate_detections, jpeg
from agent.config.toml import problems_of, read_toml
from agent.errors import ModelError, SourceError, StorageError, reason_of
from agent.features.screening.rules import (
    NOTICE,
    TO_REVIEW,
    PictureJudgement,
    PictureRecord,
    ScreeningPoint,
    ScreeningRecord,
    StartRecord,
    Status,
    check_of,
    judge,
)
from agent.features.screening.screener import Screener, manifest_sha256, open_screener
from agent.models.library import open_model_without_root
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
    """Result of a run.

    Attributes:
        notice: `NOTICE`.
        label: what was looked for.
        pictures: number in this run, by status.
        known: pictures that have a record already, which stays, or are the same as others.
        left_out: number of other files in the folders.
        unread: files that cannot be read, and have no record.
        queue: pictures that wait for a person, also from earlier runs.
        head: hash of the last record.
    """

    notice: str
    label: str
    pictures: dict[str, int]
    known: int
    left_out: int
    unread: int
    queue: int
    head: str


class _Run(NamedTuple):
    """State of a run, for each of its pictures."""

    out: Path
    point: ScreeningPoint
    screener: Screener
    log: AuditLog[ScreeningRecord]
    key: bytes
    names: _Names


def screen_and_print(target: Path, pictures: tuple[Path, ...], out: Path, *, threads: int, as_json: bool) -> bool:
    """Screen files and folders with the operating point `target`; return False if a file could not be read.

    Raises:
        ModelError: the operating point or its model cannot be used. SourceError: there are no pictures.
        StorageError: the folder cannot be written, belongs to another operating point, or was changed.
    """
    point, digest = read_point(target)
    chosen = _chosen(pictures, out)
    model = open_model_without_root(point.model)
    if (model.sha256, manifest_sha256(model)) != (point.sha256, point.manifest):
        raise ModelError(
            f"{target}: is for another file of the model {point.model}, or for another manifest: choose the "
            "operating point anew with vedette optimise screening calibrate"
        )
    with ExitStack() as stack:
        screener = stack.enter_context(open_screener(model, point.label, threads=threads))
        _prepare_folder(out)
        log = stack.enter_context(AuditLog(out / AUDIT, _decoder.decode))
        if log.dropped:
            click.echo(f"{plain(str(out / AUDIT))}: an incomplete record at its end was removed", err=True)
        key = _key(out / KEY, is_new=not any(isinstance(one, PictureRecord) for one in log.records))
        _start(log, point, digest, out)
        names = _Names(out / NAMES)
        try:
            counts, known, unread = _screen(chosen.files, _Run(out, point, screener, log, key, names))
        except BaseException:
            page_written(out, log.records)
            click.echo("not finished: the same command goes on", err=True)
            raise
        waiting, unread = page_written(out, log.records), [*chosen.unread, *unread]
        summary = ScreeningSummary(
            NOTICE, point.label, counts, known, len(chosen.others), len(unread), waiting, log.head
        )
    print_json(summary, indent=2) if as_json else _print(summary, point, out)
    for why in unread:
        click.echo(f"vedette: {plain(why)}", err=True)
    return not unread


def read_point(path: Path) -> tuple[ScreeningPoint, str]:
    """Return an operating point and the SHA-256 of its file.

    Raises:
        ConfigError: it is no TOML. ModelError: it is no operating point. StorageError: it cannot be read.
    """
    file = read_toml(path, "the operating point")
    if wrong := problems_of(file.data, ScreeningPoint, ()):
        fault = wrong[0][1].removeprefix("``: ")
        raise ModelError(f"{path}: {fault}: vedette optimise screening calibrate writes an operating point")
    point = convert(file.data, ScreeningPoint)
    if point.check != check_of(point):
        raise ModelError(
            f"{path}: was changed by hand, and what is expected does not hold any more: choose another operating "
            "point with vedette optimise screening calibrate"
        )
    return point, hashlib.sha256(read_regular(path, _LARGEST)).hexdigest()


class _Chosen(NamedTuple):
    """Files to screen, other files in their folders, and what cannot be read."""

    files: list[Path]
    others: list[Path]
    unread: list[str]


def _chosen(pictures: tuple[Path, ...], out: Path) -> _Chosen:
    """Return the pictures; those of a folder by their names, also from its sub-folders, but for OUT's own."""
    found = _Chosen([], [], [])
    for path in pictures:
        if path.is_dir():
            _choose_inside(path, out.resolve() / REVIEW, found)
        elif os.path.lexists(path):
            found.files.append(path)
        else:
            raise SourceError(f"{path}: there is no such file")
    if not found.files and not found.unread:
        raise SourceError(f"{pictures[0]}: has no pictures: expected {', '.join(sorted(SUFFIXES))}")
    return found


def _choose_inside(folder: Path, own: Path, found: _Chosen) -> None:
    def refused(error: OSError) -> None:
        found.unread.append(f"{error.filename}: cannot be read: {reason_of(error)}")

    for place, folders, names in os.walk(folder, onerror=refused):
        if AUDIT in names:  # results of another run
            folders[:] = [name for name in folders if name != REVIEW]
        folders[:] = sorted(name for name in folders if Path(place, name).resolve() != own)
        links = [path for name in folders if (path := Path(place, name)).is_symlink()]
        found.unread.extend(f"{path}: is a link to a folder, which is not followed" for path in links)
        for path in (Path(place, name) for name in sorted(names)):
            (found.files if path.suffix.lower() in SUFFIXES else found.others).append(path)


class _Names:
    """The table of names, which only its owner may read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.exists():
            write_atomic(path, b"id,picture\n", _PRIVATE, follow=False)
        text = read_regular(path, _LARGEST).decode(errors="surrogateescape")
        self._known = {tuple(row) for row in csv.reader(io.StringIO(text, newline=""))}

    def add(self, name: str, picture: Path) -> None:
        row = (name, os.fspath(picture.absolute()))
        if row not in self._known:
            line = io.StringIO()
            csv.writer(line, lineterminator="", quoting=csv.QUOTE_ALL).writerow(row)
            add_line(self._path, line.getvalue().encode(errors="surrogateescape"))
            self._known.add(row)


def _prepare_folder(out: Path) -> None:
    refuse_links(out)
    for folder in (out, out / REVIEW):
        make_folder(folder)
    (out / REVIEW).chmod(0o700)


def _key(path: Path, *, is_new: bool) -> bytes:
    """Return the folder's key, with which names become pseudonyms; it is made at the first run."""
    if not path.exists() and not is_new:
        raise StorageError(f"{path}: is gone, and pictures would be screened anew: give another --out")
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


def _screen(files: list[Path], run: _Run) -> tuple[dict[str, int], int, list[str]]:
    """Screen files; return numbers by status, the number of known ones, and what cannot be read."""
    done = {one.id for one in run.log.records if isinstance(one, PictureRecord)}
    counts, known, unread = Counter(dict.fromkeys(get_args(Status), 0)), 0, list[str]()
    try:
        for number, path in enumerate(files, 1):
            show_progress(f"{number} of {len(files)} pictures screened")
            try:
                content = _content(path)
            except SourceError as error:
                unread.append(str(error))
                continue
            name = hmac.new(run.key, content, "sha256").hexdigest()[:_ID]
            run.names.add(name, path)
            if name in done:
                known += 1
            else:
                done.add(name)
                counts[_screen_one(content, name, run)] += 1
    finally:
        show_progress("")
    return dict(counts), known, unread


def _content(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise SourceError(f"{path}: is gone, or no regular file")
        return read_regular(path.resolve(), _LARGEST)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {reason_of(error)}") from error
    except StorageError as error:
        raise SourceError(str(error)) from error


def _screen_one(content: bytes, name: str, run: _Run) -> Status:
    """Screen a picture; its record comes last, so that nothing is missing once it is there."""
    picture, why = _decoded(content)
    if picture is None:
        found, width, height = PictureJudgement("unusable", (why,), ()), 0, 0
    else:
        height, width = picture.shape[:2]
        look = run.screener.look(picture, run.point.pictures, run.point.overlap)
        found = judge(look.found, look.quality, width, height, run.point)
    if picture is not None and found.status in TO_REVIEW:
        drawn = _drawn(picture, found, run.point.label)
        write_atomic(run.out / REVIEW / f"{name}.jpg", drawn, _PRIVATE, follow=False)
    run.log.append(
        PictureRecord(name, datetime.now(UTC), width, height, found.status, found.reasons, found.findings)
    )
    return found.status


def _decoded(content: bytes) -> tuple[Image | None, str]:
    """Return a picture, H×W×3 uint8 BGR, or why there is none."""
    size = header_size(content)
    if size is None:  # other formats may unpack to any size
        return None, "is no JPEG, PNG or BMP"
    if size[0] * size[1] > LARGEST_PIXELS:
        return (
            None,
            f"{size[0]}x{size[1]} pixels: expected at most {LARGEST_PIXELS / 1e6:.0f} megapixels: cut it up",
        )
    try:
        found = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        found = None
    return (None, "cannot be decoded as a picture") if found is None else (np.asarray(found, np.uint8), "")


def _drawn(picture: Image, found: PictureJudgement, label: str) -> bytes:
    """Return a JPEG with the findings, without the metadata of the file."""
    shown = [Detection(label, one.probability, one.box) for one in found.findings]
    return jpeg(annotate_detections(picture, shown, order="bgr"), _QUALITY, "bgr")


def _print(summary: ScreeningSummary, point: ScreeningPoint, out: Path) -> None:
    table = open_table("status", "pictures", right=("pictures",))
    for status, count in summary.pictures.items():
        table.add_row(status, str(count))
    console(_WIDTH, markup=False).print(table)
    if summary.known:
        click.echo(f"{plural(summary.known, 'picture')} had a record already, or the same content as others")
    if summary.left_out:
        click.echo(f"{plural(summary.left_out, 'other file')} in the folders not screened")
    low, high = point.expected.interval
    click.echo(
        plain(
            f"{point.label}: on the labelled pictures {point.expected.sensitivity:.1%} were found ({low:.1%} to "
            f"{high:.1%}) at {point.expected.false_positives:.2f} false positives a picture"
        )
    )
    click.echo(plain(f"{plural(summary.queue, 'picture')} to review: {out / 'review.html'}"))
    click.echo(NOTICE)
