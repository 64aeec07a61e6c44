from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.compute.infer.delegates import ROWS, probe_delegates, unsuited
from agent.compute.tflite.read import read_modelfile
from agent.errors import BackendError
from tests.support import tflite_builder as build

OURS = struct.unpack("<H", Path("/proc/self/exe").read_bytes()[18:20])[0]


def board(root: Path, *files: str, machine: int = OURS) -> Path:
    """A file system with these; libraries are ELF files of a machine."""
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\x7fELF" + bytes(14) + struct.pack("<H", machine) + bytes(8))
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
        ("armnn", ["dev/mali0", "usr/local/lib/libarmnnDelegate.so"]),
        ("teflon", ["dev/accel/accel0", "usr/lib/teflon/libteflon.so"]),
        ("vx", ["dev/galcore", "usr/lib/libvx_delegate.so"]),
        ("ethosu", ["dev/ethosu0", "usr/lib/libethosu_delegate.so"]),
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


def test_a_library_of_another_machine_is_not_loaded(tmp_path: Path) -> None:
    board(tmp_path, "dev/galcore", "usr/lib/libvx_delegate.so", machine=40)
    (found,) = probe_delegates(["vx"], tmp_path)
    assert "built for another kind of processor" in found.missing
    (tmp_path / "usr/lib/libvx_delegate.so").write_text("!<arch>")
    assert "not a shared library" in probe_delegates(["vx"], tmp_path)[0].missing


def test_an_external_delegate_by_its_path(tmp_path: Path) -> None:
    board(tmp_path, "opt/own.so")
    (found,) = probe_delegates(["external:/opt/own.so?cache=/tmp/x&level=2&flag="], tmp_path)
    assert found.plan is not None
    assert found.plan.settings == {"cache": "/tmp/x", "level": "2", "flag": ""}
    assert "no such file" in probe_delegates(["external:/opt/other.so"], tmp_path)[0].missing
    with pytest.raises(BackendError, match="no backend 'fpga'; known: armnn"):
        probe_delegates(["fpga"], tmp_path)
    with pytest.raises(BackendError, match="did you mean 'edgetpu'"):
        probe_delegates(["Coral"], tmp_path)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (Path.mkdir, "not a shared library"),
        (os.mkfifo, "not a shared library"),
        (lambda path: path.symlink_to("/dev/zero"), "not a shared library"),
        (lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links"),
        (lambda path: path.symlink_to("nowhere"), "cannot be read: No such file or directory"),
        (lambda path: path.write_bytes(b""), "not a shared library"),
        (lambda path: None, "no such file"),
    ],
    ids=["folder", "pipe", "device", "loop", "dangling", "empty", "nothing"],
)
def test_what_is_no_library_is_told_by_what_it_is(
    tmp_path: Path, make: Callable[[Path], object], told: str
) -> None:
    make(tmp_path / "own.so")
    (found,) = probe_delegates(["external:/own.so"], tmp_path)
    assert found.missing == f"/own.so: {told}"


def test_a_library_of_another_machine_does_not_hide_ours(tmp_path: Path) -> None:
    board(tmp_path, "dev/galcore", "usr/lib/arm-linux-gnueabihf/libvx_delegate.so", machine=40)
    board(tmp_path, "usr/lib/x86_64-linux-gnu/libvx_delegate.so")
    (found,) = probe_delegates(["vx"], tmp_path)
    assert found.plan is not None
    assert found.plan.library == str(tmp_path / "usr/lib/x86_64-linux-gnu/libvx_delegate.so")


def test_models_that_are_nothing_for_a_row() -> None:
    floating, custom = read_modelfile(build.add_model()), read_modelfile(build.custom_model("edgetpu-custom-op"))
    assert "8-bit" in unsuited("teflon", floating)
    assert unsuited("teflon", read_modelfile(build.add_model(dtype="int8", scale=0.5))) == ""
    assert "edgetpu_compiler" in unsuited("edgetpu", floating)
    assert unsuited("edgetpu", custom) == ""
    assert unsuited("gpu", floating) == ""
