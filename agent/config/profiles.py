"""Board profiles: what suits a board, for everything that the user's own file leaves open.

A profile is a part of a configuration, checked by the same structs, with two tables more: `[board]` says which
boards it is for, and `[stream]` holds for every stream. Those that come along are in `firmware_configs/`.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from agent.board.identity import Board
from agent.config.device import HealthConfig, SelectionConfig, StorageConfig, ThermalConfig
from agent.config.source_uri import parse as parse_uri
from agent.config.stream import CaptureConfig, CascadeConfig, GateConfig, PublishConfig
from agent.config.toml import Keys, TomlFile, nearest, read_toml
from agent.errors import ConfigError, SourceError

Table = dict[str, Any]

AUTO, NONE = "auto", "none"
_BESIDE = Path(__file__).parent.parent
_FOLDERS = (_BESIDE / "firmware_configs", _BESIDE.parent / "firmware_configs")
"""Of an installed wheel, and of a clone."""


class BoardTable(Struct, frozen=True, forbid_unknown_fields=True):
    """`[board]`: for which boards. A profile that names the board itself goes before one that names its SoC.

    Attributes:
        title: for people.
        compatible: of the device tree, such as `raspberrypi,4-model-b`; globs.
        soc_id: as `/sys/devices/soc0/soc_id` tells it, where the device tree names nothing of `compatible`.
        arch: such as `aarch64`: for a board that nothing else fits.
    """

    title: Annotated[str, Meta(min_length=1)]
    compatible: tuple[str, ...] = ()
    soc_id: tuple[str, ...] = ()
    arch: tuple[str, ...] = ()


class StreamTable(Struct, frozen=True, forbid_unknown_fields=True):
    """`[stream]`: what every stream has unless its own table says otherwise; see `agent.config.StreamConfig`.

    `capture.max_fps` is not for a source that says its own, such as `v4l2:/dev/video0?fps=30`, nor for recordings
    of which every picture counts, such as `file:clip.mp4?pace=fast`.
    """

    threads: Annotated[int, Meta(ge=0, le=64)] = 0
    capture: CaptureConfig = CaptureConfig()
    gate: GateConfig = GateConfig()
    cascade: CascadeConfig = CascadeConfig()
    publish: PublishConfig = PublishConfig()


class ProfileTables(Struct, frozen=True, forbid_unknown_fields=True):
    """A profile's file; all but `board` and `stream` as in `agent.config.Config`."""

    board: BoardTable
    stream: StreamTable = StreamTable()
    storage: StorageConfig = StorageConfig()
    health: HealthConfig = HealthConfig()
    selection: SelectionConfig = SelectionConfig()
    thermal: ThermalConfig = ThermalConfig()


class Profile(Struct, frozen=True):
    """A profile.

    Attributes:
        name: of its file, without `.toml`.
        title: of its boards.
        file: what it says.
    """

    name: str
    title: str
    file: TomlFile

    def where(self, *keys: str | int) -> str:
        """`file:line` of a key of the configuration that came from here."""
        return self.file.where(*(("stream", *keys[2:]) if keys[:1] == ("streams",) else keys))

    def __str__(self) -> str:
        return f"{self.name}: {self.title} ({self.file.path})"


def choose(wanted: str, board: Board) -> Profile | None:
    """The profile for a board.

    Args:
        wanted: `auto`, `none`, the name of a profile, or a path of one, which has a `/` or ends in `.toml`.
        board: this one.

    Returns:
        None: none is wanted, or none fits.

    Raises:
        ConfigError: there is no such profile (with `keys` of the configuration's key), or it is broken.
    """
    if wanted == NONE:
        return None
    if wanted == AUTO:
        return _fitting(board)
    if "/" in wanted or wanted.endswith(".toml"):
        if not Path(wanted).is_file():
            raise ConfigError(f"no such file: {Path(wanted).absolute()}", keys=("device", "profile"))
        return _read(Path(wanted))
    files = {path.stem: path for path in shipped()}
    if wanted not in files:
        known = nearest(wanted, [*files, AUTO, NONE])
        raise ConfigError(f"no profile {wanted!r}{known}", keys=("device", "profile"))
    return _read(files[wanted])


def shipped() -> list[Path]:
    """Files of the profiles that come along."""
    return next((sorted(folder.glob("*.toml")) for folder in _FOLDERS if folder.is_dir()), [])


def _fitting(board: Board) -> Profile | None:
    """The one that fits best."""
    ranks = [(rank(profile, board), profile) for profile in map(_read, shipped())]
    fits = [(fit, profile) for fit, profile in ranks if fit is not None]
    return min(fits, key=lambda fit: fit[0])[1] if fits else None


def rank(profile: Profile, board: Board) -> tuple[int, int] | None:
    """How well a profile fits a board, the smaller the better; None: not at all."""
    table = profile.file.data["board"]
    wanted = table.get("compatible", ())
    for place, name in enumerate(board.compatible):
        if any(fnmatchcase(name, pattern) for pattern in wanted):
            return 0, place  # a device tree tells the most special first
    if board.soc_id in table.get("soc_id", ()):
        return 1, 0
    return (2, 0) if board.arch in table.get("arch", ()) else None


def _read(path: Path) -> Profile:
    file = read_toml(path, "the board's profile")
    file.check(ProfileTables)
    return Profile(path.stem, file.data["board"]["title"], file)


def put_under(profile: Profile, data: Table) -> tuple[Table, frozenset[Keys]]:
    """A configuration with what a profile says where it says nothing itself.

    Args:
        profile: what goes below.
        data: of the user's file, checked.

    Returns:
        Both in one, and the keys that came from the profile.
    """
    below = {table: keys for table, keys in profile.file.data.items() if table not in ("board", "stream")}
    below["streams"] = {
        name: _for_source(stream["source"], profile.file.data.get("stream", {}))
        for name, stream in data.get("streams", {}).items()
    }
    return merged(below, data), frozenset(keys for keys in _leaves(below) if not _says(data, keys))


def _for_source(source: str, stream: Table) -> Table:
    try:
        address = parse_uri(source)
        says = address.lossless or address.options.fps > 0.0
    except SourceError:
        says = False  # told where sources are checked
    if says and "capture" in stream:
        stream = {**stream, "capture": {k: v for k, v in stream["capture"].items() if k != "max_fps"}}
    return stream


def merged(below: Table, above: Table) -> Table:
    """Two tables in one, table by table: what stands above is as it was, the rest is from below."""
    both = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            both[key] = merged(below[key], above[key])
    return both


def _leaves(table: Table, at: Keys = ()) -> Iterator[Keys]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*at, key))
        else:
            yield (*at, key)


def _says(data: Any, keys: Keys) -> bool:
    """Whether a table has a value at this path, or instead of a table on the way to it."""
    for key in keys:
        if not isinstance(data, dict):
            return True
        if key not in data:
            return False
        data = data[key]
    return True
