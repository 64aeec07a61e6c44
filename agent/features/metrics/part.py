"""The metrics of a daemon, and traces of its stages on demand.

A trace has Chrome's Trace Event Format, which Perfetto reads as well: a JSON object whose `traceEvents` are
complete events (`ph` is `X`) with a time and a duration in µs, and metadata events that name process and threads.
Source: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU.
"""

from __future__ import annotations

import base64
import gzip
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from agent import __version__, spans
from agent.board.monitor import thread_names
from agent.config import Config
from agent.daemon.parts import Asked, DevicePart, Reply
from agent.errors import CommandError, NotInstalledError
from agent.spans import Span, SpanRecorder

if TYPE_CHECKING:
    from agent.comms.http import HttpEndpoint
    from agent.daemon.runtime import Runtime

log = logging.getLogger(__name__)
LARGEST = 256 * 1024
"""Most characters of a packed trace: brokers take so many, unless they name a lower limit."""
_BESIDE = 2048
"""Bytes of a message besides the trace: topic, properties and the other keys of the answer."""
_LEVEL = 6
Result = dict[str, Any]
Done = Callable[[Result | None, str], None]
"""Called with the keys of the answer, or with None and the reason."""


def trace_events(found: Sequence[Span], began_ns: int, names: Mapping[int, str], process: str) -> list[Result]:
    """Return trace events: names of the process and of the threads that have spans, then the spans by time.

    Args:
        found: in any order. Those that began earlier than the trace begin with it.
        began_ns: of the trace, CLOCK_MONOTONIC, ns.
        names: of threads by native id.
        process: its name.
    """
    pid = os.getpid()
    events = [_name("process_name", pid, pid, process)]
    threads = sorted({one.thread for one in found})
    events += [_name("thread_name", pid, thread, names.get(thread, f"thread {thread}")) for thread in threads]
    for one in sorted(found, key=lambda span: (span.began_ns, -span.ended_ns)):
        at_us, end_us = (max(0, ns - began_ns) // 1000 for ns in (one.began_ns, one.ended_ns))
        event = {"name": one.name, "ph": "X", "ts": at_us, "dur": end_us - at_us, "pid": pid, "tid": one.thread}
        events.append(event if one.number < 0 else {**event, "args": {"number": one.number}})
    return events


def _name(what: str, pid: int, tid: int, name: str) -> Result:
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}


def pack(recorder: SpanRecorder, names: Mapping[int, str], device: str, most: int) -> Result:
    """Return the keys of the answer. Of a trace that is too large for `most` characters, the first part is kept.

    The key `trace` is the file, compressed by gzip and written in base64; `spans` is their number in it,
    `dropped` that of those left out, and `covered_s` the time from the beginning to the end of the last one, s.
    """
    found = recorder.spans[:]
    while True:
        text = _packed(found, recorder, names, device)
        if len(text) <= most or not found:
            break
        found = found[: int(len(found) * most / len(text) * 0.95)]
    last_ns = max((one.ended_ns for one in found), default=recorder.began_ns)
    return {
        "trace": text,
        "spans": len(found),
        "dropped": recorder.dropped + len(recorder.spans) - len(found),
        "covered_s": round((last_ns - recorder.began_ns) / 1e9, 3),
    }


def _packed(found: Sequence[Span], recorder: SpanRecorder, names: Mapping[int, str], device: str) -> str:
    document = {
        "traceEvents": trace_events(found, recorder.began_ns, names, f"vedette {device}"),
        "displayTimeUnit": "ms",
        "otherData": {"device": device, "version": __version__},
    }
    return base64.b64encode(gzip.compress(msgspec.json.encode(document), _LEVEL, mtime=0)).decode()


