"""Fetch models: a catalogue of those of others, a guide to those that suit a task, and files over HTTP.

An interrupted call is gone on from. Content is untrusted until its hash is right; only then it may be opened.
"""

from __future__ import annotations

import functools
import hashlib
import http.client
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

from msgspec import Meta, Struct

from agent.compute.decode import DECODERS
from agent.compute.manifest import FEATURES
from agent.config.toml import read_toml
from agent.config.wording import nearest
from agent.errors import ModelError, StorageError
from agent.storage.files import open_partial, refuse_special, remove, storage_errors
from agent.structs import convert
from agent.text import plain

LARGEST = 512 * 1024 * 1024
_CHUNK = 256 * 1024
_STALL_S, _TRIES, _WAIT_S = 30.0, 10, 1.0
_HEAD = 512
_SERVER_ERROR = 500

Progress = Callable[[int, int], None]
"""Called with the bytes that are there and those of the whole file, 0: not known."""


class _NoOtherScheme(urllib.request.HTTPRedirectHandler):
    """Follows redirections to HTTP and HTTPS alone, and from HTTPS to HTTPS."""

    def redirect_request(  # type: ignore[no-untyped-def]
        self, req, fp, code, msg, headers, newurl
    ) -> urllib.request.Request | None:
        before, after = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if after != "https" and (after, before) != ("http", "http"):
            raise ModelError(f"{shown(req.full_url)}: leads to {shown(newurl[:200])}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def file_name_of(url: str) -> str:
    """Return the name of the file that a URL names.

    Raises:
        ModelError: it is no URL of HTTP or HTTPS, or names no file.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ModelError(f"{shown(url)}: is no URL: {error}") from None
    name = unquote(parts.path).rpartition("/")[2]
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ModelError(f"{shown(url)}: expected a URL such as https://example.org/model.tflite")
    if not name or not name.isprintable() or name.startswith("."):
        raise ModelError(f"{shown(url)}: names no file: expected a URL that ends in the name of one")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ModelError(f"{shown(url)}: expected a URL whose spaces and letters beyond ASCII are written as %…")
    if parts.username is not None or parts.password is not None:
        raise ModelError(f"{parts.scheme}://***@{parts.hostname}: a login in a URL is not taken")
    return name


def shown(url: str) -> str:
    """Return a URL for messages and manifests: without its query, which may hold a secret."""
    return plain(url.partition("#")[0].partition("?")[0])


def fetch(url: str, target: Path, sha256: str, *, size: int = 0, progress: Progress = lambda *_: None) -> bool:
    """Fetch a file into `target`, which keeps what an interrupted call has fetched.

    Args:
        url: of HTTP or HTTPS.
        target: file; its folder exists. One with the right hash is not fetched again.
        sha256: of the file, in hexadecimal digits.
        size: of the file, bytes; 0: not known.
        progress: see `Progress`.

    Returns:
        False if the file was there already, and no server was asked.

    Raises:
        ModelError: the server does not answer, has no such file, or sends another one, which is then removed.
        StorageError: the file cannot be written.
    """
    file_name_of(url)
    refuse_special(target, StorageError, follow=False)
    resumed = target.exists()
    if _is_right(target, sha256):
        return False
    _fetch_whole(url, target, size, progress)
    if resumed and not _is_right(target, sha256):  # what was there may have been of another file
        remove(target)
        _fetch_whole(url, target, size, progress)
    if not _is_right(target, sha256):
        told = _told(target, sha256)
        remove(target)
        raise ModelError(f"{shown(url)}: the server sends {told}")
    return True


def _fetch_whole(url: str, target: Path, size: int, progress: Progress) -> None:
    """Fetch what is missing of a file; try again where it breaks off."""
    for tries in range(1, _TRIES + 1):
        try:
            return _append(url, target, size, progress)
        except (OSError, http.client.HTTPException, ValueError) as error:
            text = plain((str(getattr(error, "reason", error)).splitlines() or [""])[0] or type(error).__name__)
            if isinstance(error, urllib.error.HTTPError):
                text = f"the server answers {error.code} {text}"
            if not _may_pass(error):
                raise ModelError(f"{shown(url)}: {text}") from error
            if tries == _TRIES:
                text = f"cannot be fetched: {text}; try again"
                raise ModelError(f"{shown(url)}: {text}") from error
            time.sleep(_WAIT_S)


def _may_pass(error: Exception) -> bool:
    """Return True for what may be otherwise a moment later."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= _SERVER_ERROR
    if isinstance(getattr(error, "reason", error), ssl.SSLError):
        return False
    return isinstance(error, OSError | http.client.IncompleteRead | http.client.RemoteDisconnected)


def _append(url: str, target: Path, size: int, progress: Progress) -> None:
    """Fetch what is missing of a file, in one request."""
    there = target.stat().st_size if target.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "vedette", "Accept-Encoding": "identity"})
    if there:
        request.add_header("Range", f"bytes={there}-")
    opener = urllib.request.build_opener(_NoOtherScheme)
    try:
        answer = opener.open(request, timeout=_STALL_S)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and there:
            return  # nothing is missing, or it is another file: the hash tells
        raise
    with answer:
        if answer.status != http.HTTPStatus.PARTIAL_CONTENT:
            there = 0  # the server sends all of it
        coming = int(answer.headers.get("Content-Length") or 0)
        total = there + coming if coming else size
        if total > LARGEST:
            raise ModelError(f"{shown(url)}: {total / 1e6:.0f} MB: expected at most {LARGEST / 1e6:.0f}")
        received = _write(answer, target, there, total, progress)
    if received > LARGEST:
        remove(target)
        raise ModelError(f"{shown(url)}: the server sends more than {LARGEST / 1e6:.0f} MB")
    if total and received < total:
        raise http.client.IncompleteRead(b"", total - received)


