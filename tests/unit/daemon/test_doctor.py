"""The doctor in a process of its own."""

from __future__ import annotations

import queue
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.daemon import doctor as module
from agent.daemon.doctor import LONGEST_S, DoctorProcess
from agent.errors import CommandError

Told = tuple[dict[str, Any] | None, str]


def told(checkup: DoctorProcess) -> Told:
    answers: queue.SimpleQueue[Told] = queue.SimpleQueue()
    checkup.start(lambda report, why: answers.put((report, why)))
    return answers.get(timeout=LONGEST_S)


def scripted(code: str, longest_s: float = 20.0) -> DoctorProcess:
    """One whose doctor is a script."""
    made = DoctorProcess(None, longest_s)
    made._command = [sys.executable, "-c", code]
    return made


def test_the_real_doctor_answers_with_its_report(tmp_path: Path) -> None:
    file = tmp_path / "vedette.toml"
    file.write_text('[streams.front]\nsource = "test:"\nmodel = "nobody"\n')
    report, why = told(DoctorProcess(file))
    assert why == ""
    assert report is not None
    assert report["healthy"] is False, "there is no such model"
    assert any("nobody" in finding["value"] for finding in report["findings"])


def test_modules_of_the_working_folder_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("agent/__init__.py", "msgspec.py", "json.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"open({str(tmp_path / 'was-run')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    told(DoctorProcess(None, 1.0))  # what it examines does not matter: its modules are imported by then
    assert not (tmp_path / "was-run").exists()


def test_one_that_hangs_is_ended_in_time() -> None:
    assert told(scripted("import time; time.sleep(600)", 0.5)) == (None, "vedette doctor did not finish in 0 s")


@pytest.mark.parametrize(
    "code", ["raise SystemExit(3)", "import os; os.abort()", "print('no JSON')", "print([1])"]
)
def test_one_that_crashes_is_told_with_its_code(code: str) -> None:
    report, why = told(scripted(code))
    assert report is None
    assert why.startswith("vedette doctor ended with exit status ")


def test_a_report_that_is_far_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LARGEST", 10)
    report, why = told(scripted('print(\'{"a": "bbbbbbbbbbbbb"}\')'))
    assert (report, "bytes of report" in why) == (None, True)


def test_there_is_one_at_a_time_and_it_ends_with_the_daemon() -> None:
    checkup, answers = scripted("import time; time.sleep(600)"), queue.SimpleQueue[Told]()
    checkup.start(lambda report, why: answers.put((report, why)))
    with pytest.raises(CommandError, match="running already"):
        checkup.start(lambda *_: None)
    while checkup._process is None:
        pass
    checkup.stop()
    assert answers.get(timeout=60)[0] is None
    assert checkup._thread is not None
    checkup._thread.join(60.0)
    checkup.stop()


def test_one_that_cannot_be_started_is_told() -> None:
    made = DoctorProcess(None)
    made._command = ["/nowhere/python"]
    assert "cannot be started" in told(made)[1]
