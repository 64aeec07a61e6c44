"""New models beside those in use: real models, one in the stream and one in a process of its own."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from agent.compute.hearing import AudioPerception
from agent.compute.infer.session import BackendSpec
from agent.compute.infer.worker import WorkerSession
from agent.config import Config, DecodeConfig, GateConfig, StorageConfig, StreamConfig
from agent.config.servers import MqttConfig
from agent.daemon.control import ConfigManager
from agent.daemon.health import HealthFile, HealthPublisher
from agent.daemon.overrides import OverridesFile
from agent.daemon.runtime import Runtime, stop_streams
from agent.features.shadow.part import Shadow, ShadowManager
from agent.health import DaemonHealth
from agent.models.library import open_model
from agent.storage.spool.spool import Spool
from agent.storage.state import SHADOW_FILE, ShadowOrder, write_shadow_order
from tests.support.doubles import person_model
from tests.support.publishing import wait_for
from tests.support.sound import chunks, quiet, tone_model, word

CROP = (0.25, 0.25, 0.5, 0.75)
ELSEWHERE = (0.6, 0.1, 0.9, 0.3)


class Board:
    """Runtime with one camera and a folder for shadow orders."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.order = folder, folder / "run" / SHADOW_FILE
        for name in ("models", "new", "run/vedette"):
            (folder / name).mkdir(parents=True)
        model = str(person_model(folder / "models"))
        config = StreamConfig("test:?size=64x48&fps=50", model, gate=GateConfig(motion=False))
        self._spool = Spool(folder, StorageConfig())
        self.runtime = Runtime(Config({"front": config}, mqtt=MqttConfig(port=1)), self._spool)
        self.runtime.prepare()
        self.front = self.runtime.streams["front"]
        self.front.start()
        wait_for(lambda: self.front.metrics.inferences >= 3)
        self.environment = {"RUNTIME_DIRECTORY": str(folder / "run/vedette")}
        self.shadows = ShadowManager(self.runtime, self.environment)

    def ask(self, every: int = 1, update: str = "12ab") -> None:
        """Have what lies in `new` run beside."""
        write_shadow_order(
            self.order, ShadowOrder(update, str(self.folder / "models"), str(self.folder / "new"), every)
        )
        self.shadows.poll()

    @property
    def compared(self) -> int:
        found = self.shadows.comparison("front")
        return found.compared if found is not None else -1

    def close(self) -> None:
        self.shadows.close()
        stop_streams(self.runtime.streams.values())
        self._spool.close()


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    made = Board(tmp_path)
    yield made
    made.close()


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> list[WorkerSession]:
    """Processes that were started for models."""
    started: list[WorkerSession] = []
    begin = WorkerSession.__init__

    def note(self: WorkerSession, *words: object, **more: object) -> None:
        begin(self, *words, **more)  # type: ignore[arg-type]  # as they come
        started.append(self)

    monkeypatch.setattr(WorkerSession, "__init__", note)
    return started


