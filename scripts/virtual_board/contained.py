"""A board in a container of this machine: systemd in namespaces, see `container`. There is no camera on it."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

from machine import PATIENCE_S, ROOT, BoardError, wait_for

_CONTAINER = ROOT / "scripts/virtual_board/container"
_SSHD = """
Port {port}
ListenAddress 127.0.0.1
HostKey /root/.ssh/host
AuthorizedKeysFile /root/.ssh/authorized_keys
StrictModes no
UsePAM no
PidFile none
"""
_SPACE = "2G"
"""Size of the file system of the slots: a separate one, so that it can be filled."""


class Contained:
    """A board in a container, with its files in a folder; see `machine.Board`."""

    name, broker, scale = "container", "127.0.0.1", 1.0
    camera, microphone = "test:?size=160x120&fps=10", "wav:/etc/vedette/speech.wav?pace=realtime&loop=1"

    def __init__(self, folder: Path) -> None:
        """Create a board; nothing is started."""
        self._folder = folder.resolve()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._port = 0

    def up(self) -> None:
        self._do("up")

    def cut(self) -> None:
        self._do("cut")

    def down(self) -> None:
        self._do("down")

    def _do(self, verb: str) -> None:
        command = [str(_CONTAINER), verb, str(self._folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode:
            raise BoardError(f"container {verb}: {done.stdout}{done.stderr}")

    def small_disk(self) -> None:
        """Put the slots on a file system of their own."""
        self.run(f"mkdir -p /opt/vedette && mount -t tmpfs -o mode=755,size={_SPACE} slots /opt/vedette")

    def run(
        self, command: str, *, given: bytes = b"", patience_s: float = PATIENCE_S
    ) -> subprocess.CompletedProcess[bytes]:
        words = [str(_CONTAINER), "sh", str(self._folder), "sh", "-c", command]
        try:
            return subprocess.run(words, input=given, capture_output=True, timeout=patience_s, check=False)
        except subprocess.TimeoutExpired as error:
            return subprocess.CompletedProcess(error.cmd, 255, error.stdout or b"", b"not done in time")

    def session(self, command: str) -> subprocess.Popen[bytes]:
        """Begin a command over SSH to an sshd that is started for it."""
        key = self._folder / "key"
        if not key.exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        if not self._port or self.run("systemctl is-active --quiet board-sshd").returncode:
            self._start_sshd(key.with_name("key.pub").read_bytes())
        options = ["-F", "none", "-o", "BatchMode=yes", "-o", "UserKnownHostsFile=known", "-o", "LogLevel=ERROR"]
        return subprocess.Popen(
            ["ssh", "-i", "key", "-p", str(self._port), *options, "root@127.0.0.1", command],
            cwd=self._folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def _start_sshd(self, public: bytes) -> None:
        if not Path("/usr/sbin/sshd").exists():
            raise BoardError("the board in a container has no sshd: apt-get install openssh-server")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        config = _SSHD.format(port=self._port).encode()
        self.run("mkdir -p -m 700 /root/.ssh /run/sshd; cat >/root/.ssh/authorized_keys", given=public)
        self.run("cat >/root/.ssh/sshd_config", given=config)
        start = "systemd-run --quiet --collect --unit=board-sshd /usr/sbin/sshd -D -f /root/.ssh/sshd_config"
        done = self.run(f"rm -f /root/.ssh/host*; ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/host && {start}")
        if done.returncode:
            raise BoardError(f"the board's sshd does not start: {done.stderr.decode()}")
        host = self.run("cat /root/.ssh/host.pub").stdout.decode().split()
        (self._folder / "known").write_text(f"[127.0.0.1]:{self._port} {host[0]} {host[1]}\n")
        wait_for("the board's sshd", self._listens, 20, 0.1)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0
