"""Install Vedette on fresh systems in containers, and remove it; the last line is a JSON object."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from goods import Goods, Target
from rich.console import Console
from rich.table import Table

from agent.update.bundle.signing import signature_of
from tests.support.board import CLONE, Board
from tests.support.publishing import wait_for
from tests.support.running import ROOT

_INSTALL_S = 600.0
_HEALTH = ("steady_s=3", "within_s=120", "p95_factor=50")
_TOO_OLD = ("jammy",)
"""Systems whose Python is older than 3.11: scripts/install has to refuse them."""
_ASKS_PYTHON = "import sys; print('%d.%d' % sys.version_info[:2])"
_LEFT = (
    "ls -d /opt/vedette /etc/vedette /var/lib/vedette* /usr/local/bin/vedette /usr/local/lib/vedette "
    "/etc/systemd/system/vedette* /etc/sudoers.d/vedette /etc/ssh/sshd_config.d/*vedette* 2>/dev/null; "
    "getent passwd vedette vedette-update; true"
)
"""Lists the remains of an installation."""


class Proof:
    """Proof of one system.

    Attributes:
        steps: with their errors; empty: none.
        told: cells of the table.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self._name, self._folder = name, folder
        self._board = Board(folder / "board", base=(ROOT / "build/systems" / name).resolve())
        self.steps: dict[str, str] = {}
        self.told: dict[str, str] = {}

    def run(self) -> None:
        """Run the steps in order until one fails."""
        steps: tuple[Callable[[], str], ...] = (
            self._installs_from_the_clone,
            self._installs_nothing_twice,
            self._keeps_to_its_sandbox,
            self._takes_an_update,
            self._leaves_nothing_behind,
            self._installs_from_a_bundle_without_network,
        )
        if self._name in _TOO_OLD:
            steps = (self._is_refused_in_words,)
        with self._board as board:
            self.told["system"] = board.sh("sh", "-c", '. /etc/os-release; echo "$PRETTY_NAME"')
            self.told["systemd"] = board.sh("systemctl", "--version").split()[1]
            self.told["Python"] = board.sh("python3", "-c", _ASKS_PYTHON)
            for step in steps:
                name = step.__name__.strip("_").replace("_", " ")
                began = time.monotonic()
                try:
                    wrong = step()
                except AssertionError as error:
                    wrong = str(error) or "it failed"
                self.steps[name] = wrong
                seconds = time.monotonic() - began
                print(f"  {'MISSED' if wrong else 'ok    '} {name}, {seconds:.0f} s {wrong}", flush=True)
                if wrong:
                    break

    def _is_refused_in_words(self) -> str:
        said = self._board.sh("sh", "-c", f"{CLONE}/scripts/install 2>&1 || true", patience_s=_INSTALL_S)
        self.told["refused"] = said.splitlines()[-1]
        return "" if "is older than 3.11: set PYTHON to a newer one" in said else said

    def _installs_from_the_clone(self) -> str:
        said = self._board.sh(f"{CLONE}/scripts/install", patience_s=_INSTALL_S)
        return self._well() if "is installed" in said else said

    def _installs_nothing_twice(self) -> str:
        before = self._board.wait_active()
        said = self._board.sh(f"{CLONE}/scripts/install", patience_s=_INSTALL_S)
        if "installed already" not in said:
            return said
        return "" if self._board.wait_active() == before else "the daemon was restarted"

    def _keeps_to_its_sandbox(self) -> str:
        """Check the unit with this system's systemd."""
        said = self._board.sh("systemd-analyze", "security", "--no-pager", "vedette.service")
        exposure = float(said.split("vedette.service:")[1].split()[0])
        self.told["exposure"] = f"{exposure:g}"
        unknown = self._board.sh("sh", "-c", "systemd-analyze verify /etc/systemd/system/vedette* 2>&1 || true")
        for file in ("/etc/sudoers.d/vedette", "/etc/ssh/sshd_config.d/60-vedette.conf"):
            if not self._board.exists(file):
                return f"{file} is missing"
        ours = [line for line in unknown.splitlines() if "/etc/systemd/system/vedette" in line]
        return "; ".join(ours) or ("" if exposure <= 2.5 else f"exposure {exposure}")

    def _takes_an_update(self) -> str:
        goods = self._goods()
        first, second = goods.bundle("1.0.1", 1), goods.bundle("1.0.2", 2)
        for path in (first, second):
            for file in (path, signature_of(path)):
                self._board.write(f"/root/{file.name}", file.read_bytes())
        self._board.write("/etc/vedette/allowed_signers", goods.signers.read_text())
        self._board.sh("vedette", "update", "apply", f"/root/{second.name}", patience_s=_INSTALL_S)
        told = json.loads(self._board.sh("vedette", "update", "history", "--json").splitlines()[-1])
        self.told["down"] = f"{told['downtime_s']:.1f} s"
        return "" if told["state"] == "committed" else str(told)

    def _leaves_nothing_behind(self) -> str:
        self._board.write("/root/signers", self._goods().signers.read_text())
        self._board.sh(f"{CLONE}/scripts/uninstall", "--purge")
        return self._board.sh("sh", "-c", _LEFT)

    def _installs_from_a_bundle_without_network(self) -> str:
        words = ("--bundle", "/root/1.0.1.vedette", "--signers", "/root/signers")
        said = self._board.sh("unshare", "--net", f"{CLONE}/scripts/install", *words, patience_s=_INSTALL_S)
        return self._well() if "signed by" in said and "is installed" in said else said

    def _goods(self) -> Goods:
        return Goods(self._folder / "goods", Target("x86_64", self.told["Python"], _HEALTH))

    def _well(self) -> str:
        """Wait until every stream infers."""
        health = self._board.health

        def is_ready() -> bool:
            found = health()
            return found is not None and found.ready and all(one.inferred for one in found.streams.values())

        self._board.wait_active()
        wait_for(is_ready, 60.0)
        return ""


def main() -> int:
    proofs: dict[str, Proof] = {}
    for name in sys.argv[1:]:
        print(f"== {name}", flush=True)
        with tempfile.TemporaryDirectory(prefix=f"vedette-{name}-") as folder:
            proofs[name] = Proof(name, Path(folder))
            proofs[name].run()
    columns = list(dict.fromkeys(key for proof in proofs.values() for key in proof.told))
    table = Table(*columns, "steps", title="installation on fresh systems")
    for proof in proofs.values():
        good = sum(not wrong for wrong in proof.steps.values())
        table.add_row(*(proof.told.get(key, "") for key in columns), f"{good} of {len(proof.steps)}")
    Console(width=160).print(table)
    missed = {name: wrong for name, proof in proofs.items() for wrong in proof.steps.values() if wrong}
    print(json.dumps({"systems": list(proofs), "missed": missed, "meets": not missed}))
    return bool(missed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.TimeoutExpired as error:
        sys.exit(f"{error.cmd}: not within {error.timeout:.0f} s")
