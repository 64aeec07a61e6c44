"""Scenes: bundles that must be refused or rolled back, with the expected state and reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import faulty
import msgspec
from faulty import Change, Spoiler, coded
from msgspec import Struct

from agent.update.bundle import HealthGate, Migration, signing

FULL = "/opt/vedette/full"
"""File that fills a disk."""
_LEFT = 100_000_000
"""Free bytes of a full disk."""
_RUN = "agent/cli/run.py"
"""Module that the self-test does not import."""
_IF_RUN = 'import sys\nif "run" in sys.argv[1:2]:\n    '
_AVAILABLE = "df --output=avail -B1 /opt/vedette | tail -1"
_FILLER = (
    "systemd-run --quiet --collect sh -c 'until [ -e /opt/vedette/slots/b/venv/bin/python ]; do sleep 0.1; done; "
    f"fallocate -l $(($({_AVAILABLE}) * 9 / 10)) {FULL}; cat /dev/zero >>{FULL}'"
)
"""Command that keeps the disk full."""


class Scene(Struct, frozen=True, kw_only=True):
    """A scene.

    Attributes:
        name: for people.
        make: the bundle.
        state: that it has to end in.
        says: part of the expected reason.
        before: a command on the board, before it.
        dropped: whether the SSH session is cut off while it is shown.
    """

    name: str
    make: Callable[[Spoiler], Path]
    state: str = "refused"
    says: str = ""
    before: str = ""
    dropped: bool = False


def scenes(gate: HealthGate) -> list[Scene]:
    """Yield all scenes in order; the last one is committed.

    Args:
        gate: of the good bundles; what shows late in a trial gets a longer one.
    """
    return [*_unsigned(), *_of_other_boards(), *_on_full_disks(), *_unfit(), *_unwell(gate), _dropped()]


def _scene(
    name: str, change: Change, says: str, *, state: str = "refused", health: HealthGate | None = None
) -> Scene:
    """Return a scene of the good bundle with a change."""
    file = name.replace(" ", "-")
    return Scene(
        name=name, make=lambda spoiler: spoiler.make(file, change, health=health), state=state, says=says
    )


def _unsigned() -> Iterator[Scene]:
    other, stranger = "its signature is of other bytes", "signed by a key that is not in"
    yield Scene(name="bad signature", make=_other_signature, says=other)
    yield Scene(
        name="unknown signer",
        make=lambda spoiler: spoiler.make("stranger", faulty.nothing, key=spoiler.goods.stranger),
        says=stranger,
    )
    yield Scene(name="truncated", make=_truncated, says=other)
    yield Scene(name="truncated and signed", make=_truncated_signed, says="cut off")


def _of_other_boards() -> Iterator[Scene]:
    older = faulty.described_as(counter=1, version="1.0.0")
    yield _scene("older counter", older, "counter 1 is not above 1")
    yield _scene("wrong arch", faulty.aimed_at(arch="armv7l"), "the bundle is for armv7l")
    yield _scene("wrong board", faulty.aimed_at(boards=["pi5"]), "the bundle is for pi5")


def _on_full_disks() -> Iterator[Scene]:
    fill = f"fallocate -l $(($({_AVAILABLE}) - {_LEFT})) {FULL}"
    full = _scene("full disk", faulty.nothing, "MB are free: make room")
    filling = _scene("disk that gets full", faulty.nothing, "No space left")
    yield msgspec.structs.replace(full, before=fill)
    yield msgspec.structs.replace(filling, before=_FILLER)


def _unfit() -> Iterator[Scene]:
    stuck = Migration(op="rename", key="mqtt.host", to="mqtt.port")
    unknown = Migration(op="set", key="mqtt.no_such_key", value=1)
    yield _scene("wheel missing", faulty.without_wheel("msgspec"), "a wheel is missing")
    yield _scene(
        "config that does not migrate", faulty.migrating(stuck), "cannot be migrated: `mqtt.port` is set already"
    )
    yield _scene(
        "config that the new version refuses",
        faulty.migrating(unknown),
        "no daemon would start on the configuration: unknown key `mqtt.no_such_key`",
    )
    failing = coded("agent/daemon/daemon.py", 'raise ImportError("made to fail")')
    yield _scene("crash at import", failing, "made to fail")
    yield _scene("wrong golden output", faulty.wrong_golden("colour"), "model colour")
    beside = "stream porch: the new model agrees by 0.00 with the one in use"
    yield _scene("model that disagrees", faulty.disagreeing, beside)


def _unwell(gate: HealthGate) -> Iterator[Scene]:
    long = msgspec.structs.replace(gate, steady_s=max(60.0, gate.steady_s), within_s=max(120.0, gate.within_s))
    ended, back = "the service ended by itself", "rolled_back"
    timer = "late = threading.Timer(30.0, os._exit, (7,)); late.daemon = True; late.start()"
    yield _scene("crash at start", coded(_RUN, f'{_IF_RUN}raise SystemExit("made to fail")'), ended, state=back)
    late = coded(_RUN, f"{_IF_RUN}import os, threading\n    {timer}")
    yield _scene("crash after 30 s", late, ended, state=back, health=long)
    hang = coded(_RUN, f"{_IF_RUN}import time\n    time.sleep(1e6)")
    yield _scene("hang", hang, "the daemon does not report its health", state=back)
    # What a good one is granted for hiccups, a slow one may keep to where a fast machine emulates the board.
    strict = msgspec.structs.replace(gate, p95_floor_ms=gate.p95_floor_ms / 5)
    yield _scene("slow model", faulty.slow_model, "(p95)", state=back, health=strict)


def _dropped() -> Scene:
    good = _scene("dropped SSH", faulty.nothing, "", state="committed")
    return msgspec.structs.replace(good, dropped=True)


def _other_signature(spoiler: Spoiler) -> Path:
    """Make a bundle with the signature of another one by the same key."""
    path, other = spoiler.copy("signature"), spoiler.make("other", faulty.described_as(counter=99))
    signing.signature_of(path).write_bytes(signing.signature_of(other).read_bytes())
    return path


def _truncated(spoiler: Spoiler) -> Path:
    path = spoiler.copy("truncated")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    return path


def _truncated_signed(spoiler: Spoiler) -> Path:
    path = _truncated(spoiler)
    new = path.rename(path.with_name("truncated-signed.vedette"))
    signing.sign(new, spoiler.goods.key.path)
    return new
