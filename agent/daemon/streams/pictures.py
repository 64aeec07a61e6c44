"""Encode and publish a picture of a stream."""

from __future__ import annotations

from agent.comms.reporter import Reporter
from agent.types import Frame, StreamBudget

_FULL = StreamBudget()
"""Of snapshots that were asked for."""
_SMALL_BELOW, _SMALL_WIDTH = 60, 480
"""Below this quality of the JPEG, snapshots are made so narrow, px: a fifth of the bytes at quality 40."""
_QUICK = StreamBudget(snapshot_quality=40)
"""Of snapshots that a slow network would take long for."""


def show_snapshot(reporter: Reporter, frame: Frame, budget: StreamBudget | None, quality: int) -> None:
    """Publish a frame as the snapshot.

    Args:
        reporter: of its stream.
        frame: to be encoded as JPEG.
        budget: for its quality, which is lower where the network is slow; None: it was asked for, and is full.
        quality: of the JPEG, 1..100, where the budget allows it.

    Raises:
        BackendError: OpenCV cannot encode it.
    """
    jpeg = _encode(frame, budget or _FULL, quality)
    if budget is not None and budget.snapshot_quality > _QUICK.snapshot_quality:
        jpeg = jpeg if len(jpeg) <= reporter.quick_bytes else _encode(frame, _QUICK, quality)
    reporter.snapshot(jpeg, asked=budget is None)


def _encode(frame: Frame, budget: StreamBudget, quality: int) -> bytes:
    """Return the JPEG of a frame; one of a low budget is small, too."""
    from agent.compute.drawing import FrameEncoder

    if budget.snapshot_quality < _FULL.snapshot_quality:
        quality = min(quality, budget.snapshot_quality)
    width = _SMALL_WIDTH if budget.snapshot_quality < _SMALL_BELOW else frame.shape[1]
    return FrameEncoder(width, quality).encode(frame).jpeg
