"""What is wrong with `[page]` beside `[metrics]`."""

from __future__ import annotations

from pathlib import Path

from agent.config import Config, StreamConfig
from agent.config.servers import MetricsConfig, PageConfig
from agent.daemon.check_device import device_problems


def test_a_page_and_metrics_need_a_port_each(tmp_path: Path) -> None:
    secret, listen = tmp_path / "secret", MetricsConfig().listen
    secret.write_text("secret\n")
    streams = {"front": StreamConfig("test:", "nanodet")}
    page = PageConfig(listen=listen, username="me", password_file=str(secret))
    (problem,) = device_problems(Config(streams, metrics=MetricsConfig(), page=page))
    assert "[metrics] has this port" in str(problem)
    assert list(device_problems(Config(streams, page=page))) == []
    without_login = Config(streams, metrics=MetricsConfig(), page=PageConfig(listen=listen))
    assert len(list(device_problems(without_login))) == 2