def ended(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(("box", "agreement"), [(CROP, 1.0), (ELSEWHERE, 0.0)])
def test_a_model_beside_another_is_compared_on_the_same_pictures(
    board: Board, tmp_path: Path, box: tuple[float, float, float, float], agreement: float
) -> None:
    person_model(tmp_path / "new", 0.8, box)
    board.ask()
    wait_for(lambda: board.compared >= 10)
    found = board.shadows.comparison("front")
    assert found is not None
    assert (found.agreement, found.failed) == (agreement, "")
    assert found.infer_p95_ms is not None
    assert found.present_p95_ms is not None
    assert board.front.status[0] == "running"


def test_it_is_told_to_programs_on_the_board(board: Board, tmp_path: Path) -> None:
    person_model(tmp_path / "new", 0.8)
    board.ask()
    wait_for(lambda: board.compared >= 1)
    control = ConfigManager(board.runtime.config, OverridesFile(tmp_path))
    control.attach(board.runtime)
    bulletin = HealthPublisher(board.runtime, control)
    board.runtime.parts._open = {"shadow": board.shadows}
    HealthFile(board.runtime, bulletin, board.environment).write_if_due(ready=True, is_due=True)
    told = msgspec.json.decode((tmp_path / "run/vedette/health.json").read_bytes(), type=DaemonHealth)
    assert told.shadow == "12ab"
    shadow = told.streams["front"].shadow
    assert shadow is not None
    assert shadow.agreement == 1.0


def test_only_every_so_many_th_picture_is_compared(board: Board, tmp_path: Path) -> None:
    person_model(tmp_path / "new", 0.8)
    board.ask(every=7)
    before = board.front.metrics.inferences
    wait_for(lambda: board.compared >= 5)
    assert board.front.metrics.inferences - before >= 7 * 4


def test_the_same_model_is_not_run_twice(board: Board, workers: list[WorkerSession]) -> None:
    for file in (board.folder / "models").iterdir():
        shutil.copy(file, board.folder / "new")
    board.ask()
    board.shadows.poll()
    assert board.shadows.update == "12ab"
    assert board.shadows.comparison("front") is None
    assert workers == []


@pytest.mark.parametrize("content", [b"", b"{", b'{"update": 1}', b"[" * 70000])
def test_an_order_that_cannot_be_read_is_none(board: Board, tmp_path: Path, content: bytes) -> None:
    person_model(tmp_path / "new", 0.8)
    board.order.parent.mkdir()
    board.order.write_bytes(content)
    board.shadows.poll()
    assert (board.shadows.update, board.shadows.comparison("front")) == ("", None)


def test_models_of_other_folders_are_left_alone(board: Board, tmp_path: Path) -> None:
    person_model(tmp_path / "new", 0.8)
    write_shadow_order(board.order, ShadowOrder("12ab", str(tmp_path / "others"), str(tmp_path / "new")))
    board.shadows.poll()
    assert board.shadows.comparison("front") is None


def test_when_the_order_is_taken_back_its_process_ends(
    board: Board, tmp_path: Path, workers: list[WorkerSession]
) -> None:
    person_model(tmp_path / "new", 0.8)
    board.ask()
    wait_for(lambda: board.compared >= 1)
    board.order.unlink(missing_ok=True)
    board.shadows.poll()
    assert (board.shadows.update, board.shadows.comparison("front"), board.front.parts.get("shadow")) == (
        "",
        None,
        None,
    )
    wait_for(lambda: ended(workers[0].pid))


def test_one_that_crashes_takes_nothing_along(board: Board, tmp_path: Path, workers: list[WorkerSession]) -> None:
    person_model(tmp_path / "new", 0.8)
    board.ask()
    wait_for(lambda: board.compared >= 1)
    os.kill(workers[0].pid, signal.SIGKILL)

    def failed() -> bool:
        found = board.shadows.comparison("front")
        return found is not None and bool(found.failed)

    wait_for(failed)
    found, before = board.shadows.comparison("front"), board.front.metrics.inferences
    assert found is not None
    assert "killed by SIGKILL" in found.failed
    wait_for(lambda: board.front.metrics.inferences > before + 5)
    assert board.front.status[0] == "running"


@pytest.mark.parametrize("broken", ["model", "decoder"])
def test_one_that_cannot_be_opened_says_so(
    board: Board, tmp_path: Path, broken: str, workers: list[WorkerSession]
) -> None:
    path = person_model(tmp_path / "new", 0.8)
    if broken == "model":
        path.with_suffix(".tflite").write_bytes(b"TFL3 is not all that it takes")
    else:
        path.write_text(path.read_text().replace('"ssd"', '"yolo"'))
    board.ask()

    def said() -> str:
        found = board.shadows.comparison("front")
        return found.failed if found is not None else ""

    wait_for(lambda: said() != "")
    assert said().startswith(f"{path}:")
    wait_for(lambda: all(ended(worker.pid) for worker in workers))
    assert len(workers) == (broken == "decoder")


def test_another_threshold_begins_anew(board: Board, tmp_path: Path) -> None:
    person_model(tmp_path / "new", 0.8)
    board.ask()
    wait_for(lambda: board.compared >= 20)
    board.front.adjust(replace(board.front.config, decode=DecodeConfig(score_threshold=0.85)))
    board.shadows.poll()
    wait_for(lambda: board.compared > 0)
    found = board.shadows.comparison("front")
    assert found is not None
    assert found.agreement == 0.0  # one says 0.9, the other 0.8


def test_without_a_folder_no_order_is_looked_for(board: Board, tmp_path: Path) -> None:
    person_model(tmp_path / "new", 0.8)
    shadows = ShadowManager(board.runtime, {})
    board.ask()
    shadows.poll()
    assert shadows.update == ""


@pytest.mark.parametrize(("sharpness", "least"), [(9.0, 0.95), (-9.0, 0.0)])
def test_a_model_of_sound_hears_all_that_the_other_hears(tmp_path: Path, sharpness: float, least: float) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    old, new = tone_model(tmp_path / "old"), tone_model(tmp_path / "new", sharpness=sharpness)
    config = StreamConfig("mic:default", str(old))
    ear = AudioPerception("kitchen", config, open_model(str(old)))
    shadow = Shadow("kitchen", config, open_model(str(new)), BackendSpec())
    shadow.start()
    story = np.concatenate((quiet(1), word("low"), quiet(1), word("high"), quiet(3), word("low"), quiet(3)))
    inferred = 0
    for chunk in chunks(story):
        seen = ear.process(chunk)
        inferred += bool(seen.detections)
        wait_for(lambda: not shadow._inputs.full())
        shadow.compare_audio(chunk, seen.detections, seen.stages.infer)
    assert inferred
    wait_for(lambda: shadow.report.compared >= 2)
    agreement = shadow.report.agreement
    assert agreement is not None
    assert (agreement >= least) if least else (agreement < 0.5)
    shadow.close()
    ear.close()
