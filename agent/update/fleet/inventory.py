"""The inventory: which boards there are, and how a rollout goes through them. Ansible reads the same file."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from msgspec import Struct

from agent.errors import FleetError, reason_of
from agent.fleet.inventorykeys import USER, Host, Policy, hosts_and_policy
from agent.fleet.plainfile import read_plain

_LARGEST = 4 * 1024**2
_ADVICE = "name your inventory with --inventory, or begin with a copy of scripts/fleet/fleet.toml"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ADDRESS = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9.:%\]_-]{0,254}")
"""An address that begins with a hyphen would be an option of ssh."""


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
        hosts, policy = hosts_and_policy(tomllib.loads(text))
    except (ValueError, RecursionError, FleetError) as error:
        raise FleetError(f"{path}: {error}") from error
    if not hosts:
        raise FleetError(f"{path}: lists no board in [boards.hosts]")
    boards = {name: _board(name, host, policy, path) for name, host in hosts.items()}
    if unknown := [name for name in policy.canary if name not in boards]:
        raise FleetError(f"{path}: vedette_canary names {', '.join(unknown)}, which [boards.hosts] does not list")
    return Inventory(path, boards, policy)


def _board(name: str, host: Host, common: Policy, path: Path) -> Board:
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
