"""A rollout to boards in containers, from a canary that fails to the last one; the last line is a JSON object."""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from agent.update.fleet import read_inventory
from agent.update.fleet.rollout import Ledger, RolloutProgress, replay, size, verdict
from agent.update.fleet.ssh import Transport
from tests.support.fleet import Fleet
from tests.support.running import ROOT
from tests.support.tiny_bundles import Key, make_key
from tests.support.versions import bundle, version

_PLAN = (
    'vedette_canary = ["board1"]\nvedette_batches = [4, 4, 4]\nvedette_stop_share = 0.2\nvedette_at_once = 2\n'
)
_HEALTH = ("--health", "steady_s=3", "--health", "within_s=90", "--health", "p95_factor=50")
_DROP_IN = "/etc/systemd/system/vedette.service.d/broken.conf"
_BROKEN = "[Service]\nExecStartPre=/bin/sh -c 'test $(readlink /opt/vedette/current) = slots/a'\n"
"""Drop-in of one board, on which the new version cannot start."""


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--boards", type=int, default=12)
    count = arguments.parse_args().boards
    with tempfile.TemporaryDirectory(prefix="vedette-rollout-") as folder:
        return _prove(Path(folder), count)


def _prove(folder: Path, count: int) -> int:
    key = make_key(folder / "signer")
    _say("building the bundles")
    bundles = _bundles(folder, key)
    _say(f"installing {count} boards")
    with Fleet(folder / "fleet", count, bundle=bundles["1.0"], signer=key, plan=_PLAN) as fleet:
        proof = Proof(fleet, bundles)
        steps: Iterable[Callable[[], None]] = (
            proof.canary_fails,
            proof.second_batch_is_in_trouble,
            proof.goes_on,
            proof.all_at_one_version,
            proof.bytes_without_what_was_there,
            proof.goes_back,
        )
        for step in steps:
            _say(step.__name__.replace("_", " "))
            step()
    print(json.dumps({"boards": count, "missed": proof.missed, **proof.numbers}))
    return bool(proof.missed)