def _write(answer: http.client.HTTPResponse, target: Path, there: int, total: int, progress: Progress) -> int:
    """Append to a file what a server sends; return the file's bytes."""
    with open_partial(target, there) as file:
        while there <= LARGEST and (chunk := answer.read1(_CHUNK)):
            with storage_errors(f"{target}: cannot be written"):
                file.write(chunk)
                file.flush()
            there += len(chunk)
            progress(there, total)
    return there


def _chunks(path: Path) -> Iterator[bytes]:
    with storage_errors(f"{path}: cannot be read"), path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    for chunk in _chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def _is_right(path: Path, sha256: str) -> bool:
    return path.is_file() and _digest(path) == sha256.lower()


def _told(path: Path, sha256: str) -> str:
    """Describe a file that has another hash."""
    head = next(_chunks(path), b"")[:_HEAD] if path.is_file() else b""
    if not head:
        return "nothing"
    if head.lstrip()[:1] == b"<":
        return "an HTML page, not the file: copy the address of the file itself"
    return f"another file: its sha256 is {_digest(path)}, expected {sha256.lower()}"


def check_file(path: Path, sha256: str) -> None:
    """Check the hash of a file.

    Raises:
        ModelError: it is another one. StorageError: it cannot be read.
    """
    if not _is_right(path, sha256):
        raise ModelError(f"{path}: is {_told(path, sha256)}")


_FILE, _GUIDE = Path(__file__).with_name("catalogue.toml"), Path(__file__).with_name("recommend.toml")
_Bytes = Annotated[int, Meta(gt=0)]

SAME_TASKS = {
    "detect": "detection",
    "classify": "classification",
    "face": "face detection",
    "segment": "segmentation",
    "speech": "keywords",
    "wakeword": "keywords",
    "inspect": "anomalies",
}
"""Words of the guide for tasks that are called otherwise in the catalogue."""


class CatalogueModel(Struct, frozen=True, forbid_unknown_fields=True):
    """A model that can be fetched.

    Attributes:
        name: under which it is fetched, and of the file that is written.
        task: what it does.
        description: of what, and with which input.
        licence: SPDX identifier.
        url: of the archive.
        sha256: of the archive.
        fetched_bytes: of the archive.
        member: name of the model in it.
        bytes: of the model.
        accuracy: as published; empty: nothing is.
        about: URL of its description.
        decoder: of its outputs.
        labels: of its classes.
        int8: bundled model that is this one as INT8; empty: none is.
    """

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    task: str
    description: str
    licence: str
    url: Annotated[str, Meta(pattern="^https://")]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    fetched_bytes: _Bytes
    member: str
    bytes: _Bytes
    accuracy: str
    about: str
    decoder: str
    labels: tuple[str, ...]
    int8: str = ""


