"""A small file in the state folder that is kept twice: what was written last outlives the damage of either."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from msgspec import Struct

from agent.errors import StorageError
from agent.storage.statefile import StateFile

T = TypeVar("T")


class Found(Struct, Generic[T], frozen=True):
    """What the two files hold.

    Attributes:
        content: that counts; None: there is none that can be used.
        faults: what is wrong, a line for each file; without any and without content nothing was ever written.
        damaged: files that are there and cannot be used.
    """

    content: T | None
    faults: tuple[str, ...] = ()
    damaged: tuple[StateFile, ...] = ()


class TwinFile:
    """The two. One write of each makes a change: a power cut in between leaves two of which the first counts."""

    def __init__(self, path: Path) -> None:
        """Name them; nothing is read or written yet.

        Args:
            path: of the first; the second is called `NAME.copy.SUFFIX` and lies beside it.
        """
        self.path = path
        self._files = StateFile(path), StateFile(path.with_name(f"{path.stem}.copy{path.suffix}"))

    def read(self, decoded: Callable[[bytes], T]) -> Found[T]:
        """What was written last, as far as one of the two can be used.

        Args:
            decoded: understands a content; raises a StorageError for what was never written.
        """
        usable: dict[StateFile, bytes] = {}
        faults: dict[StateFile, str] = {}
        content: T | None = None
        for file in self._files:
            try:
                if (data := file.read()) is not None:
                    value = decoded(data)
                    content, usable[file] = (value if content is None else content), data
            except StorageError as error:
                faults[file] = f"{file.path}: {str(error).removeprefix(f'{file.path}: ')}"
        damaged = tuple(faults)
        if usable or faults:
            missing = [file for file in self._files if file not in usable and file not in faults]
            faults |= {file: f"{file.path}: is missing" for file in missing}
        if len(set(usable.values())) > 1:
            faults[self._files[1]] = f"{self._files[1].path}: is not what {self.path.name} is, which counts"
        return Found(content, tuple(faults.values()), damaged)

    def write(self, content: bytes) -> None:
        """Replace both; an empty content deletes them.

        Raises:
            StorageError: the disk refuses; the first, or both, are as they were.
        """
        # What is deleted last counts until then: a first that is missing is made up for by the second.
        for file in self._files if content else reversed(self._files):
            file.write(content)
