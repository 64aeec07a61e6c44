"""Processor time of threads, from files as the kernel writes them."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from agent.board.monitor import LoadMeter, thread_names, thread_seconds

STREAMS = {"a", "b", "front"}


def test_a_thread_may_have_any_name(tmp_path: Path) -> None:
    for number, name in ((7, "a) b (c"), (8, "x")):
        (tmp_path / str(number)).mkdir()
        fields = " ".join(["S", *map(str, range(4, 14)), "150", "50", "0"])
        (tmp_path / str(number) / "stat").write_text(f"{number} ({name}) {fields}\n")
    (tmp_path / "9").mkdir()  # has ended meanwhile
    assert thread_seconds(tmp_path) == {7: 2.0, 8: 2.0}
    with pytest.raises(OSError, match="nowhere"):
        thread_seconds(tmp_path / "nowhere")


def test_a_thread_that_works_is_seen_by_its_name() -> None:
    go_on = True

    def work() -> None:
        while go_on:
            sum(range(1000))

    one = threading.Thread(target=work, name="stream-front", daemon=True)
    before = thread_seconds()
    one.start()
    until = time.monotonic() + 60.0
    meter = LoadMeter()
    while meter.add(STREAMS, thread_seconds(), thread_names()).get("front", 0.0) < 0.05:
        assert time.monotonic() < until
        time.sleep(0.01)
    go_on = False
    one.join()
    assert one.native_id not in before


def test_the_total_never_falls_while_threads_come_and_go() -> None:
    meter = LoadMeter()
    assert meter.add(STREAMS, {1: 2.0, 2: 1.0, 3: 9.0}, {1: "stream-a", 2: "clips-a", 3: "mqtt"}) == {"a": 3.0}
    assert meter.add(STREAMS, {1: 2.5}, {1: "stream-a"}) == {"a": 3.5}
    # The number of the ended thread is given to a new one, also of another stream.
    assert meter.add(STREAMS, {1: 3.0, 2: 0.5}, {1: "stream-a", 2: "clips-a"}) == {"a": 4.5}
    assert meter.add(STREAMS, {1: 0.25, 2: 0.5}, {1: "stream-b", 2: "clips-a"}) == {"a": 4.5, "b": 0.25}
    assert meter.add({"b"}, {}, {}) == {"b": 0.25}
