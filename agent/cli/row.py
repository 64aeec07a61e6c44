"""Format an event as a table row or a line, for `watch` and `demo`."""

from __future__ import annotations

from agent.comms.messages import EventMessage
from agent.text import TIME_WIDTH, local_time, plain

COLUMNS = ("time", "stream", "event", "what", "score", "where %", "zones", "infer", "total")
_WIDTHS = (TIME_WIDTH, 10, 19, 14, 5, 13, 10, 7, 7)
"""Column widths of a line, in characters."""
RIGHT = ("score", "infer", "total")
_NONE = "–"
"""Shown where no time was measured."""


def format_event(event: EventMessage) -> dict[str, str]:
    """Return the text of each column."""
    track, latency = event.track, event.latency_ms
    texts = (
        local_time(event.captured_at),
        event.stream,
        f"{event.kind} ({event.reason})",
        f"{track.label} {track.id.rsplit('-', 1)[-1]}",
        f"{track.score:.2f}",
        _where(event),
        ", ".join(track.zones),
        f"{latency.infer:.0f} ms" if latency.infer else _NONE,
        f"{latency.total:.0f} ms" if latency.has_frame else _NONE,
    )
    return dict(zip(COLUMNS, map(plain, texts), strict=True))


def _where(event: EventMessage) -> str:
    """Return the box in percent of the frame; empty for a keyword."""
    if event.kind == "keyword":
        return ""
    box = event.track.box
    return "everywhere" if box is None else " ".join(f"{edge * 100:.0f}" for edge in box)


def line(texts: dict[str, str]) -> str:
    """Return a row, or the header, as a line of text."""
    padded = [
        texts[name].rjust(width) if name in RIGHT else texts[name].ljust(width)
        for name, width in zip(COLUMNS, _WIDTHS, strict=True)
    ]
    return "  ".join(padded).rstrip()