class TraceRecording:
    """Records one trace at a time, in a thread of its own that waits and then packs."""

    def __init__(self, device: str) -> None:
        """Name the device in the traces."""
        self._device = device
        self._recording = threading.Lock()
        self._stopped, self._ended = threading.Event(), threading.Event()
        self._until_s = 0.0

    def start(self, seconds: float, max_packet: int, done: Done) -> None:
        """Record for some seconds; `done` is called at the end, from another thread.

        Args:
            seconds: length of the trace.
            max_packet: most bytes of a message that the broker takes; 0: it names no limit.
            done: not called after `stop`.

        Raises:
            CommandError: a trace is being recorded already.
        """
        if not self._recording.acquire(blocking=False):
            left_s = max(1.0, self._until_s - time.monotonic())
            raise CommandError(f"a trace is being recorded already, for {left_s:.0f} s more; ask again then")
        self._until_s = time.monotonic() + seconds
        self._ended.clear()
        most = min(LARGEST, max_packet - _BESIDE) if max_packet else LARGEST
        threading.Thread(target=self._run, args=(most, done), name="trace", daemon=True).start()

    def end(self) -> bool:
        """End a running trace: it is answered with what there is. Return False if none runs."""
        self._ended.set()
        return self._recording.locked()

    def stop(self) -> None:
        """End a running trace without an answer."""
        self._stopped.set()
        self._ended.set()

    def _run(self, most: int, done: Done) -> None:
        result: Result | None = None
        failed = ""
        try:
            recorder, names = self._record()
            result = pack(recorder, names, self._device, most)
        except Exception as error:
            log.exception("trace: internal error (please report)")
            failed = f"internal error: {type(error).__name__}: {error}"
        finally:
            self._recording.release()  # before the answer: whoever has it may ask for the next one
        if not self._stopped.is_set():
            done(result, failed)

    def _record(self) -> tuple[SpanRecorder, dict[int, str]]:
        recorder, names = SpanRecorder(), thread_names()
        spans.active = recorder
        try:
            while (left_s := self._until_s - time.monotonic()) > 0 and not self._ended.wait(min(1.0, left_s)):
                names.update(thread_names())  # those that end meanwhile keep their names
        finally:
            spans.active = None
        return recorder, {**names, **thread_names()}


class MetricsPart(DevicePart):
    """Serves metrics while they are configured, and records traces, with and without them."""

    def __init__(self, runtime: Runtime) -> None:
        """Serve nothing before `start`."""
        self._runtime, self._trace = runtime, TraceRecording(runtime.topics.device)
        self._endpoint: HttpEndpoint | None = None
        self._missing = ""

    @property
    def trouble(self) -> str:
        return self._missing or (self._endpoint.trouble if self._endpoint is not None else "")

    def start(self) -> None:
        self.configure(self._runtime.config)

    def configure(self, config: Config) -> None:
        """Serve as a configuration says that has been checked. A daemon runs without the client library, too."""
        before, self._missing = self._missing, ""
        if config.metrics is not None and self._endpoint is None:
            try:
                self._endpoint = self._open()
            except NotInstalledError as error:
                self._missing = str(error)
                if self._missing != before:
                    log.error("%s", self._missing)
                return
        if self._endpoint is not None:
            self._endpoint.configure(config.metrics)

    def _open(self) -> HttpEndpoint:
        from agent.comms.http import HttpEndpoint
        from agent.features.metrics.definitions import Exposition, read_all

        return HttpEndpoint("metrics", Exposition(partial(read_all, self._runtime)).respond)

    def poll(self) -> None:
        if self._endpoint is not None:
            self._endpoint.poll()

    def health(self) -> dict[str, Any]:
        return {"metrics": self.trouble}

    def close(self, seconds: float) -> None:
        """Stop serving, and end a running trace without an answer."""
        self._trace.stop()
        if self._endpoint is not None:
            self._endpoint.close()

    def trace(self, asked: Asked) -> Reply | None:
        """Begin a trace, which is answered at its end, or end the running one. Raises CommandError."""
        seconds = asked.command.seconds
        if not seconds:
            return "" if self._trace.end() else "no trace is being recorded", {}
        self._trace.start(seconds, self._runtime.mqtt.max_packet, asked.answer)
        log.info("command: trace for %g s", seconds)
        return None


def open_device_part(runtime: Runtime) -> MetricsPart:
    """Serve metrics as the configuration says."""
    return MetricsPart(runtime)


def trace(asked: Asked) -> Reply | None:
    """Record a trace, also by a daemon that serves no metrics."""
    assert asked.device is not None
    reply: Reply | None = asked.device.open_part("metrics").trace(asked)
    return reply
