"""The inventory: which boards there are, and how a rollout goes through them. Ansible reads the same file."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from agent.errors import FleetError, reason_of
from agent.fleet.plainfile import read_plain
from agent.tomlfile import nearest

USER = "vedette-update"
_LARGEST = 4 * 1024**2
_ADVICE = "name your inventory with --inventory, or begin with a copy of scripts/fleet/fleet.toml"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ADDRESS = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9.:%\]_-]{0,254}")
"""An address that begins with a hyphen would be an option of ssh."""

Size = Annotated[int, Meta(ge=1)] | Annotated[str, Meta(pattern=r"^(100|[1-9][0-9]?)%\Z")]
"""Of a batch: a number of boards, or a share of all of them, such as `"25%"`."""


class Board(Struct, frozen=True):
    """How a board is reached.

    Attributes:
        name: in the inventory; its host key is pinned under it.
        address: name or address in the network.
        port: of its sshd.
        user: that updates it.
        key: file of the private key; empty: whatever ssh takes.
    """

    name: str
    address: str
    port: int = 22
    user: str = USER
    key: str = ""


_ANSIBLE = {"user": "ansible_user", "port": "ansible_port", "key": "ansible_ssh_private_key_file"}
_OWN = {name: f"vedette_{name}" for name in ("canary", "batches", "stop_share", "at_once")}
_ROLE = ("vedette_looks", "vedette_look_s")
"""Of our role for Ansible, which reads them from the same file."""


class Policy(Struct, frozen=True, rename={**_OWN, **_ANSIBLE}):
    """How a rollout goes through the boards: `[boards.vars]`, there as `vedette_canary` and so on.

    Attributes:
        canary: boards that come first, and all have to take the version; empty: the first board.
        batches: sizes of the batches after them; the last one is repeated.
        stop_share: a rollout stops after a batch in which more than this share of the boards that were reached
            did not keep the version.
        at_once: boards that are updated at the same time.
        user, port, key: of every board; in the file as Ansible names them.
    """

    canary: tuple[str, ...] = ()
    batches: Annotated[tuple[Size, ...], Meta(min_length=1)] = ("10%", "25%", "100%")
    stop_share: Annotated[float, Meta(ge=0, le=1)] = 0.2
    at_once: Annotated[int, Meta(ge=1, le=256)] = 8
    user: str = USER
    port: Annotated[int, Meta(ge=1, le=65535)] = 22
    key: str = ""


class _Host(Struct, frozen=True, rename={"address": "ansible_host", **_ANSIBLE}):
    address: str = ""
    port: Annotated[int, Meta(ge=1, le=65535)] | None = None
    user: str = ""
    key: str = ""


class _Group(Struct, frozen=True):
    hosts: dict[str, _Host] = {}
    vars: Policy = Policy()


class _File(Struct, frozen=True):
    boards: _Group = _Group()


class Inventory(Struct, frozen=True):
    """A fleet.

    Attributes:
        path: of the file; host keys lie beside it, in `known_hosts`.
        boards: by name, in the order of the file.
        policy: of rollouts.
    """

    path: Path
    boards: dict[str, Board]
    policy: Policy

    @property
    def known_hosts(self) -> Path:
        """The pinned host keys."""
        return self.path.absolute().parent / "known_hosts"

    def chosen(self, names: tuple[str, ...]) -> dict[str, Board]:
        """The boards of these names, or all of them.

        Raises:
            FleetError: there is no such board.
        """
        if unknown := [name for name in names if name not in self.boards]:
            raise FleetError(f"{self.path}: there is no board {', '.join(unknown)} in [boards.hosts]")
        return {name: board for name, board in self.boards.items() if not names or name in names}


def read_inventory(path: Path) -> Inventory:
    """Read an inventory.

    Raises:
        FleetError: it cannot be read, or a value cannot be used; names it.
    """
    try:
        return parse(read_plain(path, _LARGEST, _ADVICE).decode(), path)
    except FileNotFoundError as error:
        raise FleetError(f"{path}: cannot be read: {reason_of(error)}; {_ADVICE}") from error
    except UnicodeDecodeError as error:
        raise FleetError(f"{path}: is no UTF-8 text") from error


def parse(text: str, path: Path) -> Inventory:
    """An inventory, from its text.

    Args:
        text: TOML, as Ansible's plugin `ansible.builtin.toml` takes it.
        path: for errors, and for what lies beside it.

    Raises:
        FleetError: a value cannot be used; names it.
    """
    try:
        data = tomllib.loads(text)
        group = msgspec.convert(data, _File).boards
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, RecursionError) as error:
        raise FleetError(f"{path}: {error}") from error
    _check_keys(data.get("boards", {}), path)
    if not group.hosts:
        raise FleetError(f"{path}: lists no board in [boards.hosts]")
    boards = {name: _board(name, host, group.vars, path) for name, host in group.hosts.items()}
    if unknown := [name for name in group.vars.canary if name not in boards]:
        raise FleetError(f"{path}: vedette_canary names {', '.join(unknown)}, which [boards.hosts] does not list")
    return Inventory(path, boards, group.vars)


def _check_keys(group: dict[str, Any], path: Path) -> None:
    """Refuse keys that would be ours but for a typo: the rest is Ansible's, and not ours to judge."""
    tables = ["hosts", "vars", "children"]
    for key in group.keys() - set(tables):
        raise FleetError(f"{path}: [boards.{key}] is unknown{nearest(key, tables)}")
    _check_own("[boards.vars]", group.get("vars", {}), [*_OWN.values(), *_ROLE], path)
    for name, host in group.get("hosts", {}).items():
        if misplaced := [key for key in _OWN.values() if key in host]:
            raise FleetError(f"{path}: board {name}: {misplaced[0]} is of all boards: move it to [boards.vars]")
        _check_own(f"board {name}:", host, list(_ROLE), path)


def _check_own(where: str, table: dict[str, Any], known: list[str], path: Path) -> None:
    for key in table:
        if key.startswith("vedette_") and key not in known:
            raise FleetError(f"{path}: {where} {key} is unknown{nearest(key, known)}")


def _board(name: str, host: _Host, common: Policy, path: Path) -> Board:
    board = Board(
        name,
        host.address or name,
        host.port or common.port,
        host.user or common.user,
        host.key or common.key,
    )
    for what, value, pattern in (("board", name, _NAME), ("user", board.user, _NAME)):
        if not pattern.fullmatch(value):
            raise FleetError(
                f"{path}: {what} {value!r}: letters, digits, dots, hyphens and underscores, 64 at most"
            )
    if not _ADDRESS.fullmatch(board.address):
        raise FleetError(f"{path}: board {name}: ansible_host = {board.address!r} is no name or address")
    return board
