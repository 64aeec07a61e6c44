"""A real Prometheus on a free loopback port, that scrapes one target every half second.

with Prometheus(tmp_path, target_port, username="grafana", password="secret") as prometheus:
    wait_for(lambda: prometheus.query("up") == [1.0])
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.mosquitto import HOST, free_port

_START_S = 60.0


class Prometheus:
    """A Prometheus process. Skips the test where it is absent."""

    def __init__(self, folder: Path, target: int, *, username: str = "", password: str = "") -> None:
        self.binary = shutil.which("prometheus") or ""
        if not self.binary:
            import pytest

            pytest.skip("prometheus is not installed")
        self.port, self._folder = free_port(), folder / "prometheus"
        self._folder.mkdir()
        job: dict[str, Any] = {
            "job_name": "vedette",
            "static_configs": [{"targets": [f"{HOST}:{target}"]}],
        }
        if username:
            job["basic_auth"] = {"username": username, "password": password}
        self._file = self._folder / "prometheus.yml"
        every = {"scrape_interval": "500ms", "scrape_timeout": "500ms"}
        self._file.write_text(json.dumps({"global": every, "scrape_configs": [job]}))  # JSON is YAML
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        command = [
            self.binary,
            f"--config.file={self._file}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address={HOST}:{self.port}",
        ]
        with (self._folder / "log").open("wb") as log:
            # One processor: others run beside it.
            environment = {**os.environ, "GOMAXPROCS": "1"}
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        until = time.monotonic() + _START_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"prometheus did not start: {(self._folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(60)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self.port}/-/ready", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def result(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an instant query. Fails with Prometheus' reason if it cannot be evaluated."""
        query = urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self.port}/api/v1/query?{query}", timeout=60) as answer:
                found = json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expression}: {error.read().decode()}") from None
        assert found["resultType"] == "vector"
        series: list[dict[str, Any]] = found["result"]
        return series

    def query(self, expression: str) -> list[float]:
        """Return the values of an instant query."""
        return [float(one["value"][1]) for one in self.result(expression)]
