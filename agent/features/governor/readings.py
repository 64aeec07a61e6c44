"""Readings of the board and its streams once a second, what is wrong in them, and what is decided from them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from msgspec import Struct

from agent.config.governor import GovernorConfig
from agent.types import DiskLoad, LinkLoad, StreamBudget

RESERVE = 0.08
"""Share of all processors that stays idle when something comes back."""
COLD_C = 15.0
"""So far below its limit a board is cold, and everything may come back, °C."""
BLIND_S = 600.0
"""Time for which nothing comes back to a warm board whose temperature cannot be read any more, s."""
_FAR, _NEARLY = 0.7, 0.96
"""Shares of a promised rate: below the first it is far from kept; from the second on, for 10 s, it is kept."""
_PICTURE, _FEW = 0.5, 0.25
"""A window of two seconds has few pictures: so many per second may be missing, but no more than this share."""
_AHEAD_S, _NEAR_S = 90.0, 45.0
"""The load is reduced if the limit would be reached within this time, s: by a curve, and by the slope alone."""
_WARM_C = 6.0
"""Nearer to its limit than this, the slope of the temperature alone is reason enough to reduce the load, °C."""
_COMMIT_MS, _WAITING_S, _BEHIND_S = 400.0, 1.5, 2.0
"""The disk is too slow from these times on: of a commit, of a waiting event, of a picture of a clip."""
_MEMORY_FREE = 0.05
"""Memory is short below this free share."""
_UNSENT_BYTES, _OLDEST_S = 65_536, 2.0
"""The network is too slow from so many waiting bytes, or such an age of an unacknowledged event, on."""


class VariantCost(Struct, frozen=True, gc=False):
    """A size of a model, and its multiply-adds relative to the largest, 0..1."""

    name: str = ""
    cost: float = 1.0


class StreamReading(Struct, frozen=True):
    """One stream in the newest window.

    Attributes:
        priority: streams with a lower number give way first.
        min_fps: inferences per second that it is to have while its gate is open; 0: none are promised.
        max_latency_ms: from the capture of a picture to its result that it is to keep, ms; 0: none is promised.
        fps: pictures per second that its source gives when nothing disturbs it.
        fps_now: pictures per second that it has given in the window.
        open_share: share of them that the gate lets through, 0..1: the most of the last half minute.
        inferred_fps: inferences per second while the gate was open; None: it was closed for most of the window.
        inferred_lately: the same over the last ten windows; None: it was closed for most of them, or too few.
        fps_lately: pictures per second that its source has given in these.
        latency_ms: 95th percentile of capture to result; None: nothing was inferred.
        cost_ms: processor time of an inference of the largest variant when nothing disturbs it, ms.
        least_ms: shortest time in which the smallest variant can answer here, ms; 0: unknown.
        handled_fps: pictures per second that the stream has handled in the window, inferred or not.
        variants: that may be used, the largest first.
        has_samples, has_snapshots, has_clips: whether it publishes or encodes these; clips of copied packets
            cannot be reduced.
        has_decoding: whether less of its camera may be decoded: that is encoded, decoded as needed, gives others
            than key frames, and the stream is promised no rate; and so for all streams that share the camera.
        camera: what streams that share a camera have in common; empty: it is not shared.
    """

    priority: int = 50
    min_fps: float = 0.0
    max_latency_ms: float = 0.0
    fps: float = 0.0
    fps_now: float = 0.0
    open_share: float = 0.0
    inferred_fps: float | None = None
    inferred_lately: float | None = None
    fps_lately: float = 0.0
    latency_ms: float | None = None
    cost_ms: float = 0.0
    least_ms: float = 0.0
    handled_fps: float = 0.0
    variants: tuple[VariantCost, ...] = (VariantCost(),)
    has_samples: bool = False
    has_snapshots: bool = False
    has_clips: bool = False
    has_decoding: bool = False
    camera: str = ""


class BoardReading(Struct, frozen=True, gc=False):
    """The board in the newest window.

    Attributes:
        cores: processors that the daemon may use.
        idle: share of them that was idle, 0..1; with a quota no more than it leaves.
        others: share of them that other programs used, 0..1.
        celsius: temperature of the zone that is nearest to its limit, °C; None: unknown.
        limit_c: temperature that this zone is not to exceed, °C.
        settles_c: temperature that the present load leads to, °C; None: unknown.
        limit_in_s: time until `limit_c` is reached under the present load, s; None: never, or unknown.
        slowed: why the hardware reduces its clock now; empty: it does not, or that is unknown.
        memory_free: share of the memory that programs can still have, 0..1; None: unknown.
        battery_percent: charge of the battery that the board runs on, 0..100; None: it runs on none, or it is
            unknown.
        is_supply_known: False while warnings of the supply, which were known before, cannot be read.
        quota: processors that the daemon's control group may use; None: all of `cores`.
    """

    cores: int = 1
    idle: float = 1.0
    others: float = 0.0
    celsius: float | None = None
    limit_c: float = 80.0
    settles_c: float | None = None
    limit_in_s: float | None = None
    slowed: str = ""
    memory_free: float | None = None
    battery_percent: float | None = None
    quota: float | None = None
    is_supply_known: bool = True


class Readings(Struct, frozen=True):
    """Everything of one window.

    Attributes:
        now_s: CLOCK_MONOTONIC, s.
        board: see `BoardReading`.
        streams: that run, by name.
        disk, link: how busy storage and communication are.
        known: names of streams that do not run now and may come back, and of those that run.
    """

    now_s: float
    board: BoardReading
    streams: dict[str, StreamReading]
    disk: DiskLoad = DiskLoad()
    link: LinkLoad = LinkLoad()
    known: frozenset[str] = frozenset()


class Change(Struct, frozen=True):
    """A change of what a stream may use.

    Attributes:
        stream: its name; empty: the change is one of the event queue.
        now: what holds now.
        why: its reason.
        is_more: True if that is more than before, and not yet everything.
    """

    stream: str
    now: str
    why: str
    is_more: bool = False

    @property
    def what(self) -> str:
        """Text of what holds now, and whether that is more."""
        return f"{'more, now ' if self.is_more else ''}{self.now}"

    @property
    def text(self) -> str:
        """Text of what holds now, and why."""
        return f"{self.what}: {self.why}"


class Decision(Struct, frozen=True):
    """Budgets that hold from now on, and what has changed.

    Attributes:
        budgets: by stream.
        sync_every_s: time that an event may wait for others to be synced to the disk with it, s.
        changes: since the decision before.
        reduced: why a stream has less than everything, by stream.
        unmet: why a promise cannot be kept, by stream; empty name: the board.
        broken: which promise is not kept now, by stream, whatever can still give way for it; empty name: why the
            board is too hot, or its supply too weak.
        waiting: streams of `unmet` for which others give way as soon as decisions may change something again.
    """

    budgets: dict[str, StreamBudget]
    sync_every_s: float
    changes: tuple[Change, ...]
    reduced: dict[str, str]
    unmet: dict[str, str]
    broken: Mapping[str, str] = {}
    waiting: Collection[str] = ()


def needs_decision(readings: Readings, config: GovernorConfig) -> bool:
    """Return True if something may have to give way, now or when a warm board cannot be read any more."""
    board = readings.board
    is_warm = board.celsius is not None and board.celsius >= board.limit_c - COLD_C
    is_low = board.battery_percent is not None and board.battery_percent < config.save_below_percent
    is_short = memory_trouble(board) or disk_trouble(readings.disk) or link_trouble(readings.link)
    troubled = is_warm or is_low or is_short or heat_trouble(board)
    return config.enabled and bool(troubled or any(map(broken_promise, readings.streams.values())))


def broken_promise(stream: StreamReading) -> str:
    """Return which promise a stream's window breaks; empty: none."""
    if _lacks_rate(stream):
        most = f", of {stream.fps:.3g} that its camera gives" if stream.fps < stream.min_fps else ""
        rates = [rate for rate in (stream.inferred_fps, stream.inferred_lately) if rate is not None]
        return f"infers {min(rates):.1f} of {stream.min_fps:g} pictures per second{most}"
    if stream.latency_ms is not None and 0.0 < stream.max_latency_ms < stream.latency_ms:
        return f"takes {stream.latency_ms:.4g} of {stream.max_latency_ms:g} ms"
    return ""


