"""Parse the options of `vedette bundle build`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from agent.config.profiles import shipped
from agent.config.toml import nearest, read_toml
from agent.errors import BundleError
from agent.update.bundle.description import GLIBC, PYTHON, WORD, HealthGate, Migration, ShadowGate, Target

Gate = TypeVar("Gate", HealthGate, ShadowGate)

_WRONG = re.compile(
    r"Expected `(?P<kind>int|float)`(?: (?P<sign>[<>]=?) (?P<bound>[0-9.]+))?(?:, got .*)?"
    r" - at `\$\.(?P<key>\w+)`"
)
_BOUNDS = {"<=": "of at most", ">=": "of at least", ">": "above", "<": "below"}


def read_target(arch: str, python: str, glibc: str, boards: Sequence[str]) -> Target:
    """A target of an operator's words.

    Raises:
        BundleError: one is wrong.
    """
    _check_boards(boards)
    if not re.fullmatch(PYTHON, python):
        raise BundleError(f"--python {python}: expected the version of the board's Python, such as 3.11 or 3.13")
    if not re.fullmatch(GLIBC, glibc):
        raise BundleError(f"--glibc {glibc}: expected the oldest that a board may have, such as 2.34")
    try:
        return msgspec.convert({"arch": arch, "python": python, "glibc": glibc, "boards": list(boards)}, Target)
    except msgspec.ValidationError as error:
        raise BundleError(f"--arch {arch}, --board {' '.join(boards)}: {error}") from error


def check_name(name: str) -> str:
    """The name of a bundle of models, as it is given.

    Raises:
        BundleError: it cannot be one.
    """
    if not re.fullmatch(WORD, name):
        raise BundleError(
            f"--name {name}: expected at most 64 letters of A-Z, digits and ._+-, a letter or digit first"
        )
    return name


def read_migrations(path: Path) -> list[Migration]:
    """Migrations of a TOML file, tables `[[migrations]]`.

    Raises:
        ConfigError: it cannot be read. BundleError: one is wrong.
    """
    try:
        return msgspec.convert(read_toml(path, "the migrations").data, _Migrations).migrations
    except msgspec.ValidationError as error:
        raise BundleError(f"{path}: {error}") from error


class _Migrations(Struct, frozen=True, forbid_unknown_fields=True):
    migrations: list[Migration]


def read_health(given: Sequence[str]) -> HealthGate:
    """A health gate of words like `steady_s=30`.

    Raises:
        BundleError: one is no key of a gate, or its value is wrong.
    """
    return _gate("--health", given, HealthGate)


def read_shadow(given: Sequence[str]) -> ShadowGate | None:
    """Parse the gates of a shadow from words like `agreement=0.9`. Return None if there are none.

    Raises:
        BundleError: one is no key of a gate, or its value is wrong.
    """
    return _gate("--shadow", given, ShadowGate) if given else None


def _gate(option: str, given: Sequence[str], kind: type[Gate]) -> Gate:
    known = [field.name for field in msgspec.structs.fields(kind)]
    values: dict[str, str] = {}
    for one in given:
        key, sign, value = one.partition("=")
        if not sign or key not in known:
            raise BundleError(f"{option} {one}: expected KEY=NUMBER{nearest(key, known)}")
        values[key] = value
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise BundleError(f"{option} {_in_words(error, values)}") from error


def _in_words(error: msgspec.ValidationError, values: Mapping[str, str]) -> str:
    found = _WRONG.match(str(error))
    if found is None:
        return f"{' '.join(f'{key}={value}' for key, value in values.items())}: {error}"
    number = "a whole number" if found["kind"] == "int" else "a number"
    bound = f" {_BOUNDS[found['sign']]} {float(found['bound']):g}" if found["sign"] else ""
    return f"{found['key']}={values[found['key']]}: expected {number}{bound}"


def _check_boards(boards: Sequence[str]) -> None:
    known = [path.stem for path in shipped()]
    for board in boards:
        if board not in known:
            raise BundleError(f"--board {board}: no such profile{nearest(board, known)}")
