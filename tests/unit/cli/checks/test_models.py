"""Checks of the models: the chosen backend, and the reasons against others."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec.structs import replace

from agent.cli.checks.models import Tried, check_models, check_survey
from agent.cli.doctor import check_configuration
from agent.compute.infer import unprivileged
from agent.compute.infer.benchmark import Measurement, decide
from agent.compute.infer.delegates import DelegateProbe
from agent.compute.infer.session import BackendSpec
from agent.config import Config, SelectionConfig, StreamConfig
from agent.config.load import load
from agent.daemon.measurements import StoredMeasurement, StoredMeasurements, measurement_key
from agent.errors import ModelError, StorageError
from agent.models.library import open_model
from agent.text import local_time

ONE = Measurement("cpu", "CPU", 1, p50_ms=21.0, cpu_ms=20.9)
GPU = Measurement("gpu", "GPU", p50_ms=8.5, cpu_ms=1.0)
TPU = Measurement("edgetpu", "Edge TPU", refused="takes none of the model's 60 operations")
AWAY = Measurement("vx", "NPU", here=False, refused="no device")
FOUND = [
    DelegateProbe("gpu", "GPU", BackendSpec("gpu", "accelerator", "GPU")),
    DelegateProbe("edgetpu", "TPU", BackendSpec("edgetpu")),
]


def survey(*measured: Measurement, busy: float = 0.02) -> StoredMeasurement:
    now = measurement_key(open_model("small-speech", "3"), [], 1)
    return StoredMeasurement(1, now, measured, datetime(2026, 11, 20, 8, 30, tzinfo=UTC), busy)


def test_what_was_chosen_comes_first_and_each_other_has_its_reason() -> None:
    model, made = (
        open_model("small-speech", "3"),
        survey(ONE, replace(ONE, threads=2, p50_ms=12.0), GPU, TPU, AWAY),
    )
    verdict = decide(made.measured, FOUND, "latency")
    found = list(check_survey(model, made, verdict, FOUND))
    assert [(one.name, one.state) for one in found] == [
        ("small-speech", "ok"),
        ("  cpu, 1 thread", "ok"),
        ("  cpu, 2 threads", "ok"),
        ("  edgetpu", "ok"),
    ]
    assert found[0].value == (
        f"gpu, 8.50 ms and 1.00 ms of CPU time; measured {local_time(made.at)}, others used 2% of the processor"
    )
    assert found[1].value == "21.00 ms and 20.90 ms of CPU time"
    assert found[3].value == "takes none of the model's 60 operations"


def test_measured_on_a_busy_board_it_says_little() -> None:
    made = survey(ONE, busy=0.4)
    (one,) = check_survey(open_model("small-speech", "3"), made, decide(made.measured, [], "energy"), [])
    assert one.state == "warning"
    assert "while nothing else runs" in one.advice
    assert one.value.startswith("cpu, 1 thread, ")


@pytest.fixture(autouse=True)
def _state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))


def test_each_model_once_and_only_where_the_choice_is_left_to_us(tmp_path: Path) -> None:
    front = StreamConfig("test:", "nanodet", variant="256")
    off = replace(front, model="other", enabled=False)
    asked = replace(front, model="small-speech", backend="cpu")
    config = Config({"front": front, "back": front, "off": off, "asked": asked})
    (one,) = check_models(config, tmp_path, fresh=False)
    assert one.name == "nanodet"
    bundled = [one.name for one in check_models(None, tmp_path, fresh=False)]
    assert bundled == ["blood-cells", "face", "nanodet", "small-speech", "speech-embedding"]
    assert list(check_models(Config({"asked": asked}), tmp_path, fresh=False)) == []


def test_model_files_that_root_parses_are_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unprivileged, "parsed_as_root", "user nobody may not run /root/python")
    *_, last = check_models(
        Config({"front": StreamConfig("test:", "nanodet", variant="256")}), tmp_path, fresh=False
    )
    assert last.state == "warning"
    assert last.value.endswith("user nobody may not run /root/python")


def test_a_model_that_cannot_be_used_is_one_problem_of_the_whole_report(tmp_path: Path) -> None:
    file = tmp_path / "v.toml"
    file.write_text(f'[streams.front]\nsource = "test:"\nmodel = "{tmp_path}/gone.tflite"\n')
    file_findings = check_configuration(file, tmp_path, asked=True, tried=[Tried("a 1")])
    found = [*check_models(load(file).config, tmp_path, fresh=True), *file_findings]
    (problem,) = [one for one in found if one.state == "problem"]
    assert "no such file" in problem.value
    assert found[0].value == "cannot be used: see the section of the configuration"


def test_a_survey_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ModelError("the runtime crashed")

    monkeypatch.setattr(StoredMeasurements, "measure", fail)
    config = Config({"kitchen": StreamConfig("mic:", "small-speech")}, selection=SelectionConfig(candidates=()))
    (one,) = check_models(config, tmp_path, fresh=True)
    assert one.value == "the runtime crashed"


@pytest.fixture
def small() -> Config:
    """One model, of which only the CPU with one thread is measured."""
    kitchen = StreamConfig("mic:", "small-speech", variant="3")
    return Config({"kitchen": kitchen}, selection=SelectionConfig(candidates=(), threads_max=1))


def kept(state: Path, config: Config) -> Path:
    list(check_models(config, state, fresh=True))
    (file,) = (state / "verdicts").iterdir()
    return file


def replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Something else in place of a file."""

    def do(file: Path) -> None:
        file.unlink()
        make(file)

    return do


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda file: file.write_bytes(file.read_bytes().replace(b'"cpu"', b'"c\xff"')), "damaged: "),
        (lambda file: file.write_bytes(b'{"x":' + b"[" * 400_000 + b"]" * 400_000 + b"}"), "damaged: "),
        (replaced(os.mkfifo), "is a pipe where a file is expected"),
        (replaced(Path.mkdir), "is a folder where a file is expected"),
        (replaced(lambda file: file.symlink_to("/dev/zero")), "is a link where a file is expected"),
        (replaced(lambda file: file.symlink_to(file)), "is a link where a file is expected"),
    ],
    ids=["no-utf-8", "nested", "pipe", "folder", "device", "loop"],
)
def test_a_corrupt_verdict_is_a_warning_with_its_path(
    tmp_path: Path, small: Config, damage: Callable[[Path], object], told: str
) -> None:
    file = kept(tmp_path, small)
    damage(file)
    (one,) = check_models(small, tmp_path, fresh=False)
    assert (one.name, one.state) == ("small-speech", "warning")
    assert one.value.startswith(f"{file}: {told}")
    assert "--fresh" in one.advice


def test_what_cannot_be_kept_is_shown_all_the_same(tmp_path: Path, small: Config) -> None:
    (tmp_path / "verdicts").write_text("in the way")
    measured, warning = check_models(small, tmp_path, fresh=True)
    assert measured.value.startswith("cpu, 1 thread, ")
    assert warning.state == "warning"
    assert f"{tmp_path / 'verdicts'}: is a file" in warning.value


def test_a_verdict_that_only_the_daemon_may_read_is_no_fault(
    tmp_path: Path, small: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object) -> None:
        raise StorageError("x.json: cannot be read: Permission denied") from PermissionError()

    monkeypatch.setattr(StoredMeasurements, "load", denied)
    (one,) = check_models(small, tmp_path, fresh=False)
    assert (one.state, one.value.endswith("sudo vedette doctor may read it")) == ("ok", True)
