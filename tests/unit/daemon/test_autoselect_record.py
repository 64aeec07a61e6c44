"""Results of vetting are stored in the state folder: good models open and bad ones are refused at once."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from agent.compute.infer import vetting
from agent.compute.infer.session import SessionOptions
from agent.compute.infer.vetting import HOLDS_S, Outcome, Vetting, identity
from agent.compute.manifest import Model
from agent.daemon import autoselect
from agent.daemon.autoselect import VettingRecord
from agent.errors import ModelError
from agent.models.library import open_model


@pytest.fixture
def model() -> Model:
    return open_model("small-speech", "3")


@pytest.fixture(autouse=True)
def _nothing_is_known() -> Iterator[None]:
    vetting.KNOWN.clear()
    yield
    vetting.KNOWN.clear()


def file_of(state: Path) -> Path:
    (file,) = (state / "vetted").iterdir()
    return file


def rewrite(state: Path, **changes: Any) -> None:
    file = file_of(state)
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_what_ran_once_is_known_after_the_next_start(tmp_path: Path, model: Model) -> None:
    assert VettingRecord(tmp_path).read(model) is None
    Vetting(VettingRecord(tmp_path)).check(model, SessionOptions(threads=1))
    vetting.KNOWN.clear()  # as at the next start
    assert VettingRecord(tmp_path).read(model) == ""
    assert VettingRecord(tmp_path).read(model) == ""


def test_a_bad_one_is_refused_at_once_and_tried_again_the_next_day(tmp_path: Path, model: Model) -> None:
    VettingRecord(tmp_path).write(model, "crashed ago")
    with pytest.raises(ModelError, match=r"^small-speech: crashed ago$"):
        Vetting(VettingRecord(tmp_path)).check(model, SessionOptions())
    for at in (datetime.now(UTC) - timedelta(days=1.1), datetime.now(UTC) + timedelta(hours=1)):  # a wrong clock
        rewrite(tmp_path, at=at.isoformat())
        assert VettingRecord(tmp_path).read(model) is None


def test_a_refusal_is_forgotten_after_a_day_without_a_restart(tmp_path: Path, model: Model) -> None:
    now = time.monotonic()
    vetting.KNOWN[identity(model)] = Outcome("crashed ago", now)
    for record in (None, VettingRecord(tmp_path)):
        with pytest.raises(ModelError, match="crashed ago"):
            Vetting(record, clock=lambda: now + 0.9 * HOLDS_S).check(model, SessionOptions(threads=1))
    later = Vetting(VettingRecord(tmp_path), clock=lambda: now + 1.1 * HOLDS_S)
    assert later.check(model, SessionOptions(threads=1))
    assert vetting.KNOWN[identity(model)].reason == ""


def test_a_refusal_that_the_state_folder_holds_expires_there(tmp_path: Path, model: Model) -> None:
    VettingRecord(tmp_path).write(model, "crashed ago")
    vets = Vetting(VettingRecord(tmp_path))
    with pytest.raises(ModelError, match="crashed ago"):
        vets.check(model, SessionOptions(threads=1))
    rewrite(tmp_path, at=(datetime.now(UTC) - timedelta(days=1.1)).isoformat())
    assert vets.check(model, SessionOptions(threads=1))


def test_another_file_of_the_same_name_is_another_model(tmp_path: Path, model: Model) -> None:
    VettingRecord(tmp_path).write(model, "crashed ago")
    for other in (replace(model, sha256="0" * 64), open_model("small-speech", "4"), open_model("small-speech")):
        assert VettingRecord(tmp_path).read(other) is None
    assert VettingRecord(tmp_path).read(replace(model, path="elsewhere")) == "crashed ago"


def test_another_runtime_or_processor_is_another_outcome(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    VettingRecord(tmp_path).write(model, "")
    here = autoselect._environment()
    for place in range(len(here)):
        other = (*here[:place], "another", *here[place + 1 :])
        monkeypatch.setattr(autoselect, "_environment", lambda other=other: other)
        assert VettingRecord(tmp_path).read(model) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1}', '{"at": "2020-01-01T00:00:00"}'])
def test_a_damaged_outcome_is_said_once_and_tried_again(
    tmp_path: Path, model: Model, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    VettingRecord(tmp_path).write(model, "")
    file_of(tmp_path).write_text(content)
    kept = VettingRecord(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert (kept.read(model), kept.read(model)) == (None, None)
    assert [message.partition(": ")[0] for message in caplog.messages] == [str(file_of(tmp_path))] * bool(content)
    Vetting(kept).check(model, SessionOptions(threads=1))
    assert VettingRecord(tmp_path).read(model) == ""


def test_where_nothing_can_be_written_that_is_said_and_the_model_runs(
    tmp_path: Path, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "vetted").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert Vetting(VettingRecord(tmp_path)).check(model, SessionOptions(threads=1))
    (said,) = caplog.messages
    assert said.startswith(f"{tmp_path / 'vetted'}")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_an_outcome_that_another_user_wrote_is_not_believed(
    tmp_path: Path, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    VettingRecord(tmp_path).write(model, "crashed ago")
    os.chown(file_of(tmp_path), 65534, 65534)
    with caplog.at_level(logging.WARNING):
        assert VettingRecord(tmp_path).read(model) is None
    assert "belongs to user 65534" in caplog.text


def test_a_reason_is_short_and_can_be_printed(tmp_path: Path, model: Model) -> None:
    VettingRecord(tmp_path).write(model, "\x1b[2J" + "long " * 200)
    reason = VettingRecord(tmp_path).read(model)
    assert reason is not None
    assert len(reason) == 500
    assert reason.isprintable()
    rewrite(tmp_path, reason="x" * 501)
    assert VettingRecord(tmp_path).read(model) is None
