"""A board that QEMU emulates: a Cortex-A72 with Debian arm64, see `image`.

Its disk is a qcow2 file, in QEMU's cache mode `writeback`. After a snapshot every cluster that is written is a
new one, and where it lies stands in QEMU's memory until the board flushes its disk. So what was not flushed is
lost when QEMU is killed, as with a disk that has a cache of its own; and since a cluster that is written twice is
not, later writes may be there where earlier ones are lost.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

from machine import PATIENCE_S, BoardError, wait_for
from qmp import Monitor

_DISK, _CONSOLE, _PID, _PORT, _MONITOR, _SHARED = (
    "board.qcow2",
    "console.log",
    "qemu.pid",
    "port",
    "monitor",
    "ssh",
)
_APPEND = "console=ttyAMA0 root=/dev/vda rw quiet net.ifnames=0 systemd.show_status=0 panic=5"
_BOOT_S, _DOWN_S = 400.0, 120.0


class Emulated:
    """An emulated board, with its files in a folder; see `machine.Board`."""

    name, broker, scale = "qemu", "10.0.2.2", 10.0
    camera, microphone = "v4l2:/dev/video0?size=640x360", "mic:default?rate=8000"

    def __init__(self, folder: Path, image: Path) -> None:
        """Create a board; nothing is started.

        Args:
            folder: for its disk; is made.
            image: what `image` has made.
        """
        self.folder, self._image = folder.resolve(), image.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def console(self) -> Path:
        """Log of the board's serial line, since the board was built."""
        return self.folder / _CONSOLE

    @property
    def pid(self) -> int:
        """Process ID of QEMU; 0: the board is off."""
        try:
            pid = int((self.folder / _PID).read_text())
            name = Path(f"/proc/{pid}/comm").read_text()
        except (OSError, ValueError):
            return 0
        return pid if name.startswith("qemu-system") else 0

    def fresh(self) -> None:
        """Reset the disk to its first contents and delete all snapshots."""
        (self.folder / _DISK).unlink(missing_ok=True)
        self.console.unlink(missing_ok=True)
        base = os.path.relpath(self._image / "base.raw", self.folder)
        self._qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", _DISK)

    def _qemu_img(self, *words: str) -> None:
        done = subprocess.run(["qemu-img", *words], cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BoardError(f"qemu-img {' '.join(words)}: {done.stderr}")

    def up(self) -> None:
        self.start()
        self.wait_ssh()

    def start(self, snapshot: str = "") -> None:
        """Start QEMU; from a snapshot it waits for `go_on`."""
        if self.pid:
            raise BoardError(f"{self.folder}: this board is up already, as process {self.pid}")
        if not (self.folder / _DISK).exists():
            self.fresh()
        (self.folder / _PORT).write_text(str(_free_port()))
        with (self.folder / "qemu.log").open("ab") as log:
            self._process = process = subprocess.Popen(
                self._command(snapshot),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for("QEMU", lambda: process.poll() is not None or self._answers(), 60, 0.05)
        if process.poll() is not None:
            raise BoardError(f"{self.folder}: QEMU does not start: see qemu.log there")

    def _answers(self) -> bool:
        try:
            with Monitor(self.folder / _MONITOR):
                return True
        except BoardError:
            return False

    def _command(self, snapshot: str) -> list[str]:
        image = os.path.relpath(self._image, self.folder)
        network = f"user,id=net,hostfwd=tcp:127.0.0.1:{self._port}-:22"
        words = f"""
        qemu-system-aarch64 -M virt,gic-version=3 -cpu cortex-a72 -accel tcg,thread=multi -smp 2 -m 1024
        -display none -kernel {image}/vmlinuz -initrd {image}/initrd.gz
        -drive file={_DISK},if=none,id=disk,format=qcow2,cache=writeback -device virtio-blk-pci,drive=disk
        -netdev {network} -device virtio-net-pci,netdev=net,romfile= -device virtio-rng-pci
        -device i6300esb -action watchdog=reset -qmp unix:{_MONITOR},server=on,wait=off -pidfile {_PID}
        -chardev file,id=console,path={_CONSOLE},append=on -serial chardev:console
        """
        more = ["-S", "-loadvm", snapshot] if snapshot else []
        return [*words.split(), "-append", _APPEND, *more]

    @property
    def _port(self) -> int:
        return int((self.folder / _PORT).read_text())

    def wait_ssh(self) -> float:
        """Wait until commands can be run, and return the time that this took, s."""
        return wait_for("ssh", self._connect, _BOOT_S)

    def _connect(self) -> bool:
        """Open the connection that commands share: under emulation a new one takes seconds."""
        (self.folder / _SHARED).unlink(missing_ok=True)
        command = self._ssh("-f", "-N", "-o", "ControlMaster=yes", "-o", f"ControlPath={_SHARED}")
        nowhere = subprocess.DEVNULL
        return subprocess.call(command, cwd=self.folder, stdin=nowhere, stdout=nowhere, stderr=nowhere) == 0

    def cut(self) -> None:
        """Kill QEMU."""
        pid = self.pid
        if not pid:
            raise BoardError(f"{self.folder}: this board is off")
        os.kill(pid, signal.SIGKILL)
        self._wait_off(20)

    def _wait_off(self, patience_s: float) -> None:
        wait_for("QEMU's end", self._is_off, patience_s, 0.05)
        (self.folder / _MONITOR).unlink(missing_ok=True)

    def _is_off(self) -> bool:
        if self._process is not None:
            self._process.poll()  # takes note of its end
        return not self.pid

    def down(self) -> None:
        if not self.pid:
            return
        self.run("systemctl --no-block poweroff", patience_s=5)
        try:
            self._wait_off(_DOWN_S)
        except BoardError:
            self.cut()

    def run(
        self, command: str, *, given: bytes = b"", patience_s: float = PATIENCE_S
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command; exit code 255: the board is unreachable."""
        words = self._ssh("-o", "ControlMaster=no", "-o", f"ControlPath={_SHARED}")
        try:
            return subprocess.run(
                [*words, command],
                input=given,
                capture_output=True,
                timeout=patience_s * self.scale,
                check=False,
                cwd=self.folder,
            )
        except subprocess.TimeoutExpired as error:
            return subprocess.CompletedProcess(error.cmd, 255, error.stdout or b"", b"not done in time")

    def small_disk(self) -> None:
        """Do nothing: the slots are on a disk of their own already."""

    def session(self, command: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self._ssh(), command], cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def _ssh(self, *options: str) -> list[str]:
        pinned = ["-o", f"UserKnownHostsFile={self._image / 'known_hosts'}", "-o", "HostKeyAlias=vedette-board"]
        quiet = ["-F", "none", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20", "-o", "LogLevel=ERROR"]
        return [
            *("ssh", "-i", str(self._image / "key"), "-p", str(self._port), *quiet, *pinned, *options),
            "root@127.0.0.1",
        ]

    def halt(self) -> None:
        """Pause the board."""
        with Monitor(self.folder / _MONITOR) as monitor:
            monitor.execute("stop")

    def go_on(self) -> None:
        """Continue a paused board."""
        with Monitor(self.folder / _MONITOR) as monitor:
            monitor.execute("cont")

    def save(self, snapshot: str) -> None:
        """Save a snapshot of memory and disk."""
        with Monitor(self.folder / _MONITOR) as monitor:
            said = monitor.say(f"savevm {snapshot}")
        if said:
            raise BoardError(f"QEMU: savevm {snapshot}: {said}")

    def snapshots(self) -> list[str]:
        """Return the names of the snapshots; only while the board is off."""
        done = subprocess.run(
            ["qemu-img", "snapshot", "-l", _DISK], cwd=self.folder, capture_output=True, text=True, check=False
        )
        return [line.split()[1] for line in done.stdout.splitlines()[2:]]

    def tidy(self) -> None:
        """Free unused space in the disk's file, which each power cut leaves."""
        done = subprocess.run(
            ["qemu-img", "check", "-q", "-r", "leaks", _DISK], cwd=self.folder, capture_output=True, check=False
        )
        if done.returncode not in (0, 3):
            raise BoardError(f"{self.folder / _DISK}: damaged: {done.stdout.decode()}{done.stderr.decode()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
