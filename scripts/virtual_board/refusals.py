"""Updates that must not stay: each is refused or rolled back by the board, which says why in its history."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faulty
import msgspec
from faulty import Spoiler
from goods import Goods
from machine import Board, BoardError, sh, wait_for
from msgspec import Struct
from results import Row
from settling import deliver, is_well

from agent.update import trust
from agent.update.description import HealthGate, Migration

GROUP = "refusals"
_APPLY_S = 180.0
_RUN = 'import sys\nif "run" in sys.argv[1:2]:\n    '
_FULL = "/opt/vedette/full"
_FILLER = (
    "systemd-run --quiet --collect sh -c 'until [ -e /opt/vedette/slots/b/venv/bin/python ]; do sleep 0.1; done; "
    f"fallocate -l $(df --output=avail -B1 /opt/vedette | tail -1) {_FULL} || true'"
)


class Scene(Struct, frozen=True, kw_only=True):
    """One of them.

    Attributes:
        name: for people.
        make: the bundle.
        state: that it has to end in.
        says: words that the reason has to hold, one of them.
        before: a command on the board, before it.
        dropped: whether the SSH session is cut off while it is shown.
    """

    name: str
    make: Callable[[Spoiler], Path]
    state: str = "refused"
    says: tuple[str, ...]
    before: str = ""
    dropped: bool = False


def scenes(gate: HealthGate) -> list[Scene]:
    """All of them, in order.

    Args:
        gate: of the good bundles; what shows late in a trial gets a longer one.
    """
    long = msgspec.structs.replace(gate, steady_s=max(60.0, gate.steady_s), within_s=max(120.0, gate.within_s))
    stuck = Migration(op="rename", key="mqtt.host", to="mqtt.port")
    unknown = Migration(op="set", key="mqtt.no_such_key", value=1)
    timer = "late = threading.Timer(30.0, os._exit, (7,)); late.daemon = True; late.start()"
    crash = f"{_RUN}import os, threading\n    {timer}"
    code = faulty.coded
    return [
        Scene(name="bad signature", make=_other_signature, says=("signature",)),
        Scene(
            name="unknown signer",
            make=lambda s: s.make("stranger", faulty.nothing, key=s.goods.stranger),
            says=("signer", "signed by"),
        ),
        Scene(name="truncated", make=_truncated, says=("signature",)),
        Scene(name="truncated and signed", make=_truncated_signed, says=("cut off", "ends", "short")),
        Scene(
            name="older counter",
            make=lambda s: s.make("older", faulty.described_as(counter=1, version="1.0.0")),
            says=("counter 1 is not above 1",),
        ),
        Scene(
            name="wrong arch",
            make=lambda s: s.make("arch", faulty.aimed_at(arch="armv7l")),
            says=("the bundle is for armv7l",),
        ),
        Scene(
            name="wrong board",
            make=lambda s: s.make("board", faulty.aimed_at(boards=["pi5"])),
            says=("the bundle is for pi5",),
        ),
        Scene(
            name="full disk",
            make=lambda s: s.make("full", faulty.nothing),
            says=("MB are free",),
            before=f"fallocate -l $(($(df --output=avail -B1 /opt/vedette | tail -1) - 100000000)) {_FULL}",
        ),
        Scene(
            name="disk that gets full",
            make=lambda s: s.make("filling", faulty.nothing),
            says=("No space left",),
            before=_FILLER,
        ),
        Scene(
            name="wheel missing",
            make=lambda s: s.make("wheel", faulty.without_wheel("msgspec")),
            says=("a wheel is missing",),
        ),
        Scene(
            name="config that does not migrate",
            make=lambda s: s.make("stuck", faulty.migrating(stuck)),
            says=("cannot be migrated: `mqtt.port` is set already",),
        ),
        Scene(
            name="config that the new version refuses",
            make=lambda s: s.make("unknown", faulty.migrating(unknown)),
            says=("refuses the configuration",),
        ),
        Scene(
            name="crash at import",
            make=lambda s: s.make("import", code("agent/daemon.py", 'raise ImportError("made to fail")')),
            says=("made to fail",),
        ),
        Scene(
            name="wrong golden output",
            make=lambda s: s.make("golden", faulty.wrong_golden("colour")),
            says=("model colour",),
        ),
        Scene(
            name="crash at start",
            make=lambda s: s.make("start", code("agent/cli/run.py", f'{_RUN}raise SystemExit("made to fail")')),
            state="rolled_back",
            says=("the service ended by itself",),
        ),
        Scene(
            name="crash after 30 s",
            make=lambda s: s.make("late", code("agent/cli/run.py", crash), health=long),
            state="rolled_back",
            says=("the service ended by itself",),
        ),
        Scene(
            name="hang",
            make=lambda s: s.make("hang", code("agent/cli/run.py", f"{_RUN}import time\n    time.sleep(1e6)")),
            state="rolled_back",
            says=("the daemon does not tell how it is",),
        ),
        Scene(
            name="slow model",
            make=lambda s: s.make("slow", faulty.slow_model),
            state="rolled_back",
            says=("are allowed",),
        ),
        Scene(
            name="dropped SSH",
            make=lambda s: s.make("dropped", faulty.nothing),
            state="committed",
            says=("",),
            dropped=True,
        ),
    ]


def _other_signature(spoiler: Spoiler) -> Path:
    """The signature of another bundle by the same key."""
    path, other = spoiler.copy("signature"), spoiler.make("other", faulty.described_as(counter=99))
    trust.signature_of(path).write_bytes(trust.signature_of(other).read_bytes())
    return path


def _truncated(spoiler: Spoiler) -> Path:
    path = spoiler.copy("truncated")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    return path


def _truncated_signed(spoiler: Spoiler) -> Path:
    path = _truncated(spoiler)
    new = path.rename(path.with_name("truncated-signed.vedette"))
    trust.sign(new, spoiler.goods.key.path)
    return new


class Refusals:
    """Of one board that runs version A."""

    def __init__(self, board: Board, goods: Goods, good: Path, version: str) -> None:
        """Prepare.

        Args:
            board: that is up and well.
            goods: that its bundles come from.
            good: bundle that the faulty ones are made from.
            version: that runs.
        """
        self._board, self._spoiler, self._version = board, Spoiler(goods, good), version

    def play(self, scene: Scene) -> Row:
        """Try it; gives what was found."""
        began = time.monotonic()
        wrong, last = "", {}
        try:
            before = self._standing()
            path = self._deliver(scene)
            count = len(self._history())
            if scene.before:
                sh(self._board, scene.before)
            self._apply(scene, path)
            last = self._wait_over(count)
            self._clean(path)
            wrong = self._judge(scene, last, before)
        except BoardError as error:
            wrong = str(error)
        return Row(
            name=f"{self._board.name}: {scene.name}",
            group=GROUP,
            planned=scene.name,
            met=scene.state,
            outcome=f"{last.get('state', '?')} by {last.get('by', '?')}",
            proved=not wrong,
            why=wrong or str(last.get("reason", "")),
            seconds=round(time.monotonic() - began, 1),
        )

    def _deliver(self, scene: Scene) -> str:
        path = scene.make(self._spoiler)
        place = deliver(self._board, path)
        path.unlink()
        return place

    def _apply(self, scene: Scene, place: str) -> None:
        if not scene.dropped:
            self._board.run(f"vedette update apply {place}", patience_s=_APPLY_S)
            return
        session = self._board.session(f"vedette update apply {place}")
        assert session.stdout is not None
        first = session.stdout.readline()
        session.kill()
        session.wait()
        if not first:
            raise BoardError("the session ended before anything was shown")

    def _clean(self, place: str) -> None:
        self._board.run(f"rm -f {_FULL} {place} {place}.sig; sync")

    def _history(self) -> list[dict[str, Any]]:
        said = sh(self._board, "vedette update history --json")
        return [msgspec.json.decode(line) for line in said.splitlines()]

    def _wait_over(self, count: int) -> dict[str, Any]:
        found: list[dict[str, Any]] = []

        def is_over() -> bool:
            nonlocal found
            found = self._history()
            return len(found) > count

        wait_for("a line more in the history", is_over, _APPLY_S * self._board.scale, 2.0)
        return found[-1]

    def _standing(self) -> tuple[str, str, str]:
        """Slot, configuration and process."""
        said = sh(
            self._board,
            "readlink /opt/vedette/current; sha256sum </etc/vedette/vedette.toml; "
            "systemctl show --value --property=MainPID vedette",
        )
        slot, config, pid = said.splitlines()
        return slot, config, pid

    def _judge(self, scene: Scene, last: dict[str, Any], before: tuple[str, str, str]) -> str:
        """What is wrong; empty: nothing."""
        if last["state"] != scene.state:
            return f"{last['state']}: {last['reason']}"
        if not any(words in last["reason"] for words in scene.says):
            return f"the reason does not say {' or '.join(scene.says)}: {last['reason']}"
        version = last["version"] if scene.state == "committed" else self._version
        wait_for(f"version {version} is well", lambda: is_well(self._board, version), 60 * self._board.scale)
        links = sh(self._board, "readlink /opt/vedette/current /opt/vedette/keeper").splitlines()
        if links[0] != links[1] or self._board.run("test -e /var/lib/vedette-update/trial").returncode == 0:
            return f"it is half done: current and keeper lead to {' and '.join(links)}"
        slot, config, pid = self._standing()
        if scene.state != "committed" and (slot, config) != before[:2]:
            return "the slot or the configuration is another one than before"
        if scene.state == "refused" and pid != before[2]:
            return "the daemon was restarted, though nothing was changed"
        return ""
