"""Rollouts from a workstation to many boards over SSH. No board imports this package.

This module reads the inventory `fleet.toml`, the boards and the policy of rollouts; Ansible reads the same file.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from agent.config.wording import nearest, plain_fault
from agent.errors import FleetError, reason_of
from agent.structs import convert

USER = "vedette-update"
Size = Annotated[int, Meta(ge=1)] | Annotated[str, Meta(pattern=r"^(100|[1-9][0-9]?)%\Z")]
"""Size of a batch: a number of boards, or a share of all boards, such as `"25%"`."""
_ANSIBLE = {
    "address": "ansible_host",
    "user": "ansible_user",
    "port": "ansible_port",
    "key": "ansible_ssh_private_key_file",
}
_OWN = {name: f"vedette_{name}" for name in ("canary", "batches", "stop_share", "at_once")}
_ROLE = ("vedette_looks", "vedette_look_s")
"""Keys of the Ansible role `vedette_board`."""


class Policy(Struct, frozen=True, rename=_OWN):
    """How a rollout goes through the boards: `[boards.vars]`, there as `vedette_canary` and so on.

    Attributes:
        canary: boards that come first and all have to take the version; empty: the first board.
        batches: sizes of the batches after the canary; the last one is repeated.
        stop_share: a rollout stops after a batch if more than this share of its reached boards has failed.
        at_once: boards that are updated at the same time.
    """

    canary: tuple[str, ...] = ()
    batches: Annotated[tuple[Size, ...], Meta(min_length=1)] = ("10%", "25%", "100%")
    stop_share: Annotated[float, Meta(ge=0, le=1)] = 0.2
    at_once: Annotated[int, Meta(ge=1, le=256)] = 8


class FleetBoard(Struct, frozen=True, rename=_ANSIBLE):
    """Address and login of a board; the file uses Ansible's names. `[boards.vars]` has defaults for all boards.

    Attributes:
        name: in the inventory; the host key is pinned under it.
        address: host name or IP address.
        port: of its sshd.
        user: for the login.
        key: file of the private key; empty: the default of ssh.
    """

    name: str
    address: str
    port: Annotated[int, Meta(ge=1, le=65535)] = 22
    user: str = USER
    key: str = ""


_Kind = TypeVar("_Kind", Policy, FleetBoard)


def boards_and_policy(data: Mapping[str, Any]) -> tuple[dict[str, FleetBoard], Policy]:
    """Parse the boards and the policy of an inventory.

    An unknown key `vedette_…` is refused; all other keys are Ansible's.

    Raises:
        FleetError: a value or a key is not valid; names it and its table.
    """
    group = _table(data, "boards", "[boards]")
    tables = ["hosts", "vars", "children"]
    for key in group.keys() - set(tables):
        raise FleetError(f"[boards.{key}] is unknown{nearest(key, tables)}")
    common, hosts = _table(group, "vars", "[boards.vars]"), _table(group, "hosts", "[boards.hosts]")
    _check_keys("[boards.vars]", common, [*_OWN.values(), *_ROLE])
    return {name: _board(name, host, common) for name, host in hosts.items()}, _converted(
        "[boards.vars]", common, Policy
    )


def _table(data: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    found = data.get(key, {})
    if not isinstance(found, dict):
        raise FleetError(f"{where}: expected a table")
    return found


def _board(name: str, host: object, common: dict[str, Any]) -> FleetBoard:
    where = f"board {name}:"
    if not isinstance(host, dict):
        raise FleetError(f'{where} expected a table, such as {{ ansible_host = "192.168.1.20" }}')
    _check_keys(where, host, list(_ROLE))
    defaults = {key: common[key] for key in _ANSIBLE.values() if key in common}
    board = _converted(where, {"ansible_host": name, **defaults, **host, "name": name}, FleetBoard)
    for what, value in (("board", name), ("user", board.user)):
        if not _NAME.fullmatch(value):
            raise FleetError(f"{what} {value!r}: use letters, digits, dots, hyphens and underscores, up to 64")
    if not _ADDRESS.fullmatch(board.address):
        raise FleetError(f"{where} ansible_host = {board.address!r} is not a host name or address")
    return board


def _converted(where: str, table: dict[str, Any], kind: type[_Kind]) -> _Kind:
    try:
        return convert(table, kind)
    except msgspec.ValidationError as error:
        raise FleetError(f"{where} {plain_fault(str(error))}") from error


def _check_keys(where: str, table: Iterable[str], ours: list[str]) -> None:
    for key in table:
        if key.startswith("vedette_") and key not in ours:
            raise FleetError(f"{where} {key} is unknown here{nearest(key, ours)}")


_ADVICE = "name your inventory with --inventory, or copy scripts/fleet/fleet.toml"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ADDRESS = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9.:%\]_-]{0,254}")
"""ssh would take an address with a leading hyphen as an option."""


class Inventory(Struct, frozen=True):
    """The boards of a fleet and its policy.

    Attributes:
        path: of the file; host keys are in `known_hosts` beside it.
        boards: by name, in the order of the file.
        policy: of rollouts.
    """

    path: Path
    boards: dict[str, FleetBoard]
    policy: Policy

    @property
    def known_hosts(self) -> Path:
        """The pinned host keys."""
        return self.path.absolute().parent / "known_hosts"

    def chosen(self, names: tuple[str, ...]) -> dict[str, FleetBoard]:
        """Return the boards of these names, or all boards; raise FleetError if there is no such board."""
        if unknown := [name for name in names if name not in self.boards]:
            raise FleetError(f"{self.path}: there is no board {', '.join(unknown)} in [boards.hosts]")
        return {name: board for name, board in self.boards.items() if not names or name in names}


def read_inventory(path: Path) -> Inventory:
    """Read an inventory; raise FleetError if it cannot be read, or a value is not valid."""
    try:
        return parse(path.read_text(encoding="utf-8"), path)
    except OSError as error:
        raise FleetError(f"{path}: cannot be read: {reason_of(error)}; {_ADVICE}") from error
    except UnicodeDecodeError as error:
        raise FleetError(f"{path}: is not UTF-8 text") from error


def parse(text: str, path: Path) -> Inventory:
    """Parse an inventory.

    Args:
        text: TOML for Ansible's plugin `ansible.builtin.toml`.
        path: of the file, for errors and `Inventory.path`.

    Raises:
        FleetError: a value is not valid; names it.
    """
    try:
        boards, policy = boards_and_policy(tomllib.loads(text))
    except (ValueError, RecursionError, FleetError) as error:
        raise FleetError(f"{path}: {error}") from error
    if not boards:
        raise FleetError(f"{path}: lists no board in [boards.hosts]")
    if unknown := [name for name in policy.canary if name not in boards]:
        raise FleetError(f"{path}: vedette_canary names {', '.join(unknown)}, which [boards.hosts] does not list")
    return Inventory(path, boards, policy)
