from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent import __version__
from agent.__main__ import main
from agent.cli.main import vedette
from agent.errors import StreamError

ROOT = Path(__file__).parent.parent.parent.parent
VERBS = (
    "run",
    "demo",
    "watch",
    "config",
    "doctor",
    "devices",
    "models",
    "events",
    "bundle",
    "guide",
)


def call(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    """The exit code of the program."""
    monkeypatch.setattr(sys, "argv", ["vedette", *args])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_help_names_every_verb() -> None:
    shown = CliRunner().invoke(vedette, ["--help"])
    assert shown.exit_code == 0
    assert all(f"\n  {verb} " in shown.output for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str) -> None:
    shown = CliRunner().invoke(vedette, [verb, "--help"])
    assert shown.exit_code == 0
    assert shown.output.startswith(f"Usage: vedette {verb}")


def test_the_help_tells_of_sound_and_of_calibrating() -> None:
    shown = CliRunner().invoke(vedette, ["--help"]).output
    assert "on cameras and microphones" in " ".join(shown.split())
    assert "calibrate" in CliRunner().invoke(vedette, ["optimise", "--help"]).output


def test_the_version() -> None:
    assert CliRunner().invoke(vedette, ["--version"]).output == f"vedette, version {__version__}\n"


def test_an_unknown_verb_is_a_mistake_in_usage() -> None:
    shown = CliRunner().invoke(vedette, ["wacht"])
    assert shown.exit_code == 2
    assert "No such command 'wacht'" in shown.output


def test_an_error_is_one_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call(monkeypatch, "config", "show", str(tmp_path / "gone.toml")) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"vedette: {tmp_path}/gone.toml: cannot read the configuration: No such file or directory\n"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("models inspect bad.tflite", 1),
        ("bench gone.tflite", 1),
        ("config show bad.toml", 1),
        ("command porch reload --port 1", 1),
        ("command", 2),
    ],
)
def test_a_failure_prints_json_where_json_was_asked_for(line: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "bad.tflite").write_bytes(b"no model")
    (tmp_path / "bad.toml").write_text("[mqqt]\n")
    done = subprocess.run(
        [sys.executable, "-m", "agent", *line.split(), "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == code
    (key,) = json.loads(done.stdout)
    assert key == "error"
    assert json.loads(done.stdout)["error"].splitlines()[0] in done.stderr.decode()


@pytest.mark.parametrize("module", ["agent.text", "agent.cli.main", "click", "agent.cli.models", "msgspec"])
def test_an_interruption_while_a_module_is_imported_has_no_traceback(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT, module], cwd=ROOT, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (130, b"")


INTERRUPTED_IMPORT = """
import sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            raise KeyboardInterrupt

module = sys.argv[1]
sys.argv = ["vedette", "models", "list"]
sys.meta_path.insert(0, Finder())
from agent.__main__ import program
program()
"""


def test_success_is_exit_code_0(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "config", "schema") == 0
    assert json.loads(capsys.readouterr().out)


def piped(command: str) -> subprocess.CompletedProcess[bytes]:
    """A command line of bash in which `vedette` is the program."""
    line = f'set -o pipefail; vedette() {{ {sys.executable} -m agent "$@"; }}; {command}'
    return subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, timeout=60)


READER_LEAVES = (
    "--help",
    "--version",
    "models --help",
    "config schema",
    "models list",
    "models inspect nanodet",
    "events schema",
    "guide",
    "guide models",
    "devices",
    "doctor",
)


@pytest.mark.parametrize("verb", READER_LEAVES)
def test_a_reader_that_leaves_early_is_no_error(verb: str) -> None:
    done = piped(f"vedette {verb} | true")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("verb", ["models list", "models inspect nanodet", "devices", "--help"])
def test_a_terminal_without_unicode_gets_escapes(verb: str) -> None:
    done = piped(f"PYTHONIOENCODING=ascii vedette {verb}")
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert done.stdout


def test_a_full_disk_is_one_line() -> None:
    done = piped("vedette config schema > /dev/full")
    assert (done.returncode, done.stderr) == (1, b"vedette: output: No space left on device\n")


def test_an_interruption_has_the_code_that_shells_give_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(path: Path) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr("agent.daemon.check.problems", interrupt)
    shown = CliRunner().invoke(vedette, ["config", "check", "x.toml"])
    assert (shown.exit_code, shown.output) == (130, "")


class SlowTimer(threading.Timer):
    """A timer whose start takes longer than it runs, as on a busy machine."""

    def start(self) -> None:
        super().start()
        time.sleep(0.1)


def test_what_the_log_has_told_is_not_told_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(path: Path) -> list[str]:
        raise StreamError("every stream is over")

    monkeypatch.setattr("agent.daemon.check.problems", fail)
    assert call(monkeypatch, "config", "check", "x.toml") == 1
    assert capsys.readouterr().err == ""


def test_the_schema_of_the_messages() -> None:
    shown = CliRunner().invoke(vedette, ["events", "schema"])
    assert set(json.loads(shown.output)["$defs"]) >= {
        "EventMessage",
        "DetectionsMessage",
        "HealthMessage",
        "Track",
    }


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("verb", ["models list", "config check FILE", "config show FILE"])
def test_closed_output_changes_no_exit_code(verb: str, closed: str, tmp_path: Path) -> None:
    file = tmp_path / "v.toml"
    file.write_text('[streams.a]\nsource = "test:"\nmodel = "nanodet"\n')
    done = piped(f"vedette {verb.replace('FILE', str(file))} {closed}")
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)


def test_closed_output_hides_no_failure(tmp_path: Path) -> None:
    assert piped(f"vedette config check {tmp_path}/gone.toml >&- 2>&-").returncode == 1


UNDER_THREADS = """
import atexit, sys, threading
import cv2, numpy
import agent.cli.main

def work():
    while True:
        started.wait()
        cv2.GaussianBlur(picture, (31, 31), 0)

def vedette(prog_name):
    atexit.register(lambda: print("and flushed", end=""))
    threading.Thread(target=work, daemon=True).start()
    started.set()
    print("printed", end=" ")
    {end}

started, picture = threading.Event(), numpy.zeros((1000, 1000, 3), numpy.uint8)
agent.cli.main.vedette = vedette
from agent.__main__ import program
program()
"""


@pytest.mark.parametrize(
    ("end", "code", "told"),
    [("sys.exit()", 0, ""), ("sys.exit(3)", 3, ""), ("sys.exit('gone')", 1, "gone\n"), ("1 // 0", 1, None)],
)
def test_a_program_that_ends_while_a_thread_is_in_native_code_is_not_aborted(
    end: str, code: int, told: str | None
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNDER_THREADS.format(end=end)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (code, "printed and flushed")
    assert done.stderr == told or (told is None and done.stderr.endswith("division or modulo by zero\n"))


@pytest.mark.parametrize(
    ("line", "fact", "other"),
    [
        ("bundle inspect nope", "nope", "signed"),
        ("models inspect nope", "'nope'", "did you mean"),
        ("watch --prefix", "is empty", "+ and #"),
    ],
)
def test_an_error_says_only_what_concerns_it(tmp_path: Path, line: str, fact: str, other: str) -> None:
    words = [*line.split(), *([""] if line.endswith("prefix") else [])]
    done = subprocess.run(
        [sys.executable, "-m", "agent", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60,
    )
    shown = (done.stdout + done.stderr).decode()
    assert done.returncode
    assert fact in shown
    assert other not in shown
