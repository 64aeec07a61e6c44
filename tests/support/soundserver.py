"""A real sound server of the test's own, whose loudspeaker is heard by its microphone.

with SoundServer(tmp_path) as server, monkeypatch...:
    server.play(samples, 16000)
"""

from __future__ import annotations

import ctypes.util
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import soundfile

from agent.types import Samples

_NEEDED = "pulseaudio pulseaudio-utils libportaudio2 libasound2-plugins"
_START_S = 60.0
_ALSA = Path("/usr/share/alsa/alsa.conf")
_CONFIG = """
<{alsa}>
pcm.vedettemic {{ type pulse server "{server}" device "spk.monitor" hint {{ show on description "test" }} }}
pcm.!default {{ type pulse server "{server}" }}
ctl.!default {{ type pulse server "{server}" }}
"""


def _give_up(why: str) -> None:
    """Skip the test; or end the bench, which has no pytest."""
    try:
        import pytest
    except ImportError:
        raise SystemExit(why) from None
    pytest.skip(why)


class SoundServer:
    """PulseAudio with a null sink. Skips the test where Debian's packages are missing."""

    def __init__(self, folder: Path, rate_hz: int = 48000) -> None:
        """Prepare; `start` (or `with`) starts it.

        Args:
            folder: for its socket and files.
            rate_hz: that its loudspeaker runs at.
        """
        tools = all(map(shutil.which, ("pulseaudio", "pactl", "paplay", "parec")))
        plugin = any(Path("/usr/lib").glob("*/alsa-lib/libasound_module_pcm_pulse.so"))
        if not (tools and plugin and ctypes.util.find_library("portaudio") and _ALSA.exists()):
            _give_up(f"no sound server: apt-get install {_NEEDED}")
        self.folder, self._rate_hz = folder / "sound", rate_hz
        self.folder.mkdir(mode=0o700)
        self.address = f"unix:{self.folder}/native"
        (self.folder / "asound.conf").write_text(_CONFIG.format(alsa=_ALSA, server=self.address))
        self.environment = {
            "PULSE_SERVER": self.address,
            "PULSE_RUNTIME_PATH": str(self.folder),
            "PULSE_STATE_PATH": str(self.folder),
            "PULSE_COOKIE": str(self.folder / "cookie"),
            "ALSA_CONFIG_PATH": str(self.folder / "asound.conf"),
        }
        """Environment that makes a process use this server."""
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> Self:
        """Start it, and return when sound flows."""
        (self.folder / "native").unlink(missing_ok=True)
        native = f"module-native-protocol-unix socket={self.folder}/native auth-anonymous=1"
        sink = f"module-null-sink sink_name=spk rate={self._rate_hz} channels=1 format=s16le"
        options = (
            "--daemonize=no --system=no --disallow-exit=1 --exit-idle-time=-1 --use-pid-file=no --disable-shm=1"
        )
        quiet = ["--realtime=no", "--high-priority=no", f"--log-target=file:{self.folder}/log"]
        self._begin("pulseaudio", "-n", *options.split(), *quiet, "-L", native, "-L", sink)
        deadline = time.monotonic() + _START_S
        while self._call("pactl", "info").returncode:
            assert time.monotonic() < deadline, "the sound server did not start"
            time.sleep(0.05)
        self._call("pactl", "set-default-source", "spk.monitor", check=True)
        self._call("pactl", "set-default-sink", "spk", check=True)
        # A null sink that nobody hears hands its sound on every two seconds only.
        self._company = self._begin("parec", "-d", "spk.monitor", "--latency-msec=20")
        with subprocess.Popen(
            ["parec", "-d", "spk.monitor", "--latency-msec=20"], env=self._env, stdout=subprocess.PIPE
        ) as first:
            assert first.stdout is not None
            first.stdout.read(64_000)
            first.kill()
        return self

    def play(self, samples: Samples, rate_hz: int) -> subprocess.Popen[bytes]:
        """Play, N int16, from now on; the process ends with it."""
        path = self.folder / "played.wav"
        soundfile.write(path, samples, rate_hz)
        return self._begin("paplay", str(path))

    def leave_alone(self) -> None:
        """From now on nobody hears it but its clients; what they ask for says how often it hands sound on."""
        self._company.kill()
        self._company.wait(60)

    def hang(self) -> None:
        """It is there, and answers nothing any more."""
        self._processes[0].send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        """Gone, as after a crash, and whoever plays with it."""
        for process in reversed(self._processes):
            process.kill()
            process.wait(60)
        self._processes.clear()

    @property
    def _env(self) -> dict[str, str]:
        return os.environ | self.environment

    def _begin(self, *command: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, env=self._env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._processes.append(process)
        return process

    def _call(self, *command: str, check: bool = False) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(command, env=self._env, capture_output=True, timeout=60, check=check)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
