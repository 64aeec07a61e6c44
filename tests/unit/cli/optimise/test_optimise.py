"""`vedette optimise rewrite`: what it writes, and what it refuses."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

from agent.cli.main import vedette
from agent.cli.output import show_progress
from agent.compute.infer.litert import load_runtime
from agent.compute.tflite.read import read_modelfile
from agent.models.library import look_up
from agent.optimise.report import OptimiseReport
from tests.support.tflite_builder import Op, T, custom_model, write

if load_runtime()[0] != "litert":
    pytest.skip("rewrites need LiteRT's schema", allow_module_level=True)

from agent.optimise.graph.objects import Graph
from agent.optimise.graph.rewrite import REWRITES, rewrite_verified
from tests.support.graph_sketch import TYPES, Sketch

MANIFEST = """
file = "model.tflite"
[input]
mean = [0.0, 0.0, 0.0]
std = [1.0, 1.0, 1.0]
[output]
decoder = "classify"
labels = "labels.txt"
[golden]
files = ["golden.png"]
"""


def call(*args: object) -> Result:
    return CliRunner().invoke(vedette, ["optimise", "rewrite", *map(str, args)])


def said(done: Result) -> str:
    """Return what was printed, and the error whose text the program prints."""
    return f"{done.output}{done.exception or ''}"


@pytest.mark.parametrize(("given", "used"), [(None, "passive"), ("active", "active")])
def test_threads_that_wait_for_each_other_take_no_processor_time(
    monkeypatch: pytest.MonkeyPatch, given: str | None, used: str
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    assert call("--help").exit_code == 0
    assert os.environ["OMP_WAIT_POLICY"] == used


def unfused() -> bytes:
    """`classify` of two classes: a mean of the picture's channels, with a factor behind the weights."""
    made = Sketch()
    image = made.tensor((1, 4, 4, 3))
    flat = made.apply(
        "RESHAPE", (image, made.constant([1, 48], np.int32)), made.tensor((1, 48)), "ReshapeOptions"
    )
    weights = made.constant(np.random.default_rng(1).normal(size=(2, 48)))
    bias = made.constant([0.5, -0.5])
    found = made.apply("FULLY_CONNECTED", (flat, weights, bias), made.tensor((1, 2)), "FullyConnectedOptions")
    return made.file((image,), (made.same("MUL", (found, made.constant([2, 3])), "MulOptions"),))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model.tflite").write_bytes(unfused())
    (tmp_path / "model.toml").write_text(MANIFEST)
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    (tmp_path / "golden.png").write_bytes(b"a picture")
    return tmp_path / "model.tflite"


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def kinds(path: Path) -> list[str]:
    return [operation.name for _, operation in read_modelfile(path.read_bytes()).steps()]


