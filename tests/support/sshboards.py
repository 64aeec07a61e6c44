"""Boards that are one sshd of this machine, each at a port of its own with a command that answers all.

with SshBoards(folder, good="echo well", bad="head -c 2000000 /dev/zero") as boards:
    boards.vedette("status")
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.support.mosquitto import free_port
from tests.support.publishing import wait_for
from tests.support.tiny_bundles import make_key

_OPTIONS = """ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/operator.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin yes
MaxStartups 100
"""


class SshBoards:
    """Off until `with`. Skips the test where there is no sshd.

    Attributes:
        folder: of the inventory, the keys and whatever the operator writes.
    """

    def __init__(self, folder: Path, *, plan: str = "", **answers: str) -> None:
        """Prepare.

        Args:
            folder: for everything.
            plan: lines of `[boards.vars]`.
            answers: by name of the board, a command of the shell.
        """
        self._sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
        if self._sshd is None or shutil.which("rsync") is None:
            pytest.skip("no sshd or rsync: apt-get install openssh-server rsync")
        self.folder, self._plan, self._answers = folder, plan, answers

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """`vedette fleet WORDS` as a process, as the operator says it in the folder."""
        # Where whoever runs the tests ignores Ctrl-C, as nohup in a script does, what is started here would, too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return subprocess.Popen(
            [sys.executable, "-m", "agent", "fleet", *words],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def vedette(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command and wait for its end."""
        running = self.begin(*words)
        try:
            out, err = running.communicate(timeout=90)
        finally:
            running.kill()
        return subprocess.CompletedProcess(words, running.returncode, out, err)

    def __enter__(self) -> Self:
        folder = self.folder.absolute()
        host, operator = make_key(folder / "host"), make_key(folder / "operator")
        ports = {name: free_port() for name in self._answers}
        config, hosts = [_OPTIONS.format(folder=folder)], []
        config += [f"Port {port}" for port in ports.values()]
        for name, answer in self._answers.items():
            script = folder / f"{name}.sh"
            script.write_text(f"#!/bin/sh\n{answer}\n", encoding="utf-8")
            script.chmod(0o755)
            config.append(f"Match LocalPort {ports[name]}\n  ForceCommand {script}")
            hosts.append(f'{name} = {{ ansible_host = "127.0.0.1", ansible_port = {ports[name]} }}')
        common = f'ansible_user = "{getpass.getuser()}"\nansible_ssh_private_key_file = "{operator.path}"'
        lines = ["[boards.hosts]", *hosts, "[boards.vars]", common, self._plan]
        (folder / "fleet.toml").write_text("\n".join(lines), encoding="utf-8")
        (folder / "known_hosts").write_text("".join(f"{name} {host.public}\n" for name in ports))
        (folder / "sshd_config").write_text("\n".join(config) + "\n", encoding="utf-8")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        assert self._sshd is not None
        self._running = subprocess.Popen(
            [self._sshd, "-D", "-e", "-f", str(folder / "sshd_config")],
            stderr=(folder / "sshd.log").open("wb"),
        )
        wait_for(lambda: all(map(_listens, ports.values())))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.terminate()
        self._running.wait(10)


def _listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0