@functools.cache
def catalogue() -> tuple[CatalogueModel, ...]:
    """Return the models that can be fetched, by name."""
    return convert(read_toml(_FILE, "the catalogue").data["models"], tuple[CatalogueModel, ...])


def find_in_catalogue(name: str) -> CatalogueModel:
    """Return a model of the catalogue.

    Raises:
        ModelError: there is none of this name.
    """
    known = {one.name: one for one in catalogue()}
    if name in known:
        return known[name]
    raise ModelError(f"{plain(name)}: no such model in the catalogue{nearest(name, known)}")


def with_task(task: str) -> tuple[CatalogueModel, ...]:
    """Return what the catalogue has for a task; empty: all.

    Raises:
        ModelError: no model has this task.
    """
    wanted = check_task(task)
    return tuple(one for one in catalogue() if wanted in ("", one.task))


def tasks_of(decoder: str) -> tuple[str, ...]:
    """Return the tasks that a model with this decoder may have."""
    if decoder == FEATURES:
        return ("features",)
    return DECODERS[decoder].tasks if decoder in DECODERS else ()


def known_tasks() -> list[str]:
    """Return the tasks of all decoders and of the catalogue."""
    listed = {one.task for one in catalogue()}
    return sorted({task for decoder in (*DECODERS, FEATURES) for task in tasks_of(decoder)} | listed)


def check_task(task: str) -> str:
    """Return a task as it is called here. Raise ModelError if no model can have it; an empty one is right."""
    task = SAME_TASKS.get(task, task)
    if task and task not in known_tasks():
        raise ModelError(f"{plain(task)}: there is no such task: expected {', '.join(known_tasks())}")
    return task


class GuideVariant(Struct, frozen=True, forbid_unknown_fields=True):
    """The recorded figures of a variant of a model.

    Attributes:
        bytes: size of the file.
        memory: estimate of what it adds to the daemon's memory, bytes.
        ms: latency by board: predicted with 1 thread, with 4, and the upper end of the interval with 4.
        name: of the variant; empty if it is the only one.
        family: small, tiny or medium; empty: none of them.
        accuracy: 0..1; None: not measured here.
        noisy: accuracy of words in noise 10 dB below, 0..1; None: not measured.
        figure, noisy_figure: keys under which the model's `command` prints the accuracies.
    """

    bytes: int
    memory: int
    ms: dict[str, tuple[float, float, float]]
    name: str = ""
    family: str = ""
    accuracy: float | None = None
    noisy: float | None = None
    figure: str = ""
    noisy_figure: str = ""


class GuideModel(Struct, frozen=True, forbid_unknown_fields=True):
    """A model that is known.

    Attributes:
        name: bundled, packaged, of the catalogue, or of a network of the workshop.
        task: what it is for, such as `detect`.
        what: what the accuracy is, or what was published.
        variants: most accurate first.
        command: measures the accuracy; empty: it was published.
        recorded: entry of scripts/bench/optimise/recorded.json that has the figures; empty: the command prints
            them.
        get: commands that make or fetch the model; empty: it is here.
    """

    name: str
    task: str
    what: str
    variants: tuple[GuideVariant, ...]
    command: str = ""
    recorded: str = ""
    get: tuple[str, ...] = ()


class Guide(Struct, frozen=True, forbid_unknown_fields=True):
    """The contents of `recommend.toml`. `boards`: their titles by name."""

    boards: dict[str, str]
    models: tuple[GuideModel, ...]

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return list(dict.fromkeys(model.task for model in self.models))


@functools.cache
def guide() -> Guide:
    """Return all that is known."""
    return convert(read_toml(_GUIDE, "the model guide").data, Guide)


def known_for(task: str, board: str) -> list[GuideModel]:
    """Return the models for a task. Raises ModelError if there is no such task or board."""
    for what, word, known in (("task", task, guide().tasks), ("board", board, list(guide().boards))):
        if word not in known:
            raise ModelError(f"no {what} {plain(word)!r}{nearest(word, known)}")
    return [model for model in guide().models if model.task == task]