def _lacks_rate(stream: StreamReading) -> bool:
    """Return True if the newest window clearly has too little, or a little too little as those before it."""
    if stream.inferred_fps is None or stream.inferred_fps >= _NEARLY * min(stream.min_fps, stream.fps_now):
        return False
    lately = stream.inferred_lately
    if lately is not None and lately < _NEARLY * min(stream.min_fps, stream.fps_lately):
        return True
    promised = min(stream.min_fps, 0.9 * stream.fps_now)
    return stream.inferred_fps < promised - min(_PICTURE, _FEW * promised)


def is_hopeless(stream: StreamReading) -> bool:
    """Return True if others can give a stream nothing: an inference alone takes longer than is promised."""
    return 0.0 < stream.max_latency_ms < stream.least_ms and not _lacks_rate(stream)


def is_far_below(stream: StreamReading) -> bool:
    """Return True if a stream gets much less than it is promised."""
    slow = stream.inferred_fps is not None and stream.inferred_fps < _FAR * min(stream.min_fps, stream.fps_now)
    if slow or stream.latency_ms is None or stream.max_latency_ms < stream.least_ms:
        return slow
    return 0.0 < stream.max_latency_ms < _FAR * stream.latency_ms


def heat_trouble(board: BoardReading) -> str:
    """Return why the load must be reduced to keep the board cool; empty: it need not."""
    if board.slowed:
        return board.slowed
    if board.celsius is None:
        return ""
    if board.celsius >= board.limit_c:
        return f"the board is at {board.celsius:.0f} °C"
    near = board.settles_c is None and board.celsius >= board.limit_c - _WARM_C
    if board.limit_in_s is not None and board.limit_in_s <= (_NEAR_S if near else _AHEAD_S):
        if board.settles_c is None and not near:
            return ""
        return f"the board would reach {board.limit_c:.0f} °C in {board.limit_in_s:.0f} s"
    return ""


