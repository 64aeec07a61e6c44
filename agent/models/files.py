"""Model files and manifests on disk: bundled ones by name, others by path. All content is untrusted.

A manifest is a TOML file, or a JSON file of microWakeWord, see `agent.models.wakeword`.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from agent.compute.manifest import Manifest, check_manifest, read_manifest
from agent.config.toml import TomlFile
from agent.errors import ModelError, reason_of
from agent.models import PREFIX, SUFFIX
from agent.structs import Keys

ZOO = Path(__file__).parent / "zoo"
_MODEL, _MANIFEST = ".tflite", ".toml"
_LARGEST = 2 * 1024**3
"""Largest model, bytes: offsets inside a flatbuffer have 31 bits."""
_LIKE = 0.6
"""Least likeness of a name that is suggested, 0..1."""
_MEMORY = Path("/proc/meminfo")
_LARGEST_TEXT = 1024**2
"""Largest manifest or list of labels, bytes; ImageNet's 21,000 names take 500 kB."""
_LARGEST_PART = 1024**2
"""Largest part of a model that is read before its kind is known, bytes."""
_preloaded: dict[str, tuple[bytes, TomlFile | None] | ModelError] = {}
_preloaded_parts: dict[str, bytes] = {}


def bundled() -> tuple[str, ...]:
    """Return the names of the models that come with Vedette, sorted."""
    return tuple(sorted(path.stem for path in ZOO.glob(f"*{_MANIFEST}")))


def is_packaged(name_or_path: str) -> bool:
    """Return True for the name of a model that comes with Vedette or a package, False for the path of a file."""
    return Path(name_or_path).suffix not in (_MODEL, _MANIFEST, SUFFIX)


def load_file(path: str | Path) -> tuple[bytes, TomlFile | None]:
    """Read a model file, and its manifest if there is one.

    Args:
        path: a bundled name, or a path to a `.tflite` or to its manifest, `.toml` or `.json`; a relative one
            starts at the working directory. The manifest of a `.tflite` is the `.toml` of the same stem.

    Returns:
        The model's bytes, and its manifest, which may be incomplete; None: there is none.

    Raises:
        ModelError: there is no such model, it cannot be read, its hash is wrong, or see `check_manifest`.
    """
    known = _preloaded.get(str(path))
    if isinstance(known, ModelError):
        raise known
    if known is not None:
        return known
    path = _resolve(str(path))
    if path.suffix == _MODEL:
        own = path.with_suffix(_MANIFEST)
        if not _is_file(own):
            return read(path), None
        manifest = _manifest(own)
        if (file := manifest.data.get("file", "")) not in ("", path.name):
            raise ModelError(f"{manifest.where('file')}: is the manifest of {file}, not of {path.name} beside it")
    else:
        manifest = _manifest(path)
        path = beside(path, manifest.data.get("file") or path.with_suffix(_MODEL).name, "file")
    return _read_verified(path, manifest), manifest


def model_path(name_or_path: str) -> Path:
    """Find the `.tflite` file of a model.

    Raises:
        ModelError: there is no such model, or its manifest cannot be read.
    """
    path = _resolve(name_or_path)
    if path.suffix == _MODEL:
        return path
    return beside(path, _manifest(path).data.get("file") or path.with_suffix(_MODEL).name, "file")


def report_path(model: Path) -> Path:
    """Return where the report of the step that has made a `.tflite` file lies."""
    return model.with_suffix(".report.json")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:  # its folder may be inaccessible
        raise ModelError(f"{path}: cannot be read: {reason_of(error)}") from error


