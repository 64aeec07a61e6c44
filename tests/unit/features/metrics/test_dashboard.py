"""The dashboard for Grafana: by Grafana's own types, and by the metrics that there are."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from agent.features.metrics.definitions import METRICS
from tests.support.running import ROOT

TEXT = (ROOT / "firmware_configs" / "grafana" / "vedette.json").read_text(encoding="utf-8")
DASHBOARD = json.loads(TEXT)
PANELS = DASHBOARD["panels"]
TARGETS = [target for panel in PANELS for target in panel.get("targets", ())]
VARIABLES = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
SUFFIXES = ("", "_bucket", "_sum", "_count")
LABELS = {f"{one.name}{suffix}": {"device", "le", *one.labels} for one in METRICS for suffix in SUFFIXES}
OF_THE_PROCESS = {"process_cpu_seconds_total", "process_resident_memory_bytes"}


def lost(wanted: Any, kept: Any, path: str = "") -> list[str]:
    """Places of what is in the first value and not, or another, in the second."""
    if isinstance(wanted, dict) and isinstance(kept, dict):
        return [one for key in wanted for one in lost(wanted[key], kept.get(key), f"{path}/{key}")]
    if isinstance(wanted, list) and isinstance(kept, list) and len(wanted) == len(kept):
        pairs = enumerate(zip(wanted, kept, strict=True))
        return [one for number, (a, b) in pairs for one in lost(a, b, f"{path}/{number}")]
    return [] if wanted == kept else [path]


def as_grafana_reads(document: Any) -> Any:
    plugins.register_default_plugins()
    return json.loads(json.dumps(Dashboard.from_json(document), cls=JSONEncoder))


def test_every_key_is_one_of_grafana() -> None:
    assert lost(DASHBOARD, as_grafana_reads(DASHBOARD)) == []


def test_a_key_that_grafana_does_not_know_would_be_found() -> None:
    wrong = json.loads(TEXT)
    wrong["panels"][1]["titel"] = "x"
    wrong["templating"]["list"][0]["default"] = "x"
    assert lost(wrong, as_grafana_reads(wrong)) == ["/templating/list/0/default", "/panels/1/titel"]


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    ids = [panel["id"] for panel in PANELS]
    assert len(ids) == len(set(ids))
    cells: set[tuple[int, int]] = set()
    for panel in PANELS:
        at = panel["gridPos"]
        mine = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not mine & cells, panel["title"]
        cells |= mine


def test_it_has_a_row_for_each_question_and_variables_for_what_is_chosen() -> None:
    assert [one["title"] for one in PANELS if one["type"] == "row"] == [
        "Streams",
        "Latency",
        "Resources",
        "Delivery",
    ]
    assert {name: one["type"] for name, one in VARIABLES.items()} == {
        "datasource": "datasource",
        "device": "query",
        "stream": "query",
    }


def test_every_query_goes_to_the_chosen_data_source_and_device() -> None:
    for target in TARGETS:
        assert target["datasource"]["uid"] == "${datasource}"
        assert 'device=~"$device"' in target["expr"]
        used = set(re.findall(r"\$(\w+)", target["expr"]))
        assert used <= {*VARIABLES, "__rate_interval", "__range"}


@pytest.mark.parametrize("expression", sorted({target["expr"] for target in TARGETS}))
def test_a_query_names_metrics_and_labels_that_there_are(expression: str) -> None:
    names = set(re.findall(r"\b((?:vedette|process)_\w+)", expression))
    assert names <= LABELS.keys() | OF_THE_PROCESS
    known = {label for name in names for label in LABELS.get(name, ())}
    assert set(re.findall(r"(\w+)[=!]~?\"", expression)) <= known


@pytest.mark.parametrize("panel", [one for one in PANELS if one["type"] != "row"], ids=lambda one: one["title"])
def test_a_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    assert panel["targets"]