def memory_trouble(board: BoardReading) -> str:
    """Return how memory is short; empty: it is not, or that is unknown."""
    if board.memory_free is None or board.memory_free >= _MEMORY_FREE:
        return ""
    return f"{board.memory_free:.0%} of the memory are free"


def disk_trouble(disk: DiskLoad) -> str:
    """Return how the disk is too slow; empty: it is not."""
    if disk.commit_ms is not None and disk.commit_ms > _COMMIT_MS:
        return f"the disk takes {disk.commit_ms:.0f} ms to store an event"
    if disk.waiting_s > _WAITING_S:
        return f"an event has been waiting for the disk for {disk.waiting_s:.1f} s"
    if disk.clips_behind_s > _BEHIND_S:
        return f"pictures of clips have been waiting for the disk for {disk.clips_behind_s:.1f} s"
    return ""


def link_trouble(link: LinkLoad) -> str:
    """Return how the connection to the broker is too slow; empty: it is not, or there is none."""
    if not link.connected:
        return ""
    if link.oldest_s > _OLDEST_S:
        return f"the broker has not acknowledged an event for {link.oldest_s:.1f} s"
    if link.unsent_bytes > _UNSENT_BYTES:
        return f"{link.unsent_bytes // 1024} kB are waiting to be sent"
    return ""
