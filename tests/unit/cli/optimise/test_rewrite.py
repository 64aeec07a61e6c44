"""`vedette optimise import`: what it writes, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

pytest.importorskip("torch", reason="importing modules needs the extra [optimise]")

from agent.cli.main import vedette
from agent.compute.tflite.read import read_modelfile
from agent.models.library import look_up
from agent.optimise.factory import load_factory, save_module

NET = """
from torch import nn

def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 2))

def broken():
    module = small()
    module[4].bias.data[1] = float("inf")
    return module

def talkative():
    print("building")
    return small()

def foreign():
    return nn.Sequential(nn.ConvTranspose2d(3, 3, 2))
"""
NORMALISED = ("--shape", "16x16x3", "--mean", "121", "--std", "64")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "cli_net.py").write_text(NET)
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    yield tmp_path
    sys.modules.pop("cli_net", None)


def call(folder: Path, *args: object, factory: str = "small") -> Result:
    source, out = f"{folder / 'cli_net.py'}:{factory}", folder / "net.tflite"
    return CliRunner().invoke(vedette, ["optimise", "import", source, str(out), *map(str, args)])


def said(done: Result) -> str:
    return f"{done.output}{done.exception or ''}"


def test_a_module_becomes_a_model_that_a_stream_can_use(folder: Path) -> None:
    done = call(folder, *NORMALISED, "--labels", folder / "labels.txt", "--json")
    assert done.exit_code == 0, said(done)
    report = json.loads(done.stdout)
    assert re.fullmatch(
        r"results differ from the module's by at most \de-0[5-9] of the largest", report["steps"][0]["notes"][-1]
    )
    assert report == json.loads((folder / "net.report.json").read_text())
    known = look_up(str(folder / "net.tflite"))
    assert known.manifest.output.decoder == "classify"
    assert known.manifest.output.labels == ("cat", "dog")
    assert known.manifest.input.mean == (121.0, 121.0, 121.0)
    assert known.manifest.input.std == (64.0, 64.0, 64.0)
    file = read_modelfile((folder / "net.tflite").read_bytes())
    assert [signature.name for signature in file.signatures] == ["serving_default"]


def test_the_report_has_what_the_weights_were_trained_on(folder: Path) -> None:
    module = load_factory(f"{folder / 'cli_net.py'}:small")
    (folder / "net.pt").write_bytes(save_module(module, "cli_net.py:small", {}, ("0" * 12,)))
    assert call(folder, *NORMALISED, "--weights", folder / "net.pt").exit_code == 0
    report = json.loads((folder / "net.report.json").read_text())
    sha256 = hashlib.sha256((folder / "net.tflite").read_bytes()).hexdigest()
    assert (report["sha256_after"], report["learned"]) == (sha256, ["0" * 12])


def test_a_mean_per_channel_becomes_one_for_all(folder: Path) -> None:
    done = call(folder, "--shape", "16x16x3", "--mean", "123.7,116.3,103.5", "--std", "58.4,57.1,57.4")
    assert done.exit_code == 0, said(done)
    manifest = tomllib.loads((folder / "net.toml").read_text())
    assert manifest["input"]["mean"] == [114.0] * 3
    assert manifest["input"]["std"] == pytest.approx([57.6333] * 3, abs=1e-3)


def test_without_a_normalisation_the_manifest_has_none(folder: Path) -> None:
    done = call(folder, "--shape", "16x16x3", "--order", "bgr")
    assert "set [input] mean and std" in done.output
    assert tomllib.loads((folder / "net.toml").read_text())["input"] == {"order": "bgr"}


def test_that_the_factory_gave_the_weights_is_told(folder: Path) -> None:
    import torch

    assert "the weights are those that the factory gives" in call(folder, *NORMALISED).stdout
    from agent.optimise.factory import load_factory

    torch.save(load_factory(f"{folder / 'cli_net.py'}:small").state_dict(), folder / "net.pt")
    done = call(folder, *NORMALISED, "--weights", folder / "net.pt", "--force")
    assert done.exit_code == 0, said(done)
    assert "the factory" not in done.output


def test_files_are_replaced_only_when_asked(folder: Path) -> None:
    assert call(folder, *NORMALISED).exit_code == 0
    assert "--force" in said(call(folder, *NORMALISED))
    assert call(folder, *NORMALISED, "--force").exit_code == 0


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--shape", "16x16"), "HEIGHTxWIDTHxCHANNELS"),
        (("--shape", "0x16x3"), "HEIGHTxWIDTHxCHANNELS"),
        (("--shape", "100000x16x3"), "at most 99999x99999x9999"),
        (("--shape", "16x16x3", "--mean", "1"), "give both"),
        (("--shape", "16x16x3", "--mean", "a", "--std", "2"), "expected one number, or 3"),
        (("--shape", "16x16x3", "--mean", "1,2", "--std", "2"), "expected one number, or 3"),
        (("--shape", "16x16x3", "--mean", "0.5", "--std", "0.25"), "by 255"),
        (("--shape", "16x16x3", "--mean", "0", "--std", "-3"), "greater than 0"),
        (("--shape", "16x16x3", "--mean", "128", "--std", "0"), "greater than 0"),
        (("--shape", "16x16x3", "--mean", "128", "--std", "nan"), "finite"),
        (("--shape", "16x16x3", "--mean", "inf", "--std", "2"), "finite"),
        (("--shape", "16x16x4", "--mean", "0", "--std", "2"), r"[1, 4, 16, 16]"),
        ((*NORMALISED, "--weights", "none.pt"), "no such file"),
        ((*NORMALISED, "--labels", "none.txt"), "no such file"),
    ],
)
def test_wrong_options_are_told_and_write_nothing(folder: Path, args: tuple[str, ...], told: str) -> None:
    done = call(folder, *args)
    assert done.exit_code != 0
    assert told in said(done)
    assert not (folder / "net.tflite").exists()


def test_labels_are_counted(folder: Path) -> None:
    (folder / "labels.txt").write_text("cat\n")
    assert "1 labels" in said(call(folder, *NORMALISED, "--labels", folder / "labels.txt"))


def test_an_operation_that_cannot_be_imported_is_named(folder: Path) -> None:
    pytest.importorskip("torch")
    told = said(call(folder, *NORMALISED, factory="foreign"))
    assert "conv_transpose2d" in told


def test_labels_and_weights_are_not_replaced_even_by_force(folder: Path) -> None:
    for name, option in (("net.toml", "--labels"), ("net.tflite", "--weights")):
        (folder / name).write_text("mine")
        done = call(folder, *NORMALISED, option, folder / name, "--force")
        assert (done.exit_code, "which is read" in said(done)) == (1, True)
        assert (folder / name).read_text() == "mine"


def test_a_class_that_is_there_twice_is_named(folder: Path) -> None:
    (folder / "labels.txt").write_text("cat\ndog\ncat\n")
    assert "labels.txt:3: 'cat'" in said(call(folder, *NORMALISED, "--labels", folder / "labels.txt"))


def test_weights_that_are_not_finite_are_named(folder: Path) -> None:
    done = call(folder, *NORMALISED, factory="broken")
    assert "4.bias" in said(done)
    assert not (folder / "net.tflite").exists()


def test_json_is_all_of_stdout(folder: Path) -> None:
    done = call(folder, *NORMALISED, "--json", factory="talkative")
    assert json.loads(done.stdout)["step"] == "import"
    assert "building" in done.stderr
