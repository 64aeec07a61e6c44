from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent import daemon as daemon_module
from agent.cli.run import run, set_up_logging
from agent.config import Config
from agent.errors import ConfigError

SMALLEST = '[streams.front]\nsource = "test:"\nmodel = "nanodet"\n'


class Told:
    """In the daemon's place: sends itself signals and keeps what it is asked."""

    asked: list[str]

    def __init__(self, config: Config, **options: object) -> None:
        Told.asked, self.options = [], options

    def request_stop(self) -> None:
        Told.asked.append("stop")

    def request_reload(self) -> None:
        Told.asked.append("reload")

    def run(self) -> None:
        reload = self.options["reload"]
        assert callable(reload)
        Told.asked.append(f"{reload().streams['front'].model} {self.options['exit_when_done']}")
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)


@pytest.fixture
def _signals() -> Iterator[None]:
    """Handlers as they were."""
    numbers = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("_signals")
def test_signals_become_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_module, "Daemon", Told)
    file = tmp_path / "vedette.toml"
    file.write_text(SMALLEST)
    result = CliRunner().invoke(run, ["-c", str(file), "--exit-when-done"], catch_exceptions=False)
    assert result.exit_code == 0
    assert Told.asked == ["nanodet True", "reload", "stop", "stop"]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone.toml: cannot read the configuration: No such file"):
        CliRunner().invoke(run, ["-c", str(tmp_path / "gone.toml")], catch_exceptions=False)


@pytest.mark.parametrize(("verbose", "level"), [(False, logging.INFO), (True, logging.DEBUG)])
def test_the_log_is_plain_lines(monkeypatch: pytest.MonkeyPatch, verbose: bool, level: int) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr(logging, "basicConfig", lambda **options: given.update(options))
    set_up_logging(verbose)
    assert given == {"level": level, "format": "%(levelname)s %(message)s"}
