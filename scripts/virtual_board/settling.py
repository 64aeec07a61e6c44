"""Installation of version A from a bundle, with two streams and a unit that records the disk at each boot."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import soundfile
import soxr
import tomli_w
from goods import Goods
from machine import ROOT, Board, BoardError, put, sh, wait_for

CAMERA, MICROPHONE = "porch", "hall"
"""Names of the streams."""
DEVICE = "prover"
_CLONE = "/root/vedette"
_RATE_HZ = 8000
"""Name of the model."""
_INSTALL_S = 180.0
_MODELS = "/opt/vedette/current/models"
_WITNESS = """
[Unit]
Description=Witness of a boot: what the disk says before anything is put right
DefaultDependencies=no
After=local-fs.target
Before=vedette-settle.service vedette.service vedette-update.service
ConditionPathExists=/var/lib/vedette-update
[Service]
Type=oneshot
ExecStart=/bin/sh /usr/local/lib/board-witness
[Install]
WantedBy=multi-user.target
"""
_LOOK = """
cd /var/lib/vedette-update
{ cat journal.json; echo ---; cat trial; echo ---; readlink /opt/vedette/current /opt/vedette/keeper
} >/run/witness 2>/dev/null
"""
_SPEAKER = """
[Unit]
Description=Somebody speaks, again and again
After=sound.target
[Service]
ExecStart=/bin/sh -c 'while aplay -q /etc/vedette/speech.wav; do :; done'
Restart=always
RestartSec=2
[Install]
WantedBy=multi-user.target
"""


class Health(msgspec.Struct, frozen=True):
    """Fields of `agent.health.DaemonHealth`.

    Attributes:
        version, ready, streams: see there.
    """

    version: str
    ready: bool
    streams: dict[str, Any]


def settle(board: Board, goods: Goods, bundle: Path, port: int) -> float:
    """Install from a bundle, wait until both streams infer, and return the time of both, s.

    Args:
        board: that is up, and empty.
        goods: whose signatures it is to trust.
        bundle: to install.
        port: of the broker on this machine's loopback.

    Raises:
        BoardError: it cannot be installed, or does not get well.
    """
    _furnish(board, port)
    deliver(board, bundle)
    put(board, goods.signers, "/root/signers")
    began = time.monotonic()
    said = sh(
        board,
        f"cd {_CLONE} && scripts/install --bundle /root/{bundle.name} --signers /root/signers 2>&1",
        patience_s=_INSTALL_S,
    )
    if "is installed" not in said:
        raise BoardError(f"{board.name}: scripts/install does not say that it has installed anything: {said}")
    wait_for("version A is well", lambda: is_well(board), 60 * board.scale)
    return time.monotonic() - began


def _furnish(board: Board, port: int) -> None:
    """Copy the installer, configuration, sound and recording unit to the board."""
    board.run(f"mkdir -p {_CLONE} && tar -x -C {_CLONE}", given=_scripts())
    put(board, speech(), "/etc/vedette/speech.wav")
    put(board, tomli_w.dumps(configuration(board, port)).encode(), "/etc/vedette/vedette.toml")
    put(board, _WITNESS.encode(), "/etc/systemd/system/board-witness.service")
    put(board, _LOOK.encode(), "/usr/local/lib/board-witness")
    put(board, _SPEAKER.encode(), "/etc/systemd/system/board-speaker.service")
    enable = "board-witness" + (" board-speaker" if board.microphone.startswith("mic:") else "")
    sh(board, f"systemctl daemon-reload; systemctl enable -q {enable}; systemctl start --no-block {enable}")


def deliver(board: Board, bundle: Path) -> str:
    """Copy a bundle and its signature to the board, and return the path there."""
    place = f"/root/{bundle.name}"
    put(board, bundle, place)
    signature = bundle.with_name(f"{bundle.name}.sig")
    if signature.exists():
        put(board, signature, f"{place}.sig")
    return place


def configuration(board: Board, port: int) -> dict[str, Any]:
    """Return the configuration: a stream that always detects a person, and one that detects words."""
    camera = {
        "source": board.camera,
        "model": f"{_MODELS}/colour.toml",
        "backend": "cpu",
        "capture": {"max_fps": 2.0},
        "gate": {"motion": False},
        "track": {"update_every_s": 1.0, "stationary_after_s": 0.0},
    }
    microphone = {"source": board.microphone, "model": f"{_MODELS}/small-speech.toml", "backend": "cpu"}
    return {
        "device": {"name": DEVICE},
        "mqtt": {"host": board.broker, "port": port, "keepalive_s": 10, "reconnect_max_s": 2.0},
        "health": {"every_s": 2.0},
        "selection": {"after_s": 100_000.0},
        "streams": {CAMERA: camera, MICROPHONE: microphone},
    }


def health(board: Board) -> Health | None:
    """Return the daemon's health; None: unknown."""
    done = board.run("cat /run/vedette/health.json", patience_s=10)
    try:
        return msgspec.json.decode(done.stdout, type=Health)
    except msgspec.DecodeError:
        return None


def is_well(board: Board, version: str = "") -> bool:
    """Return True if the daemon of this version (empty: any) is ready and both streams infer."""
    told = health(board)
    if told is None or not told.ready or (version and told.version != version):
        return False
    both = [told.streams.get(name, {}) for name in (CAMERA, MICROPHONE)]
    return all(one.get("state") in ("running", "degraded") and one.get("inferred", 0) for one in both)


def speech() -> bytes:
    """Return spoken words and a pause as a WAV file."""
    samples, rate_hz = soundfile.read(ROOT / "agent/models/zoo/spoken.flac", dtype="float32")
    samples = soxr.resample(samples, rate_hz, _RATE_HZ)
    with io.BytesIO() as file:
        silence = np.zeros(2 * _RATE_HZ, np.float32)
        soundfile.write(file, np.concatenate((samples, silence)), _RATE_HZ, subtype="PCM_16", format="WAV")
        return file.getvalue()


def _scripts() -> bytes:
    """Return the files of a clone that an installation from a bundle needs."""
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            for path in _needed():
                tar.add(path, str(path.relative_to(ROOT)))
        return file.getvalue()


def _needed() -> Iterator[Path]:
    yield from (ROOT / "scripts" / name for name in ("install", "uninstall", "lib.sh"))
    yield ROOT / "systemd"
