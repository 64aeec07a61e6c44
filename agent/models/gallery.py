"""Galleries: folders of pictures of known things, one sub-folder for each, that embeddings are compared with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from agent.errors import ModelError, SourceError, reason_of
from agent.types import Image

MOST = 1000
"""Most pictures of a gallery: each is run through the model when the stream is opened."""


class GalleryFolder:
    """Pictures of a gallery, in the order of their paths. They are read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        """Find the pictures.

        Raises:
            ModelError: there is no such folder, it cannot be read, or it has no pictures in sub-folders, or too
                many.
        """
        self._folder = folder
        try:
            if not folder.is_dir():
                raise ModelError(f"gallery {folder}: there is no such folder")
            found = self._files()
        except OSError as error:
            raise ModelError(f"gallery {folder}: cannot be read: {reason_of(error)}") from error
        if not found:
            raise ModelError(
                f"gallery {folder}: no pictures; expected a sub-folder for each name, such as "
                f"{folder / 'anna' / '1.jpg'}"
            )
        if len(found) > MOST:
            raise ModelError(f"gallery {folder}: {len(found)} pictures; at most {MOST} can be used")

    def _files(self) -> list[Path]:
        from agent.capture.images import SUFFIXES

        return [path for path in sorted(self._folder.glob("*/*")) if path.suffix.lower() in SUFFIXES]

    @property
    def state(self) -> tuple[tuple[str, int, int], ...]:
        """Path, size and time of change of each picture now; empty: the folder cannot be read."""
        try:
            files = ((path, path.stat()) for path in self._files())
            return tuple((str(path), status.st_size, status.st_mtime_ns) for path, status in files)
        except OSError:
            return ()

    def read(self) -> Iterator[tuple[str, Image]]:
        """Yield the name and the picture, H×W×3 uint8 BGR, of each file.

        Raises:
            ModelError: a file is no picture.
        """
        from agent.capture.images import read_picture

        for path in self._files():
            try:
                image = read_picture(path)
            except SourceError as error:
                raise ModelError(f"gallery: {error}") from None
            if image is None:
                raise ModelError(f"gallery: {path}: cannot be decoded as a picture")
            yield path.parent.name, image
