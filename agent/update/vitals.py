"""Vitals: how the daemon says that it is, in the file that it keeps for local readers."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
from msgspec import Struct

from agent.errors import NO_JSON, StorageError
from agent.storage.regular import read_regular

_LARGEST = 256 * 1024
"""Bytes that are read of what the daemon tells, whom nothing is believed: as much as `vedette-ssh` hands on."""
_STALE_S = 15.0
"""The daemon writes every two seconds; one that has not for so long is stuck or gone."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class ShadowVitals(Struct, frozen=True):
    """Of the new model beside that of a stream.

    Attributes:
        compared: answers in which either has found something.
        agreement: mean over these, 0..1; None: there was none.
        infer_p95_ms: 95th percentile of its newest inferences; None: there were none.
        present_p95_ms: of the stream's own model, of the same inputs.
        failed: why it cannot go on; empty: it does.
    """

    compared: int = 0
    agreement: float | None = None
    infer_p95_ms: float | None = None
    present_p95_ms: float | None = None
    failed: str = ""


class StreamVitals(Struct, frozen=True):
    """Of one stream, as far as a trial asks.

    Attributes:
        state: as in the health message. detail: why.
        inferred: inferences since the start.
        infer_p95_ms: 95th percentile of the newest; None: there were none.
        shadow: see `ShadowVitals`; None: nothing runs beside it.
    """

    state: str = ""
    detail: str = ""
    inferred: int = 0
    infer_p95_ms: float | None = None
    shadow: ShadowVitals | None = None


class LinkVitals(Struct, frozen=True):
    """The line to the broker.

    Attributes:
        broker: `host:port`.
    """

    broker: str = ""


class Vitals(Struct, frozen=True):
    """Of the daemon. Another version may say more, which is left out.

    Attributes:
        version: of Vedette.
        pid: of the daemon.
        boot_id: of the kernel, when this was written.
        at_s: CLOCK_BOOTTIME, s.
        ready: whether it has told systemd that it is.
        rss_mb: resident memory, MB.
        streams: by name.
        shadow: the update whose new models run beside those in use; empty: there is none.
        reloads: how often it has read its configuration again; -1: it does not tell.
        reload_refused: why the last time was in vain; empty: it was not.
        link: to the broker; None: there is none now.
    """

    version: str = ""
    pid: int = 0
    boot_id: str = ""
    at_s: float = 0.0
    ready: bool = False
    rss_mb: float = 0.0
    streams: dict[str, StreamVitals] = {}
    shadow: str = ""
    reloads: int = -1
    reload_refused: str = ""
    link: LinkVitals | None = None


def read_vitals(path: Path) -> Vitals | None:
    """What the daemon wrote last; None: there is nothing, or it is of before: no daemon keeps it now.

    Args:
        path: of the file.
    """
    try:
        vitals = msgspec.json.decode(read_regular(path, _LARGEST), type=Vitals)
    except (OSError, StorageError, *NO_JSON):
        return None
    is_new = 0 <= time.clock_gettime(time.CLOCK_BOOTTIME) - vitals.at_s < _STALE_S
    return vitals if is_new and vitals.boot_id == boot_id() else None


def boot_id() -> str:
    """Of the kernel that runs; empty: it does not tell."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""