@contextmanager
def preloaded(paths: Iterable[str]) -> Iterator[int]:
    """As root, read models now, so that `load_file` returns them from memory while the context lasts.

    For a process that gives up the right to read them. The secondary models of manifests and what verifies their
    words are read, too. Problems of a model are raised by `load_file`.

    Yields:
        The size of the models that were read, bytes.
    """
    size, waiting = 0, list(paths) if os.geteuid() == 0 else []
    while waiting:
        path = waiting.pop()
        if path in _preloaded:
            continue
        try:
            _preloaded[path] = loaded = load_file(path)
            size += len(loaded[0])
            data = loaded[1].data if loaded[1] else {}
            waiting += [one["model"] for one in data.get("secondary", ())]
            if verification := data.get("verification"):
                waiting.append(verification["model"])
                with suppress(ModelError):  # it is raised where the head is needed
                    _preloaded_parts[verification["head"]] = read(Path(verification["head"]), _LARGEST_PART)
        except ModelError as error:
            _preloaded[path] = error
    try:
        yield size
    finally:
        _preloaded.clear()
        _preloaded_parts.clear()


@contextmanager
def held(path: str, content: bytes, stated: TomlFile | None) -> Iterator[None]:
    """Let `load_file` return a model that is not on disk while the context lasts.

    Args:
        path: that it is called.
        content: of the model.
        stated: its manifest; None: it has none.
    """
    _preloaded[path] = content, stated
    try:
        yield
    finally:
        _preloaded.pop(path, None)


def manifest_path(name_or_path: str) -> Path:
    """Return the path of a model's TOML manifest.

    Raises:
        ModelError: there is none, or no such model.
    """
    named = _resolve(name_or_path)
    path = named.with_suffix(_MANIFEST) if named.suffix == _MODEL else named
    if path.suffix == _MANIFEST and path.is_file():
        return path
    if not _is_file(named):
        raise ModelError(f"{named}: {'not a file' if named.exists() else f'no such file{_nearest(named)}'}")
    raise ModelError(f"{name_or_path}: has no manifest {path.with_suffix(_MANIFEST).name} to write to")


def golden_paths(name_or_path: str, manifest: Manifest) -> list[Path]:
    """Return the paths of a model's golden files.

    Raises:
        ModelError: a file is not beside the manifest.
    """
    path = _resolve(name_or_path)
    return [beside(path, name, "golden.files") for name in manifest.golden.files]


def _resolve(name_or_path: str) -> Path:
    path, packaged = Path(name_or_path), is_packaged(name_or_path)
    if packaged and name_or_path.startswith(PREFIX):
        from agent.models.wakeword import packaged_path

        return packaged_path(name_or_path)
    if not packaged or len(path.parts) != 1 or path.exists():
        if packaged:
            raise ModelError(f"{path}: a model is a {_MODEL} file or its manifest, a {_MANIFEST} file")
        return path
    names = bundled()
    if name_or_path not in names:
        near = difflib.get_close_matches(name_or_path, names, 1, _LIKE)
        raise ModelError(
            f"no bundled model is called {name_or_path!r}"
            + (f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(names) or 'none'}.")
            + f" A file of yours needs its suffix, {_MODEL} or {_MANIFEST}"
        )
    return ZOO / f"{name_or_path}{_MANIFEST}"


def _manifest(path: Path) -> TomlFile:
    if path.suffix == SUFFIX:
        from agent.models.wakeword import read_wakeword

        keys = msgspec.to_builtins(read_wakeword(read(path, _LARGEST_TEXT), str(path)))
        return TomlFile(str(path), keys, {})
    manifest = read_manifest(read_text(path), str(path))
    output = manifest.data.get("output")
    if isinstance(output, dict) and isinstance(labels := output.get("labels"), str):
        output["labels"] = _labels(manifest, path, labels)
    check_manifest(manifest)
    _resolve_names(manifest, path)
    if sha256 := manifest.data.get("sha256"):
        manifest.data["sha256"] = sha256.strip().lower()
    return manifest


def _resolve_names(manifest: TomlFile, path: Path) -> None:
    """Replace the names of files that lie beside the manifest by their paths: of other models, and of a head."""
    for number, one in enumerate(manifest.data.get("secondary", ())):
        if not is_packaged(one["model"]):
            _resolve_name(manifest, path, one, "model", ("secondary", number))
    if (one := manifest.data.get("verification")) is not None:
        for key in ("head",) if is_packaged(one["model"]) else ("head", "model"):
            _resolve_name(manifest, path, one, key, ("verification",))


