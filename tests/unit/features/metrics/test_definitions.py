"""The metrics as text, read back by the client library's own parser."""

from __future__ import annotations

import re
from email.message import Message
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from agent.board.power import PowerReading
from agent.board.proc import Memory
from agent.board.processors import Ticks
from agent.comms.http import HttpRequest
from agent.comms.mqtt.link import LinkState
from agent.daemon.streams.counters import STAGES, StreamMetrics
from agent.errors import ConfigError
from agent.features.metrics.checks import check_installed
from agent.features.metrics.definitions import METRICS, DaemonReadings, Exposition, MetricDefinition
from agent.health import ClipsHealth
from agent.storage.spool.spool import SpoolStats
from agent.types import Event, StageTimes, StreamResult, Track
from tests.unit.comms.test_reporter import NOW

LINK = LinkState(True, "MQTT 5", "broker:1883", 2, "", 10, 9, 1)
SPOOL = SpoolStats(3, 4096, 5, "disk", {"bytes": 5})
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def stream(*labels: str) -> Any:
    metrics = StreamMetrics()
    metrics.add(StreamResult([], [], StageTimes(*[2_000_000] * 7)), 1)
    for label in labels:
        metrics.events.add(Event("new", Track("a", label, 0.5, 0.5, 1, NOW, NOW), "appeared"))
    return SimpleNamespace(
        status=("running", ""),
        metrics=metrics,
        captured=None,
        tracks=1,
        model=SimpleNamespace(manifest=SimpleNamespace(name="person")),
        answered_by=("cpu", "full"),
        reduced="",
        unmet="",
    )


def readings(**streams: Any) -> DaemonReadings:
    return DaemonReadings(
        device="porch",
        uptime_s=7.0,
        streams=streams,
        cpu_s=dict.fromkeys(streams, 1.5),
        spool=SPOOL,
        link=LINK,
        clips=ClipsHealth(1, 0, 0, 1, 5000, "", 6000),
        temperature_c=48.5,
        hot=False,
        unmet=False,
        cpu=Ticks(40.0, 30.0),
        memory=Memory(1024, 512),
        power=PowerReading(4.5, "pmic"),
    )


def samples(found: DaemonReadings, accept: str = "") -> dict[str, list[tuple[dict[str, str], float]]]:
    headers = Message()
    headers["Accept"] = accept
    page = Exposition(lambda: found).respond(HttpRequest("/metrics", headers))
    parse: Any = parse_openmetrics if "openmetrics" in page.content_type else text_string_to_metric_families
    by_name: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in parse(page.body.decode()):
        for sample in family.samples:
            by_name.setdefault(sample.name, []).append((sample.labels, sample.value))
    return by_name


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_what_is_read_is_what_a_parser_finds(accept: str) -> None:
    found = samples(readings(front=stream("person")), accept)
    (labels, value), *_ = found["vedette_stream_frames_total"]
    assert (labels, value) == ({"device": "porch", "stream": "front"}, 1.0)
    assert found["vedette_board_temperature_celsius"] == [({"device": "porch"}, 48.5)]
    assert {one["state"]: value for one, value in found["vedette_stream_state"]}["running"] == 1.0
    assert {one["reason"]: value for one, value in found["vedette_spool_dropped_total"]}["bytes"] == 5.0
    assert {one["mode"]: value for one, value in found["vedette_board_cpu_seconds_total"]} == {
        "busy": 10.0,
        "idle": 30.0,
    }
    assert found["vedette_board_power_watts"] == [({"device": "porch", "source": "pmic"}, 4.5)]
    assert {one["stage"] for one, _ in found["vedette_stream_stage_seconds_count"]} == set(STAGES) - {"publish"}
    assert "process_resident_memory_bytes" in found


@pytest.mark.parametrize("accept", ["application/openmetrics-text; version=zzz", "\x00", "a" * 10_000, ";;q=,"])
def test_a_header_that_nobody_understands_gets_the_text(accept: str) -> None:
    assert "vedette_stream_frames_total" in samples(readings(front=stream("person")), accept)


def test_the_buckets_of_a_histogram_grow_to_its_count() -> None:
    found = samples(readings(front=stream()))
    buckets = [
        (one["le"], value)
        for one, value in found["vedette_stream_stage_seconds_bucket"]
        if one["stage"] == "infer"
    ]
    assert [value for _, value in buckets] == sorted(value for _, value in buckets)
    assert buckets[-1] == ("+Inf", 1.0)
    assert dict(buckets)["0.001"] == 0.0
    assert dict(buckets)["0.0025"] == 1.0


def test_what_is_not_known_is_left_out() -> None:
    found = samples(replace(readings(), temperature_c=None, cpu=Ticks(), clips=None, memory=Memory()))
    missing = ("board_temperature_celsius", "board_cpu_seconds_total", "clips_saved_total", "board_memory_bytes")
    assert [name for name in missing if f"vedette_{name}" in found] == []


@given(st.lists(st.text(max_size=100), max_size=5))
def test_no_label_breaks_the_format(labels: list[str]) -> None:
    found = samples(readings(front=stream(*labels)))
    total = sum(value for _, value in found.get("vedette_stream_events_total", []))
    assert total == len(labels)


def test_a_label_that_is_no_unicode_is_shown_all_the_same() -> None:
    found = samples(readings(front=stream("\ud800 x", "a\nb")))
    assert len(found["vedette_stream_events_total"]) == 2


def test_the_number_of_series_is_bounded() -> None:
    many = stream(*(f"thing {number}" for number in range(1000)))
    found = samples(readings(front=many))
    assert len(found["vedette_stream_events_total"]) == 65
    assert sum(map(len, found.values())) < 400


@pytest.mark.parametrize("one", METRICS, ids=lambda one: one.name)
def test_names_follow_the_conventions(one: MetricDefinition) -> None:
    assert re.fullmatch(r"vedette(_[a-z0-9]+)+", one.name)
    assert one.name.endswith("_total") is (one.kind == "counter")
    assert not re.search(r"_(ms|mb|percent|us|ns)(_|$)", one.name)
    assert one.help.endswith(".")
    assert "\n" not in one.help
    assert "device" not in one.labels


def test_no_metric_is_defined_twice() -> None:
    names = [one.name for one in METRICS]
    assert len(names) == len(set(names))


def test_without_the_library_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "prometheus_client", None)
    with pytest.raises(ConfigError, match=r"pip install 'vedette\[metrics\]'"):
        check_installed()
