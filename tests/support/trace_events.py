"""A strict reader of Chrome's Trace Event Format, as far as `vedette trace` uses it.

Source: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU: "JSON Object Format",
"Complete Events" and "Metadata Events".
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

METADATA = {"process_name", "thread_name"}


class Slice(NamedTuple):
    """A complete event, with the name of its thread."""

    thread: str
    name: str
    ts: int
    end: int
    args: dict[str, Any]


def read_trace(content: bytes) -> tuple[str, list[Slice]]:
    """Return the name of the process, and the slices in order. Fails for anything that the format does not have.

    The slices of a thread must be nested or apart: Perfetto leaves out one that overlaps the end of another.
    """
    document = json.loads(content)
    assert set(document) == {"traceEvents", "displayTimeUnit", "otherData"}
    assert document["displayTimeUnit"] in ("ms", "ns")
    assert isinstance(document["otherData"], dict)
    events = document["traceEvents"]
    names = {(one["pid"], one["tid"]): one for one in events if one["ph"] == "M" and one["name"] == "thread_name"}
    (process,) = [one["args"]["name"] for one in events if one["ph"] == "M" and one["name"] == "process_name"]
    slices = [_slice(one, names) for one in events if not _is_metadata(one)]
    _check_nesting(slices)
    return process, slices


def _is_metadata(event: dict[str, Any]) -> bool:
    if event["ph"] != "M":
        return False
    assert set(event) == {"name", "ph", "pid", "tid", "args"}
    assert event["name"] in METADATA
    assert isinstance(event["args"]["name"], str)
    return True


def _slice(event: dict[str, Any], names: dict[tuple[int, int], dict[str, Any]]) -> Slice:
    assert event["ph"] == "X"
    assert set(event) - {"args"} == {"name", "ph", "ts", "dur", "pid", "tid"}
    for key in ("ts", "dur", "pid", "tid"):
        assert isinstance(event[key], int)
        assert event[key] >= 0
    thread = names[event["pid"], event["tid"]]["args"]["name"]
    return Slice(thread, event["name"], event["ts"], event["ts"] + event["dur"], event.get("args", {}))


def _check_nesting(slices: list[Slice]) -> None:
    open_until: dict[str, list[int]] = {}
    before: dict[str, int] = {}
    for one in slices:
        assert one.ts >= before.get(one.thread, 0), "not in the order of time"
        before[one.thread] = one.ts
        stack = open_until.setdefault(one.thread, [])
        while stack and stack[-1] <= one.ts:
            stack.pop()
        assert not stack or one.end <= stack[-1], f"{one} overlaps the end of another"
        stack.append(one.end)