def _resolve_name(manifest: TomlFile, path: Path, table: dict[str, Any], key: str, keys: Keys) -> None:
    dotted = "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in (*keys, key)).removeprefix(".")
    try:
        table[key] = str(beside(path, table[key], dotted))
    except ModelError as error:
        raise ModelError(f"{manifest.where(*keys, key)}: {error}") from None


def _labels(manifest: TomlFile, path: Path, name: str) -> list[str]:
    """Read one label per line. Empty lines at the end do not count; others keep their number."""
    try:
        file = beside(path, name, "labels")
        if not file.exists():
            raise ModelError(
                f'[output] labels = "{name}": {file}: no such file; a string names a file of labels, a list '
                f'holds the labels themselves: labels = ["{name}"]'
            )
        return [line.strip() for line in read_text(file).rstrip().splitlines()]
    except ModelError as error:
        raise ModelError(f"{manifest.where('output', 'labels')}: {error}") from None


def beside(manifest: Path, name: str, key: str) -> Path:
    """Return the path of a file in the manifest's own folder.

    Raises:
        ModelError: the file would lie in another folder.
    """
    folder = manifest.parent
    path = folder / name
    try:
        if Path(name).name == name and path.resolve().parent == folder.resolve():
            return path
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{manifest}: {key} = {name!r}: {reason_of(error)}") from error
    raise ModelError(f"{manifest}: {key} = {name!r} must be a file in the manifest's own folder")


def _read_verified(path: Path, manifest: TomlFile) -> bytes:
    content = read(path)
    found, expected = hashlib.sha256(content).hexdigest(), manifest.data.get("sha256")
    if expected and found != expected:
        raise ModelError(
            f"{path}: its sha256 is {found}, but its manifest says {expected}; "
            "the file is damaged or another one: fetch it again, or correct the manifest"
        )
    return content


def read_text(path: Path) -> str:
    """Read a manifest or a list of labels.

    Raises:
        ModelError: see `read`; or the file is not UTF-8.
    """
    try:
        return read(path, _LARGEST_TEXT).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"{path}: not UTF-8 at byte {error.start}") from error


def read_part(path: str, largest: int) -> bytes:
    """Read a file of at most `largest` bytes that the manifest of a model names. Raises ModelError as `read`."""
    known = _preloaded_parts.get(path)
    return read(Path(path), largest) if known is None else known


def read(path: Path, largest: int = _LARGEST) -> bytes:
    """Read a whole file of at most `largest` bytes.

    Raises:
        ModelError: the file is missing, empty, larger than `largest` or the free memory, not plain, or
            unreadable.
    """
    try:
        found = path.stat()
        # A pipe or a device would block, or never end.
        if not stat.S_ISREG(found.st_mode):
            raise ModelError(f"{path}: not a file")
        if found.st_size > largest:
            raise ModelError(f"{path}: {found.st_size} bytes; at most {largest} can be used")
        if not found.st_size:
            raise ModelError(f"{path}: the file is empty")
        if found.st_size > (free := _free_bytes()):
            # Without this check the kernel would kill some process, perhaps the daemon.
            raise ModelError(f"{path}: {found.st_size} bytes, and {free} bytes of memory are free on this board")
        with path.open("rb") as file:
            return file.read(found.st_size)
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file{_nearest(path)}") from error
    except MemoryError as error:
        raise ModelError(f"{path}: {found.st_size} bytes: more memory than this process may have") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {reason_of(error)}") from error


def _free_bytes() -> int:
    """Return the memory that is available without swapping, bytes; a huge number if it is unknown."""
    try:
        lines = _MEMORY.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return 1 << 62


def _nearest(path: Path) -> str:
    if path.parent == ZOO:
        return ""
    near = difflib.get_close_matches(path.stem, bundled(), 1, _LIKE)
    return f"; there is a bundled model {near[0]!r} (without a suffix)" if near else ""
