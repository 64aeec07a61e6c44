"""Load a configuration file: TOML to `Config`, over the profile of the board, with file and line in every error.

Only a restart changes under which topics the device publishes, and which folders it uses; a reload changes all
else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from agent.board.identity import Board, read_board
from agent.config import (
    CaptureConfig,
    CascadeConfig,
    Config,
    GateConfig,
    HealthConfig,
    PublishConfig,
    SelectionConfig,
    StorageConfig,
    ThermalConfig,
)
from agent.config.source_uri import parse as parse_uri
from agent.config.toml import Problem, TomlFile, parse_toml, read_toml, to_toml
from agent.errors import ConfigError, SourceError
from agent.structs import Keys, convert


class ConfigFile(Struct, frozen=True):
    """A configuration and the places of its keys.

    Attributes:
        file: as the user wrote it.
        config: validated content, with the profile's defaults.
        board: the board; None if it was not read.
        profile: of the board; None if none is used.
        inherited: keys whose value came from the profile.
    """

    file: TomlFile
    config: Config
    board: Board | None = None
    profile: Profile | None = None
    inherited: frozenset[Keys] = frozenset()

    def where(self, *keys: str | int) -> str:
        """Return `file:line` of a key, in the profile if it sets the key, or of the nearest table above."""
        if self.profile is not None and keys in self.inherited:
            return self.profile.where(*keys)
        return self.file.where(*keys)

    def describe_board(self) -> str:
        """Describe the board and its profile in a line."""
        facts = (self.board.model or self.board.arch, self.board.cpu) if self.board else ()
        return f"board: {', '.join(facts) or 'not asked for'}; profile: {self.profile or 'none'}"

    def remarks(self) -> dict[Keys, str]:
        """Describe by key which profile was chosen, and what it set."""
        if self.profile is None:
            is_automatic = self.config.device.profile == AUTO
            return {("device", "profile"): "no profile fits this board"} if is_automatic else {}
        origin = f"from the board's profile {self.profile.name}"
        return {("device", "profile"): str(self.profile), **dict.fromkeys(self.inherited, origin)}


class Rereadable:
    """The daemon's configuration file, which is read again while its configuration is in use."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._newest: ConfigFile | None = None

    def read(self) -> Config:
        """Read the file; see `load`."""
        self._newest = load(self._path)
        return self._newest.config

    def where(self, *keys: str | int) -> str:
        """Return `file:line` of a key as of the last reading."""
        return self._newest.where(*keys) if self._newest else str(self._path)

    def describe_board(self) -> str:
        """Describe the board, see `ConfigFile.describe_board`; empty before the first reading."""
        return self._newest.describe_board() if self._newest else ""


def load(path: Path, root: Path = Path("/")) -> ConfigFile:
    """Read and validate a file, over the profile that it wants or that fits the board with this root folder.

    Raises:
        ConfigError: it cannot be read, is not TOML, has an unknown key or a wrong value, or its profile does.
            Where there are several of these, its text has one line for each.
    """
    return _validated(read_toml(path, "the configuration"), read_board(root))


def parse(text: str, path: str) -> ConfigFile:
    """Validate the text of a file without a profile; see `load`."""
    return _validated(parse_toml(text, path), None)


def _validated(file: TomlFile, board: Board | None) -> ConfigFile:
    profile, problems = (None, []) if board is None else _chosen(file.data, board)
    file.check(Config, problems)
    if profile is None:
        return ConfigFile(file, convert(file.data, Config), board)
    data, inherited = put_under(profile, file.data)
    return ConfigFile(file, convert(data, Config), board, profile, inherited)


def _chosen(data: dict[str, Any], board: Board) -> tuple[Profile | None, list[Problem]]:
    """Return the profile, or what is wrong with the key that names it."""
    device = data.get("device")
    wanted = device.get("profile", AUTO) if isinstance(device, dict) else AUTO
    try:
        return (choose(wanted, board) if isinstance(wanted, str) else None), []
    except ConfigError as error:
        if not error.keys:
            raise
        return None, [(error.keys, f"`device.profile`: {error}")]