def _bundles(folder: Path, key: Key) -> dict[str, Path]:
    """Build the bundle of the installation, one that crashes, and a good one."""
    python = subprocess.run(
        ["/usr/bin/python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    (wheel,) = folder.glob("*.whl")
    made = {}
    for counter, (number, fault) in enumerate((("1.0", ""), ("1.1", "crash later"), ("1.2", "")), 1):
        words = ["--wheel", str(version(wheel, number, fault)), *_HEALTH]
        words += ["--health", "steady_s=15"] if fault else []
        made[number] = bundle(folder / f"{number}.vedette", python, counter, key, *words)
    return made


class Proof:
    """Steps of the proof.

    Attributes:
        missed: failed checks.
        numbers: figures of the last line.
    """

    def __init__(self, fleet: Fleet, bundles: dict[str, Path]) -> None:
        self._fleet, self._bundles = fleet, bundles
        self._names = list(fleet.boards)
        self._away, self._broken = self._names[1:3], self._names[3]
        self.missed: list[str] = []
        self.numbers: dict[str, object] = {}

    def canary_fails(self) -> None:
        """Roll out 1.1, which crashes: only the canary gets it."""
        progress = self._roll_out("1.1")
        self._check("the canary rolled back", _kinds(progress) == {"board1": "rolled_back"})
        self._check("it stopped at the canary", "the canary board1" in progress.reason)
        self._check("all are at 1.0", self._versions() == {"1.0"})

    def second_batch_is_in_trouble(self) -> None:
        """Roll out 1.2 with two unreachable boards, and one that cannot start it."""
        for name in self._away:
            self._fleet.links[name].cut()
        self._fleet.boards[self._broken].write(_DROP_IN, _BROKEN)
        self._fleet.boards[self._broken].sh("systemctl", "daemon-reload")
        kinds = _kinds(progress := self._roll_out("1.2"))
        self._check("two are unreachable", [kinds.get(name) for name in self._away] == ["unreachable"] * 2)
        self._check("one rolled back", kinds.get(self._broken) == "rolled_back")
        self._check("it stopped there", bool(progress.reason) and len(kinds) == 5)

    def goes_on(self) -> None:
        """Repair the boards and repeat the command."""
        for name in self._away:
            self._fleet.links[name].mend()
        self._fleet.boards[self._broken].sh("rm", _DROP_IN)
        self._fleet.boards[self._broken].sh("systemctl", "daemon-reload")
        progress = self._roll_out("1.2")
        self._check("all are updated", set(_kinds(progress).values()) == {"updated"})
        outcomes = list(progress.outcomes.values())
        for one in outcomes:
            print(
                f"  {one.board:<8} {one.seconds:6.1f} s  down {one.downtime_s or 0:4.1f} s  sent {size(one.sent)}"
            )
        self.numbers["seconds_per_board"] = round(sum(one.seconds for one in outcomes) / len(outcomes), 1)
        self.numbers["sent_with_delta"] = max(one.sent for one in outcomes)
        self.numbers["bundle_size"] = outcomes[0].size

    def all_at_one_version(self) -> None:
        """Check versions and daemons of all boards."""
        self._check("all are at 1.2", self._versions() == {"1.2"})
        told = self._fleet.vedette("status").stdout
        print(told)
        self._check("all daemons run", told.count("1 of 1 stream running") == len(self._names))

    def bytes_without_what_was_there(self) -> None:
        """Send the bundle to a board without the bundle of its running version."""
        name = self._names[-1]
        self._fleet.boards[name].sh("rm", "/var/lib/vedette-update/bundles/present.vedette")
        inventory = read_inventory(self._fleet.folder / "fleet.toml")
        transport = Transport(inventory.known_hosts)
        reply, sent = asyncio.run(transport.send(inventory.boards[name], self._bundles["1.2"], 600.0))
        self._check("it was sent", reply.trouble is None)
        self.numbers["sent_without_delta"] = sent

    def goes_back(self) -> None:
        """Roll back half of the boards with `vedette fleet`, the rest with Ansible."""
        half = len(self._names) // 2
        ours, theirs = self._names[:half], self._names[half:]
        named = [word for name in ours for word in ("--board", name)]
        done = self._fleet.vedette("rollback", "--yes", *named)
        print("  " + done.stdout.strip().replace("\n", "\n  "), done.stderr.strip())
        self._check("half of them rolled back", done.returncode == 0)
        self._check("the rest has not", self._versions() == {"1.0", "1.2"})
        limit = ("--limit", ",".join(theirs))
        self._check("Ansible took the rest back", self._fleet.play("rollback.yml", *limit).returncode == 0)
        told = self._fleet.play("status.yml").stdout
        self._check("Ansible tells what was before", told.count('"previous": "1.2"') == len(self._names))
        self._check("all are at 1.0", self._versions() == {"1.0"})

    def _roll_out(self, number: str) -> RolloutProgress:
        path = self._bundles[number]
        done = self._fleet.vedette("rollout", str(path))
        print("  " + done.stdout.strip().replace("\n", "\n  "), done.stderr.strip())
        progress = replay(Ledger(self._fleet.folder / f"{path.name}.ledger").read())
        assert progress is not None
        print(f"  {verdict(progress)}: {dict(Counter(one.kind for one in progress.outcomes.values()))}")
        return progress

    def _versions(self) -> set[str]:
        rows = map(json.loads, self._fleet.vedette("status", "--json").stdout.splitlines())
        return {row["state"]["update"]["version"] if row["state"] else row["reason"] for row in rows}

    def _check(self, what: str, held: bool) -> None:
        print(f"  {'ok    ' if held else 'MISSED'} {what}")
        if not held:
            self.missed.append(what)


def _kinds(progress: RolloutProgress) -> dict[str, str]:
    return {name: one.kind for name, one in progress.outcomes.items()}


def _say(what: str) -> None:
    print(f"== {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
