from __future__ import annotations

import logging
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.board.process import block_until_ready
from agent.cli.run import run, set_up_logging
from agent.config import Config
from agent.daemon import daemon as daemon_module
from agent.errors import ConfigError
from tests.support.running import ROOT

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


@pytest.mark.usefixtures("_signals")
def test_a_reload_asked_for_while_modules_are_imported_is_made_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_module, "Daemon", Told)
    file = tmp_path / "vedette.toml"
    file.write_text(SMALLEST)
    block_until_ready()
    signal.raise_signal(signal.SIGHUP)
    CliRunner().invoke(run, ["-c", str(file)], catch_exceptions=False)
    assert Told.asked == ["reload", "nanodet False", "reload", "stop", "stop"]
    CliRunner().invoke(run, ["-c", str(file)], catch_exceptions=False)
    assert Told.asked == ["nanodet False", "reload", "stop", "stop"]


EARLY = """
import os, sys

class SignalsItself:
    def find_spec(self, name, path, target=None):
        if name == "{module}":
            os.kill(os.getpid(), {number})

sys.meta_path.insert(0, SignalsItself())
sys.argv = ["vedette", "run", "-c", "{file}"]
from agent.__main__ import main
main()
"""


@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGHUP, 1)], ids=str)
@pytest.mark.parametrize("module", ["click", "msgspec"])
def test_a_signal_while_the_program_is_imported_is_no_death(
    tmp_path: Path, module: str, how: signal.Signals, code: int
) -> None:
    """A reload goes on, to a file that is not there."""
    early = EARLY.format(module=module, number=int(how), file=tmp_path / "gone.toml")
    done = subprocess.run([sys.executable, "-c", early], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.count("\n") == code


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone.toml: cannot read the configuration: No such file"):
        CliRunner().invoke(run, ["-c", str(tmp_path / "gone.toml")], catch_exceptions=False)


@pytest.mark.parametrize(("verbose", "level"), [(False, logging.INFO), (True, logging.DEBUG)])
def test_the_log_is_printable_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verbose: bool, level: int
) -> None:
    monkeypatch.setattr(logging, "root", logging.RootLogger(logging.WARNING))
    set_up_logging(verbose)
    assert logging.root.level == level
    logging.root.warning("it says \x1b[2J\nERROR forged")
    line = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d WARNING it says \\x1b\[2J\\nERROR forged\n"
    assert re.fullmatch(line, capsys.readouterr().err)


LOGS = """
import os, sys
from agent.cli.run import set_up_logging
import logging
found = os.fstat(2)
if sys.argv[1] == "journal":
    os.environ["JOURNAL_STREAM"] = f"{found.st_dev}:{found.st_ino}"
elif sys.argv[1] == "redirected":
    os.environ["JOURNAL_STREAM"] = f"{found.st_dev}:{found.st_ino + 1}"
set_up_logging(False)
logging.info("up")
try:
    1 / 0
except ZeroDivisionError:
    logging.exception("down")
"""


@pytest.mark.parametrize("where", ["journal", "redirected", "terminal"])
def test_the_journal_is_told_the_level_and_everybody_else_the_time(where: str) -> None:
    done = subprocess.run([sys.executable, "-c", LOGS, where], cwd=ROOT, capture_output=True, text=True)
    first, *rest = done.stderr.splitlines()
    if where == "journal":
        assert first == "<6>INFO up"
        assert all(line.startswith("<3>") for line in rest), "each line is a record of its own there"
    else:
        assert re.fullmatch(r"[\d-]{10} [\d:]{8}[+-]\d\d:\d\d INFO up", first)
        assert rest[-1] == "  ZeroDivisionError: division by zero"