def dump(config: Config, remarks: Mapping[Keys, str] | None = None) -> str:
    """Write a configuration as TOML, defaults included; `parse` reads it back unchanged."""
    return to_toml(msgspec.to_builtins(config), remarks or {})


Key = tuple[str, str]
"""Table and name of a key."""
RESTART: tuple[Key, ...] = (
    ("device", "name"),
    ("mqtt", "prefix"),
    ("storage", "state_dir"),
    ("storage", "clips_folder"),
    ("storage", "spool_max_bytes"),
    ("storage", "durability"),
    ("storage", "history_max_bytes"),
)
RULE = (
    "a reload takes up everything but "
    + ", ".join(f"[{table}] {key}" for table, key in RESTART)
    + ": these wait for a restart"
)
"""The rule for people."""


def keep_until_restart(running: Config, wanted: Config) -> tuple[Config, tuple[Key, ...]]:
    """Return the new configuration with the running values of keys that only a restart can change.

    Returns:
        what can be used now; and the keys that wait.
    """
    waiting = [one for one in RESTART if _value(running, one) != _value(wanted, one)]
    held = wanted
    for table, key in waiting:
        unchanged = replace(getattr(held, table), **{key: _value(running, (table, key))})
        held = replace(held, **{table: unchanged})
    return held, tuple(waiting)


def _value(config: Config, wanted: Key) -> object:
    table, key = wanted
    return getattr(getattr(config, table), key)


def names(keys: Iterable[Key]) -> tuple[str, ...]:
    """Return dotted names of keys, such as `storage.state_dir`."""
    return tuple(map(".".join, keys))


Table = dict[str, Any]
AUTO, NONE = "auto", "none"
_BESIDE = Path(__file__).parent.parent
_FOLDERS = (_BESIDE / "firmware_configs", _BESIDE.parent / "firmware_configs")
"""Folders of an installed wheel, and of a clone."""


class BoardTable(Struct, frozen=True, forbid_unknown_fields=True):
    """`[board]`: which boards a profile fits. A profile for the board takes precedence over one for its SoC.

    Attributes:
        title: for people.
        compatible: globs of device tree names, such as `raspberrypi,4-model-b`.
        soc_id: contents of `/sys/devices/soc0/soc_id`, for boards whose device tree does not match.
        arch: such as `aarch64`: for boards that no other profile fits.
    """

    title: Annotated[str, Meta(min_length=1)]
    compatible: tuple[str, ...] = ()
    soc_id: tuple[str, ...] = ()
    arch: tuple[str, ...] = ()


class StreamTable(Struct, frozen=True, forbid_unknown_fields=True):
    """`[stream]`: defaults of every stream; see `agent.config.StreamConfig`.

    `capture.max_fps` does not apply to a source that names its own rate, such as `v4l2:/dev/video0?fps=30`, nor
    to a recording of which every picture counts, such as `file:clip.mp4?pace=fast`.
    """

    threads: Annotated[int, Meta(ge=0, le=64)] = 0
    capture: CaptureConfig = CaptureConfig()
    gate: GateConfig = GateConfig()
    cascade: CascadeConfig = CascadeConfig()
    publish: PublishConfig = PublishConfig()


class ProfileTables(Struct, frozen=True, forbid_unknown_fields=True):
    """Content of a profile; all tables but `board` and `stream` are as in `agent.config.Config`."""

    board: BoardTable
    stream: StreamTable = StreamTable()
    storage: StorageConfig = StorageConfig()
    health: HealthConfig = HealthConfig()
    selection: SelectionConfig = SelectionConfig()
    thermal: ThermalConfig = ThermalConfig()


