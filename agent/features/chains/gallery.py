"""Galleries: folders of pictures of known things, one sub-folder for each, that embeddings are compared with."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from agent.errors import ModelError, SourceError, reason_of
from agent.text import is_plain
from agent.types import Image

log = logging.getLogger(__name__)
MOST, LARGEST_PIXELS = 200, 4_000_000
"""Most pictures of a gallery, and pixels of each: all are run through the model when the stream is opened, within
the time after which a stream counts as stuck."""
_HEAD = 65_536
"""Bytes of a file in which the size of its picture is looked for."""


class GalleryFolder:
    """Pictures of a gallery, in the order of their paths. They are read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        """Find the pictures.

        Raises:
            ModelError: there is no such folder, it cannot be read, or it has no pictures in sub-folders, or too
                many.
        """
        from agent.capture.local import SUFFIXES

        self._folder = folder
        try:
            if not folder.is_dir():
                raise ModelError(f"gallery {folder}: there is no such folder")
            found = self._files()
        except OSError as error:
            raise ModelError(f"gallery {folder}: cannot be read: {reason_of(error)}") from error
        if not found:
            raise ModelError(
                f"gallery {folder}: no pictures ({', '.join(SUFFIXES)}); expected a sub-folder for each name, "
                f"such as {folder / 'anna' / '1.jpg'}"
            )
        if len(found) > MOST:
            raise ModelError(f"gallery {folder}: {len(found)} pictures; at most {MOST} can be used")
        for path in found:
            if not is_plain(path.parent.name):
                raise ModelError(f"gallery {folder}: the folder {path.parent.name!r} is no name that can be told")

    def _files(self) -> list[Path]:
        from agent.capture.local import SUFFIXES

        paths = (path for path in sorted(self._folder.glob("*/*")) if path.suffix.lower() in SUFFIXES)
        return [path for path in paths if path.is_file()]  # a pipe would block

    @property
    def state(self) -> tuple[tuple[str, int, int], ...]:
        """Path, size and time of change of each picture now; empty: the folder cannot be read."""
        try:
            files = ((path, path.stat()) for path in self._files())
            return tuple((str(path), status.st_size, status.st_mtime_ns) for path, status in files)
        except OSError:
            return ()

    def read(self) -> Iterator[tuple[str, Image]]:
        """Yield the name and the picture, H×W×3 uint8 BGR, of each file; warn of files that are left out.

        Raises:
            ModelError: no file is a picture that can be used.
        """
        from agent.capture.local import read_picture

        used = 0
        for path in self._files():
            try:
                _check_size(path)
                image = read_picture(path)
                if image is None:
                    raise SourceError("cannot be decoded as a picture")
            except (SourceError, OSError) as error:
                log.warning("gallery: %s is left out: %s", path, error)
                continue
            used += 1
            yield path.parent.name, image
        if not used:
            raise ModelError(f"gallery {self._folder}: none of its files is a picture that can be used")


def _check_size(path: Path) -> None:
    from agent.capture.source import header_size

    with path.open("rb") as file:
        width, height = header_size(file.read(_HEAD)) or (0, 0)
    if width * height > LARGEST_PIXELS:
        raise SourceError(
            f"{width}x{height} pixels; expected at most {LARGEST_PIXELS // 10**6} megapixels: crop it"
        )
