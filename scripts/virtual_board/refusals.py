"""Bundles that a board has to refuse or roll back, with the reason in its history."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
from faulty import Spoiler
from goods import Goods
from machine import Board, BoardError, sh, wait_for
from results import Row
from scenes import FULL, Scene
from settling import deliver, is_well

from agent.update.install.journal import STATES

GROUP = "refusals"
_APPLY_S = 180.0


class Refusals:
    """Runs scenes on one board that runs version A."""

    def __init__(self, board: Board, goods: Goods, good: Path, version: str) -> None:
        """Create.

        Args:
            board: that is up and well.
            goods: that its bundles come from.
            good: bundle that the faulty ones are made from.
            version: that runs.
        """
        self._board, self._spoiler, self._version = board, Spoiler(goods, good), version

    def play(self, scene: Scene) -> Row:
        """Run a scene, and return its row."""
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
        if first.decode("utf-8", "replace").strip() not in STATES:
            raise BoardError(f"the session does not show the update: {first!r}")

    def _clean(self, place: str) -> None:
        self._board.run(f"rm -f {FULL} {place} {place}.sig; sync")

    def _history(self) -> list[dict[str, Any]]:
        said = sh(self._board, "vedette update history --json -n 10000")
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
        """Return slot, configuration and process ID."""
        said = sh(
            self._board,
            "readlink /opt/vedette/current; sha256sum </etc/vedette/vedette.toml; "
            "systemctl show --value --property=MainPID vedette",
        )
        slot, config, pid = said.splitlines()
        return slot, config, pid

    def _judge(self, scene: Scene, last: dict[str, Any], before: tuple[str, str, str]) -> str:
        """Return the error of a scene; empty: none."""
        if last["state"] != scene.state:
            return f"{last['state']}: {last['reason']}"
        if scene.says not in last["reason"]:
            return f"the reason does not say {scene.says!r}: {last['reason']}"
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