class Profile(Struct, frozen=True):
    """A board profile.

    Attributes:
        name: file name without `.toml`.
        title: of its boards.
        file: content.
    """

    name: str
    title: str
    file: TomlFile

    def where(self, *keys: str | int) -> str:
        """Return `file:line` of a configuration key that this profile sets."""
        return self.file.where(*(("stream", *keys[2:]) if keys[:1] == ("streams",) else keys))

    def __str__(self) -> str:
        return f"{self.name}: {self.title} ({self.file.path})"


def choose(wanted: str, board: Board) -> Profile | None:
    """Return the profile for a board.

    Args:
        wanted: `auto`, `none`, the name of a profile, or a path, which has a `/` or ends in `.toml`.
        board: this board.

    Returns:
        None if none is wanted, or none fits.

    Raises:
        ConfigError: there is no such profile (with `keys` of the configuration's key), or it is broken.
    """
    if wanted == NONE:
        return None
    if wanted == AUTO:
        return _best_fit(board)
    if "/" in wanted or wanted.endswith(".toml"):
        if not Path(wanted).is_file():
            raise ConfigError(f"no such file: {Path(wanted).absolute()}", keys=("device", "profile"))
        return _read(Path(wanted))
    files = {path.stem: path for path in shipped()}
    if wanted not in files:
        from agent.config.wording import nearest

        known = nearest(wanted, [*files, AUTO, NONE])
        raise ConfigError(f"no profile {wanted!r}{known}", keys=("device", "profile"))
    return _read(files[wanted])


def shipped() -> list[Path]:
    """List the files of the bundled profiles."""
    return next((sorted(folder.glob("*.toml")) for folder in _FOLDERS if folder.is_dir()), [])


def _best_fit(board: Board) -> Profile | None:
    ranks = [(rank(profile, board), profile) for profile in map(_read, shipped())]
    fits = [(fit, profile) for fit, profile in ranks if fit is not None]
    return min(fits, key=lambda fit: fit[0])[1] if fits else None


def rank(profile: Profile, board: Board) -> tuple[int, int] | None:
    """Return how well a profile fits a board, the smaller the better; None if it does not."""
    table = profile.file.data["board"]
    wanted = table.get("compatible", ())
    for place, name in enumerate(board.compatible):
        if any(fnmatchcase(name, pattern) for pattern in wanted):
            return 0, place  # a device tree lists the most specific first
    if board.soc_id in table.get("soc_id", ()):
        return 1, 0
    return (2, 0) if board.arch in table.get("arch", ()) else None


def _read(path: Path) -> Profile:
    file = read_toml(path, "the board's profile")
    file.check(ProfileTables)
    return Profile(path.stem, file.data["board"]["title"], file)


def put_under(profile: Profile, data: Table) -> tuple[Table, frozenset[Keys]]:
    """Fill in from a profile what a configuration leaves open.

    Returns:
        Both merged, and the keys that came from the profile.
    """
    below = {table: keys for table, keys in profile.file.data.items() if table not in ("board", "stream")}
    below["streams"] = {
        name: _for_source(stream["source"], profile.file.data.get("stream", {}))
        for name, stream in data.get("streams", {}).items()
    }
    return merged(below, data), frozenset(keys for keys in _leaves(below) if not _has(data, keys))


def _for_source(source: str, stream: Table) -> Table:
    try:
        address = parse_uri(source)
        names_rate = address.lossless or address.options.fps > 0.0
    except SourceError:
        names_rate = False  # reported where sources are checked
    if names_rate and "capture" in stream:
        stream = {**stream, "capture": {k: v for k, v in stream["capture"].items() if k != "max_fps"}}
    return stream


def merged(below: Table, above: Table) -> Table:
    """Merge two tables recursively; values of `above` win."""
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


def _has(data: Any, keys: Keys) -> bool:
    """Return True if the key at this path is set, or if a table above it is set to another value."""
    for key in keys:
        if not isinstance(data, dict):
            return True
        if key not in data:
            return False
        data = data[key]
    return True
