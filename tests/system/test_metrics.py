"""A real Prometheus scrapes a real daemon, and every panel of the dashboard shows something."""

from __future__ import annotations

import base64
import json
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.doubles import person_model
from tests.support.mosquitto import HOST, Mosquitto, free_port
from tests.support.prometheus import Prometheus
from tests.support.publishing import TOPICS, wait_for
from tests.support.running import ROOT, Vedette, camera, health

DASHBOARD = json.loads((ROOT / "firmware_configs" / "grafana" / "vedette.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
INTERVALS = {"$__rate_interval": "5s", "$__range": "1m", "$device": ".*", "$stream": ".*"}
USER, PASSWORD = "grafana", "a secret"


def expressions() -> list[tuple[str, str]]:
    """Title of the panel and expression of each query, as Grafana sends it with all devices and streams."""
    found = []
    for panel in PANELS:
        for target in panel["targets"]:
            expression = target["expr"]
            for variable, value in INTERVALS.items():
                expression = expression.replace(variable, value)
            found.append((panel["title"], expression))
    return found


def get(port: int, login: str = "") -> str:
    """Return the metrics, scraped with this user and password; empty: without."""
    request = urllib.request.Request(f"http://{HOST}:{port}/metrics")
    if login:
        request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    with urllib.request.urlopen(request, timeout=60) as answer:
        text: str = answer.read().decode()
        return text


def metrics_table(port: int) -> dict[str, Any]:
    return {"listen": f"{HOST}:{port}"}


def test_every_panel_of_the_dashboard_shows_what_a_daemon_serves(tmp_path: Path, broker: Mosquitto) -> None:
    port = free_port()
    secret = tmp_path / "secret"
    secret.write_text(f"{PASSWORD}\n")
    secret.chmod(0o600)
    daemon = Vedette(tmp_path, broker, front=camera(person_model(tmp_path), clips={"max_s": 1.0, "after_s": 0.0}))
    daemon.config["metrics"] = {**metrics_table(port), "username": USER, "password_file": str(secret)}
    with daemon, Prometheus(tmp_path, port, username=USER, password=PASSWORD) as prometheus:
        wait_for(lambda: any(one > 0 for one in prometheus.query("vedette_clips_saved_total")))
        for variable in ("device", "stream"):
            metric = VARIABLES[variable]["query"]["query"].removeprefix("label_values(").partition("{")[0]
            (series,) = prometheus.result(metric.partition(",")[0])
            assert series["metric"][variable] in (TOPICS.device, "front")
        page = get(port, f"{USER}:{PASSWORD}")
        sensors = {"Temperature": "vedette_board_temperature_celsius", "Power": "vedette_board_power_watts"}
        without = [title for title, metric in sensors.items() if metric not in page]
        wait_for(lambda: [title for title, one in expressions() if not prometheus.result(one)] == without)
        (frames,) = prometheus.query("vedette_stream_frames_total")
        page = get(port, f"{USER}:{PASSWORD}")
        now = re.search(r"^vedette_stream_frames_total\{[^}]*\} (\S+)$", page, re.MULTILINE)
        assert now is not None
        assert 0 < frames <= float(now[1])
        with pytest.raises(urllib.error.HTTPError, match="401"):
            get(port)


def test_the_text_is_as_prometheus_own_checker_wants_it(tmp_path: Path, broker: Mosquitto) -> None:
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("promtool, of prometheus, is not installed")
    port = free_port()
    daemon = Vedette(tmp_path, broker, front=camera(person_model(tmp_path)))
    daemon.config["metrics"] = metrics_table(port)
    with daemon:
        daemon.wait_said("ready")
        done = subprocess.run(
            [promtool, "check", "metrics"], input=get(port).encode(), capture_output=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    """A port that another program listens on."""
    with socket.create_server((HOST, 0)) as other:
        yield other


def test_a_port_in_use_stops_nothing_and_is_told_once(
    tmp_path: Path, broker: Mosquitto, taken: socket.socket
) -> None:
    messages = broker.subscribe("vedette/#")
    port = taken.getsockname()[1]
    daemon = Vedette(tmp_path, broker, front=camera(person_model(tmp_path)))
    daemon.config["metrics"] = metrics_table(port)
    with daemon:
        messages.wait(lambda m: (found := health(m)) is not None and f"{HOST}:{port}" in found.metrics)
        messages.wait(lambda m: (found := health(m)) is not None and found.streams["front"].frames > 0)
        assert len(daemon.said("cannot listen")) == 1


def test_a_reload_moves_the_port(tmp_path: Path, broker: Mosquitto, taken: socket.socket) -> None:
    messages = broker.subscribe("vedette/#")
    first, second = free_port(), free_port()
    daemon = Vedette(tmp_path, broker, front=camera(person_model(tmp_path)))
    daemon.config["metrics"] = metrics_table(first)
    with daemon:
        daemon.wait_said("metrics: served at")
        daemon.config["metrics"] = metrics_table(second)
        daemon.reload()
        wait_for(lambda: daemon.said(f"served at http://{HOST}:{second}"))
        assert "vedette_stream_frames_total" in get(second)
        with pytest.raises(OSError):
            get(first)
        daemon.config["metrics"] = metrics_table(taken.getsockname()[1])
        daemon.reload()
        daemon.wait_said("cannot listen")
        messages.wait(lambda m: (found := health(m)) is not None and "cannot listen" in found.metrics)
        daemon.config["metrics"] = metrics_table(second)
        daemon.reload()
        wait_for(lambda: _answers(second))
        daemon.config["metrics"] = {"listen": f"0.0.0.0:{first}"}
        daemon.reload()
        assert "password_file" in daemon.wait_said("reload refused")
        assert "vedette_stream_frames_total" in get(second)
        del daemon.config["metrics"]
        daemon.reload()
        daemon.wait_said("[metrics] listen")
        wait_for(lambda: not _answers(second))


def _answers(port: int) -> bool:
    try:
        return bool(get(port))
    except OSError:
        return False
