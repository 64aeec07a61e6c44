"""Snapshots that come in: shown in the terminal as well as it can, or kept as files, or both.

They come from strangers. What is no picture of a bearable size is left out with a word; what is shown has been
decoded and encoded anew; and file names are made of what a name may have.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from agent.capture.image_size import read_size
from agent.comms.consumer.subscribe import ReceivedMessage
from agent.storage.files import write_atomic
from agent.text import plain

if TYPE_CHECKING:
    from agent.types import Image


# Pictures in a terminal: by the graphics of kitty or iTerm2 where it says that it has them, else in half blocks.
#
# It says so by the environment alone: a question to the terminal would have to wait for an answer that may never
# come, and its answer could end up in what is typed.
#
# Protocols: https://sw.kovidgoyal.net/kitty/graphics-protocol/ and https://iterm2.com/documentation-images.html

Graphics = Literal["kitty", "iterm2", "blocks"]

_KITTY = ("xterm-kitty", "xterm-ghostty")
_ITERM2 = ("iTerm.app", "WezTerm", "mintty")
_CHUNK = 4096
"""Characters of base64 in one command of kitty, at most."""
_WIDEST = 80
"""Columns of a picture, at most."""
_CELL = 10
"""Pixels of a column, for graphics: enough to see something, and little to send."""


def graphics(environment: Mapping[str, str]) -> Graphics:
    """What a terminal can do, by what it has put into the environment.

    Within tmux and screen graphics would have to be passed through, which they do not do unless told to.
    """
    term = environment.get("TERM", "")
    if environment.get("TMUX") or term.startswith(("screen", "tmux")):
        return "blocks"
    programs = (environment.get("TERM_PROGRAM", ""), environment.get("LC_TERMINAL", ""))
    if term in _KITTY or environment.get("KITTY_WINDOW_ID") or "ghostty" in programs:
        return "kitty"
    if set(programs) & {*_ITERM2, "iTerm2"}:
        return "iterm2"
    return "blocks"


class TerminalImage:
    """Shows pictures one below the other."""

    def __init__(self, how: Graphics) -> None:
        self._how = how

    def show(self, title: str, jpeg: bytes) -> bool:
        """Show a picture whose size is bearable; whether it could be decoded."""
        columns = min(_WIDEST, shutil.get_terminal_size().columns)
        picture = decoded(jpeg, columns * (1 if self._how == "blocks" else _CELL))
        if picture is None:
            return False
        click.echo(title)
        if self._how == "blocks":
            _show_blocks(picture)
        else:
            made = kitty(picture, columns) if self._how == "kitty" else iterm2(picture, columns)
            sys.stdout.write("".join(made) + "\n")
            sys.stdout.flush()
        return True


def decoded(jpeg: bytes, width: int) -> Image | None:
    """The picture, RGB, at most so many pixels wide; None: it cannot be decoded."""
    import cv2
    import numpy as np

    try:
        found = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        if found is None:
            return None
        height = max(1, round(found.shape[0] * width / found.shape[1]))
        if found.shape[1] > width:
            found = cv2.resize(found, (width, min(height, 4 * width)), interpolation=cv2.INTER_AREA)
        return cv2.cvtColor(found, cv2.COLOR_BGR2RGB)  # type: ignore[return-value]
    except cv2.error:
        return None


def kitty(picture: Image, columns: int) -> Iterator[str]:
    """The commands that show a picture: it is sent as PNG and drawn so many columns wide; nothing is answered."""
    text = base64.b64encode(_encoded(".png", picture)).decode("ascii")
    pieces = [text[at : at + _CHUNK] for at in range(0, len(text), _CHUNK)]
    for number, piece in enumerate(pieces):
        keys = f"a=T,f=100,q=2,c={columns}," if number == 0 else ""
        yield f"\x1b_G{keys}m={int(number + 1 < len(pieces))};{piece}\x1b\\"


def iterm2(picture: Image, columns: int) -> Iterator[str]:
    """The command that shows a picture in the line."""
    data = _encoded(".jpg", picture)
    text = base64.b64encode(data).decode("ascii")
    yield f"\x1b]1337;File=inline=1;size={len(data)};width={columns};preserveAspectRatio=1:{text}\a"


def _encoded(suffix: str, picture: Image) -> bytes:
    import cv2

    _, data = cv2.imencode(suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    return data.tobytes()


def _show_blocks(picture: Image) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for above, below in zip(picture[0:-1:2], picture[1::2], strict=False):
        line = Text(no_wrap=True)
        for upper, lower in zip(above.tolist(), below.tolist(), strict=True):
            line.append("▀", f"rgb({upper[0]},{upper[1]},{upper[2]}) on rgb({lower[0]},{lower[1]},{lower[2]})")
        console.print(line)


MOST_BYTES, MOST_PIXELS = 8_000_000, 50_000_000
MOST_FILES = 1000
"""In a folder: a name costs a stranger nothing."""
_STRANGE = re.compile(r"[^A-Za-z0-9_-]")
_LONGEST = 64


class SnapshotSaver:
    """Takes the snapshots out of all that comes."""

    def __init__(self, screen: TerminalImage | None, folder: Path | None) -> None:
        """Keep or show.

        Args:
            screen: to show them on; None: nowhere.
            folder: existing, to keep the newest of each stream in; None: nowhere.
        """
        self._screen, self._folder = screen, folder
        self._files: set[str] = set()

    def tap(self, messages: Iterable[ReceivedMessage | None]) -> Iterator[ReceivedMessage | None]:
        """The messages as they come; a snapshot is taken when what is behind has done with it.

        Raises:
            StorageError: a file cannot be written.
        """
        for message in messages:
            yield message
            if message is not None:
                self.take(message)

    def take(self, message: ReceivedMessage) -> None:
        """A message; what is no snapshot is left alone.

        Raises:
            StorageError: the file cannot be written.
        """
        if message.kind != "snapshot" or not message.payload:
            return
        about = plain(f"{message.device}/{message.stream}")
        if why := _refusal(message.payload):
            click.echo(f"{about}: {why}", err=True)
            return
        if self._folder is not None:
            self._keep(self._folder, message)
        if self._screen is not None and not self._screen.show(about, message.payload):
            click.echo(f"{about}: cannot be decoded", err=True)

    def _keep(self, folder: Path, message: ReceivedMessage) -> None:
        name = file_name(message.device, message.stream)
        if name not in self._files and len(self._files) >= MOST_FILES:
            return
        self._files.add(name)
        write_atomic(folder / name, message.payload)


def _refusal(data: bytes) -> str:
    """Why this is no picture for us; empty if it is one."""
    if len(data) > MOST_BYTES:
        return f"a snapshot of {len(data)} bytes is left out"
    size = read_size(data)
    if size is None:
        return "a snapshot that is no JPEG is left out"
    width, height = size
    return f"a snapshot of {width}x{height} is left out" if width * height > MOST_PIXELS else ""


def file_name(device: str, stream: str) -> str:
    """Name of a stream's file, the same each time, and another for each stream: `porch.front.jpg`."""
    return f"{_safe(device)}.{_safe(stream)}.jpg"


def _safe(level: str) -> str:
    """A topic level as part of a file's name: what had to be changed is told apart by a hash."""
    changed = _STRANGE.sub("_", level)[:_LONGEST]
    if changed == level and level:
        return level
    return f"{changed}-{hashlib.sha256(level.encode(errors='surrogatepass')).hexdigest()[:8]}"
