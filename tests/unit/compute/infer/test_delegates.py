from __future__ import annotations

from pathlib import Path

import pytest

from agent.compute.infer.delegates import ROWS, probe_delegates, unsuited
from agent.compute.tflite.read import read_modelfile
from agent.errors import BackendError
from tests.support import tflite_builder as build


def board(root: Path, *files: str) -> Path:
    """A file system with these."""
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def test_an_empty_board_has_none_and_says_what_to_do(tmp_path: Path) -> None:
    found = probe_delegates(root=tmp_path)
    assert [one.name for one in found] == [row.name for row in ROWS]
    assert all(one.plan is None and one.missing for one in found)
    assert "mesa-vulkan-drivers" in found[0].missing


def test_a_qualcomm_board(tmp_path: Path) -> None:
    board(tmp_path, "dev/fastrpc-cdsp", "usr/lib/libQnnTFLiteDelegate.so", "usr/lib/libQnnHtp.so")
    here = {one.name: one.plan for one in probe_delegates(root=tmp_path) if one.plan is not None}
    assert list(here) == ["qnn-htp"]
    plan = here["qnn-htp"]
    assert (plan.kind, plan.library) == ("delegate", str(tmp_path / "usr/lib/libQnnTFLiteDelegate.so"))
    assert plan.settings == {"backend_type": "htp", "library_path": str(tmp_path / "usr/lib/libQnnHtp.so")}


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("gpu", ["usr/lib/aarch64-linux-gnu/libvulkan.so.1"]),
        ("gpu-f32", ["usr/lib/aarch64-linux-gnu/libvulkan.so.1"]),
        ("edgetpu", ["dev/apex_0", "usr/lib/aarch64-linux-gnu/libedgetpu.so.1"]),
        ("teflon", ["dev/accel/accel0", "usr/lib/teflon/libteflon.so"]),
    ],
)
def test_each_row_is_found_where_it_is_and_not_without_its_device(
    tmp_path: Path, name: str, files: list[str]
) -> None:
    (found,) = probe_delegates([name], board(tmp_path / "with", *files))
    assert found.plan is not None, found.missing
    assert str(tmp_path / "with" / files[-1]) in found.parts
    (found,) = probe_delegates([name], board(tmp_path / "without", *files[:-1]))
    assert found.plan is None
    if len(files) > 1:
        (found,) = probe_delegates([name], board(tmp_path / "no-device", *files[1:]))
        assert "no device" in found.missing


def test_a_usb_device_is_known_by_its_vendor(tmp_path: Path) -> None:
    board(tmp_path, "usr/lib/libedgetpu.so.1")
    usb = tmp_path / "sys/bus/usb/devices/1-1"
    usb.mkdir(parents=True)
    (usb / "idVendor").write_text("1d6b\n")
    assert probe_delegates(["edgetpu"], tmp_path)[0].plan is None
    (usb / "idVendor").write_text("18d1\n")
    assert probe_delegates(["edgetpu"], tmp_path)[0].plan is not None


def test_an_external_delegate_by_its_path(tmp_path: Path) -> None:
    board(tmp_path, "opt/own.so")
    (found,) = probe_delegates(["external:/opt/own.so?cache=/tmp/x&level=2&flag="], tmp_path)
    assert found.plan is not None
    assert found.plan.settings == {"cache": "/tmp/x", "level": "2", "flag": ""}
    assert "no such file" in probe_delegates(["external:/opt/other.so"], tmp_path)[0].missing
    with pytest.raises(BackendError, match="no backend 'fpga'; known: edgetpu"):
        probe_delegates(["fpga"], tmp_path)
    with pytest.raises(BackendError, match="did you mean 'edgetpu'"):
        probe_delegates(["Coral"], tmp_path)


def test_models_that_are_nothing_for_a_row() -> None:
    floating, custom = read_modelfile(build.add_model()), read_modelfile(build.custom_model("edgetpu-custom-op"))
    assert "8-bit" in unsuited("teflon", floating)
    assert unsuited("teflon", read_modelfile(build.add_model(dtype="int8", scale=0.5))) == ""
    assert "edgetpu_compiler" in unsuited("edgetpu", floating)
    assert unsuited("edgetpu", custom) == ""
    assert unsuited("gpu", floating) == ""