@pytest.mark.usefixtures("worker_sessions")
def test_model_manifest_and_report_are_written(model: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    out = tmp_path / "new" / "fast.tflite"
    before = OptimiseReport("train", "net", sha256_after=sha256_of(model), learned=("0" * 12,))
    model.with_suffix(".report.json").write_bytes(msgspec.json.encode(before))
    done = call(model, out)
    assert done.exit_code == 0, done.output
    assert kinds(out) == ["RESHAPE", "FULLY_CONNECTED"]
    manifest = tomllib.loads(out.with_suffix(".toml").read_text())
    assert manifest["file"] == "fast.tflite"
    assert manifest["sha256"] == sha256_of(out)
    assert look_up(str(out)).manifest.output.labels == ("cat", "dog")
    assert (out.parent / "golden.png").read_bytes() == b"a picture"
    report: dict[str, Any] = json.loads(out.with_suffix(".report.json").read_text())
    first, last = report["steps"]
    assert (first["size"], last["size"]) == (model.stat().st_size, out.stat().st_size)
    assert last["notes"][0] == "batch-norm 1"
    assert last["notes"][1].startswith("answers differ by at most 0 last bits of quantised outputs")
    assert (report["sha256_after"], report["learned"]) == (sha256_of(out), ["0" * 12])


def test_json_is_the_report(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "fast.tflite"
    done = call(model, out, "--json")
    assert json.loads(done.stdout) == json.loads(out.with_suffix(".report.json").read_text())


def test_a_model_without_a_manifest_needs_none(model: Path, tmp_path: Path) -> None:
    model.with_suffix(".toml").unlink()
    out = tmp_path / "fast.tflite"
    assert call(model, out).exit_code == 0
    assert not out.with_suffix(".toml").exists()
    out.with_suffix(".toml").write_text("")
    assert call(model, out, "--force").exit_code == 1


def test_a_rewrite_that_is_left_out_is_not_done(model: Path, tmp_path: Path) -> None:
    done = call(model, tmp_path / "fast.tflite", "--skip", "batch-norm")
    assert (done.exit_code, "nothing to rewrite" in done.output) == (0, True)
    assert not (tmp_path / "fast.tflite").exists()


def test_files_are_replaced_by_force_only(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "fast.tflite"
    assert call(model, out).exit_code == 0
    again = call(model, out)
    assert (again.exit_code, "--force" in said(again)) == (1, True)
    assert call(model, out, "--force").exit_code == 0
    out.unlink()
    assert call(model, out).exit_code == 1  # its manifest is there


def test_rewrites_that_apply_to_a_quantised_model_are_done(tmp_path: Path) -> None:
    stored = {"kind": TYPES.INT8, "scale": 0.05}
    made = Sketch()
    image = made.tensor((1, 4))
    one = made.tensor((4,), TYPES.INT8, np.array([1, 2, 3, 4], np.int8), 0.05)
    found = made.apply("QUANTIZE", (image,), made.tensor((1, 4), **stored))
    found = made.apply("ADD", (found, one), made.tensor((1, 4), **stored), "AddOptions", version=2)
    content = made.file((image,), (made.apply("DEQUANTIZE", (found,), made.tensor((1, 4)), version=2),))
    (tmp_path / "model.tflite").write_bytes(content)
    out = tmp_path / "out.tflite"
    assert call(tmp_path / "model.tflite", out).exit_code == 0
    assert kinds(out) == ["ADD"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "no such file"),
        ("custom", "Mine"),
        ("open", "shape"),
        ("cut", "damaged"),
        ("text", "identifier"),
    ],
)
def test_a_model_that_cannot_be_rewritten_is_refused(name: str, reason: str, model: Path, tmp_path: Path) -> None:
    made = Sketch()
    image = made.tensor((1, 4))
    made.graph.tensors[image].shapeSignature = np.array([1, -1], np.int32)
    contents = {
        "custom": custom_model("Mine"),
        "open": made.file((image,), (made.same("RELU", (image,)),)),
        "cut": unfused()[:-200],
        "text": b"plain text, not a model",
    }
    path = tmp_path / f"{name}.tflite"
    if name in contents:
        path.write_bytes(contents[name])
    done = call(path, tmp_path / "out.tflite")
    assert done.exit_code == 1
    assert f"{name}.tflite" in said(done)
    assert reason in said(done)
    assert not (tmp_path / "out.tflite").exists()


@pytest.mark.parametrize("wrong", [["out.tfl"], ["out.tflite", "--skip", "fusion"]])
def test_wrong_usage_names_what_was_expected(wrong: list[str], model: Path) -> None:
    done = call(model, *wrong)
    assert done.exit_code == 2
    assert ("batch-norm" if "--skip" in wrong else ".tflite") in done.output


def test_a_folder_that_does_not_exist_is_told_before_the_work(model: Path, tmp_path: Path) -> None:
    done = call(model, tmp_path / "nowhere" / "out.tflite")
    assert (done.exit_code, "nowhere" in said(done)) == (1, True)


def test_a_full_disk_leaves_no_model(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    done = call(model, tmp_path / "out.tflite")
    assert done.exit_code == 1
    assert "No space left" in said(done)
    assert not (tmp_path / "out.tflite").exists()


def test_a_disk_that_fills_up_leaves_the_version_before(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.tflite"
    assert call(model, out).exit_code == 0
    files = [out.with_suffix(suffix) for suffix in (".tflite", ".toml", ".report.json")]
    out.with_suffix(".report.json").write_bytes(b"before")
    before = [path.read_bytes() for path in files]
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert call(model, out, "--force", "--skip", "points").exit_code == 1
    assert [path.read_bytes() for path in files] == before
    assert list(tmp_path.glob(".*.tmp")) == []


@pytest.mark.parametrize(
    "name", ["model.tflite", "./model.tflite", "link.tflite", "hard.tflite", "golden.tflite"]
)
def test_the_model_and_its_files_are_not_replaced_even_by_force(name: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "link.tflite").symlink_to("model.tflite")
    (tmp_path / "hard.tflite").hardlink_to(model)
    (tmp_path / "golden.toml").symlink_to("labels.txt")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = call(model, f"{tmp_path}/{name}", "--force")
    assert (done.exit_code, "which is read" in said(done)) == (1, True), said(done)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "agent.optimise.graph.rewrite.rewrite_verified", lambda *_args: pytest.fail("the work began")
    )
    done = call(model, "/proc/out.tflite")
    assert (done.exit_code, "/proc: cannot be used as a folder" in said(done)) == (1, True)


def test_a_rewrite_with_other_answers_is_named_and_nothing_is_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(graph: Graph) -> int:
        (product,) = [one for one in graph.operators if graph.kind(one) == 18] or [None]
        if product is not None:
            graph.remove(product, product.inputs[0])
            graph.replace_end(product.outputs[0], product.inputs[0])
        return int(product is not None)

    monkeypatch.setitem(REWRITES, "padding", wrong)
    done = call(model, tmp_path / "out.tflite", "--skip", "batch-norm")
    assert done.exit_code == 1
    assert "those that were done: padding" in said(done)
    assert not (tmp_path / "out.tflite").exists()


def test_progress_names_what_is_done(model: Path) -> None:
    told: list[str] = []
    found = rewrite_verified(model.read_bytes(), str(model), progress=told.append)
    assert found.counts["batch-norm"] == 1
    assert told[0] == "rewriting"
    assert len(told) == 3


def test_a_tensor_without_a_signature_is_compared_by_its_own_name(tmp_path: Path) -> None:
    factor = np.array([1, 1, 1, 1], np.float32)
    tensors = [T("x", (1, 4)), T("a", (4,), data=factor), T("b", (1, 4)), T("y", (1, 4))]
    content = write(tensors, [Op("MUL", (0, 1), (2,)), Op("LOGISTIC", (2,), (3,))], (0,), (3,))
    (tmp_path / "model.tflite").write_bytes(content)
    assert call(tmp_path / "model.tflite", tmp_path / "out.tflite").exit_code == 0
    assert kinds(tmp_path / "out.tflite") == ["LOGISTIC"]


def test_a_recipe_is_printed_that_can_be_read() -> None:
    from agent.optimise.recipe import Recipe, parse_recipe

    printed = CliRunner().invoke(vedette, ["optimise", "recipe", "quantise", "qat"])
    assert printed.exit_code == 0
    assert parse_recipe(printed.output, "printed").recipe == Recipe()
    assert "[prune]" not in printed.output
    wrong = CliRunner().invoke(vedette, ["optimise", "recipe", "quantize"])
    assert wrong.exit_code == 1
    assert "'quantise'" in said(wrong)


def test_a_report_is_printed(tmp_path: Path) -> None:
    file = tmp_path / "m.report.json"
    file.write_text('{"step": "rewrite", "model": "<b>"}')
    printed = CliRunner().invoke(vedette, ["optimise", "report", str(file)])
    assert printed.exit_code == 0
    assert r"\<b\>" in printed.output
    assert CliRunner().invoke(vedette, ["optimise", "report", str(tmp_path / "no.json")]).exit_code == 1


def test_a_log_gets_a_line_after_ten_seconds_of_silence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [1000.0]
    monkeypatch.setattr("agent.cli.output.time.monotonic", lambda: now[0])
    for seconds, text in (
        (0, ""),
        (9, "early"),
        (2, "training"),
        (5, "soon after"),
        (0, ""),
        (9, "told"),
        (2, "on"),
    ):
        now[0] += seconds
        show_progress(text)
    assert capsys.readouterr().err.splitlines() == ["training …", "on …"]


def test_the_time_left_is_told_where_a_share_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [1000.0]
    monkeypatch.setattr("agent.cli.output.time.monotonic", lambda: now[0])
    for seconds, text in (
        (0, ""),
        (20, "pruning 10%, loss 2.1"),
        (20, "pruning 20%, loss 1.8"),
        (20, "pass 1: 30 of 300"),
        (20, "pass 1: 31 of 300"),
        (20, "pass 1: 0 of 0"),
        (20, "measuring"),
        (0, ""),
    ):
        now[0] += seconds
        show_progress(text)
    assert capsys.readouterr().err.splitlines() == [
        "pruning 10%, loss 2.1 …",
        "pruning 20%, loss 1.8, 3 min left …",
        "pass 1: 30 of 300 …",
        "pass 1: 31 of 300, 90 min left …",
        "pass 1: 0 of 0 …",
        "measuring …",
    ]


def test_sound_has_no_features(tmp_path: Path) -> None:
    done = CliRunner().invoke(vedette, ["optimise", "features", "small-speech", str(tmp_path / "out.tflite")])
    assert str(done.exception) == "small-speech: takes sound: features are maps of pictures"


@pytest.mark.parametrize(
    "command",
    [
        ["quantise", "m.tflite", "o.tflite"],
        ["prune", "m.tflite", "o.tflite", "--module", "n.py:build"],
        ["depth", "m.tflite", "o.tflite"],
        ["tune", "m.tflite", "o.tflite"],
        ["anomaly", "m.tflite", "o.tflite"],
        ["train", "tiny", "o.tflite"],
        ["search", "r.toml", "--study", "s"],
    ],
    ids=lambda command: command[0],
)
def test_empty_data_are_refused(command: list[str]) -> None:
    done = CliRunner().invoke(vedette, ["optimise", *command, "--data", ""])
    assert done.exit_code == 2
    assert "'--data': is empty" in done.output


@pytest.mark.parametrize(
    ("study", "told"),
    [
        ("", "expected a folder"),
        ("postgresql://me:secret@host/studies", "PGPASSWORD"),
        ("postgresql://me@host/studies", "--files"),
    ],
)
def test_a_study_is_a_folder_or_a_database_without_a_password_in_its_address(study: str, told: str) -> None:
    pytest.importorskip("optuna", reason="a search needs the extra [optimise]")
    done = CliRunner().invoke(vedette, ["optimise", "search", "r.toml", "--study", study])
    assert (done.exit_code, told in done.output) == (2, True), done.output
    assert "secret" not in done.output
