"""Table of delegates and accelerators, and probes for them on this board.

A delegate that is found is only a candidate: `agent.compute.infer.benchmark` opens it in a worker process, checks
its answers and measures it. No library is loaded here, because it may end the process.

Vulkan is asked for its devices in a child process, this module run as a program: a driver may crash the process
that loads it. Structures and numbers: https://registry.khronos.org/vulkan/specs/1.3-extensions/html/

Sources of names and options: each project's own documentation, given in its row.
"""

from __future__ import annotations

import ctypes
import grp
import os
import stat
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl

from msgspec import Struct

from agent.child import ChildError, ChildProcess, init_child, send
from agent.compute.infer.session import BackendSpec
from agent.compute.tflite.model import ModelFile
from agent.errors import BackendError, reason_of

_EDGE_TPU = "edgetpu-custom-op"
_VARIABLE = "VAR_HANDLE"
_VULKAN = ("usr/lib/*-linux-gnu*/libvulkan_*.so",)
"""Mesa's drivers; the loader takes the one that fits."""


class DelegateSpec(Struct, frozen=True):
    """A delegate or accelerator.

    Attributes:
        name: in the config and in messages.
        title: for people.
        kind: see `BackendSpec`.
        library: file name of the delegate's library; of an accelerator, LiteRT's name for it.
        needs: other files of which one must exist, each a name that the loader finds or a path from `/`.
        devices: globs of device nodes of which one must exist; empty: none is needed.
        settings: options of the delegate; `{library}` is the first of `needs` that was found. Of an accelerator:
            `precision`, `f32`.
        parts: globs of its other files, such as the GPU's drivers.
        suits: `any`, `int8`, or the custom operation of models that were compiled for it.
        hint: what to do if something is missing.
    """

    name: str
    title: str
    kind: Literal["delegate", "accelerator"]
    library: str
    needs: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    settings: dict[str, str] = {}
    parts: tuple[str, ...] = ()
    suits: str = "any"
    hint: str = ""


_QAIRT = "install Qualcomm's AI runtime (QAIRT) with its TFLite delegate"
_FASTRPC = ("dev/fastrpc-cdsp*", "dev/fastrpc-adsp*", "dev/adsprpc-smd*")
ROWS = (
    # https://ai.google.dev/edge/litert/next/gpu
    DelegateSpec(
        "gpu",
        "GPU by LiteRT (WebGPU over Vulkan), in float16 where it has that",
        "accelerator",
        "GPU",
        needs=("libvulkan.so.1",),
        parts=_VULKAN,
        hint="sudo apt-get install mesa-vulkan-drivers",
    ),
    DelegateSpec(
        "gpu-f32",
        "GPU by LiteRT, in float32",
        "accelerator",
        "GPU",
        needs=("libvulkan.so.1",),
        settings={"precision": "f32"},
        parts=_VULKAN,
        hint="sudo apt-get install mesa-vulkan-drivers",
    ),
    # https://ai.google.dev/edge/litert/next/npu
    DelegateSpec(
        "npu",
        "NPU by LiteRT (dispatch to the vendor's library)",
        "accelerator",
        "NPU",
        needs=("libLiteRtDispatch_Qualcomm.so", "libLiteRtDispatch_MediaTek.so"),
        devices=(*_FASTRPC, "dev/apusys*"),
        hint="install LiteRT's dispatch library of the vendor",
    ),
    # https://docs.qualcomm.com/doc/80-63442-10/topic/options.html; HTP from the SD888 on, DSP on SD855 and SD865
    DelegateSpec(
        "qnn-htp",
        "Qualcomm NPU (Hexagon HTP) by QNN",
        "delegate",
        "libQnnTFLiteDelegate.so",
        needs=("libQnnHtp.so",),
        devices=_FASTRPC,
        settings={"backend_type": "htp", "library_path": "{library}"},
        hint=_QAIRT,
    ),
    DelegateSpec(
        "qnn-dsp",
        "Qualcomm DSP (Hexagon v66) by QNN",
        "delegate",
        "libQnnTFLiteDelegate.so",
        needs=("libQnnDsp.so",),
        devices=_FASTRPC,
        settings={"backend_type": "dsp", "library_path": "{library}"},
        suits="int8",
        hint=_QAIRT,
    ),
    DelegateSpec(
        "qnn-gpu",
        "Adreno GPU by QNN",
        "delegate",
        "libQnnTFLiteDelegate.so",
        needs=("libQnnGpu.so",),
        devices=("dev/kgsl-3d0", "dev/dri/renderD*"),
        settings={"backend_type": "gpu", "library_path": "{library}"},
        hint=_QAIRT,
    ),
    # https://coral.ai/docs/edgetpu/tflite-python/; USB ids before and after its firmware is loaded
    DelegateSpec(
        "edgetpu",
        "Coral Edge TPU",
        "delegate",
        "libedgetpu.so.1",
        devices=("dev/apex_*", "sys/bus/usb/devices/*/idVendor=1a6e", "sys/bus/usb/devices/*/idVendor=18d1"),
        suits=_EDGE_TPU,
        hint="plug it in, and install libedgetpu1-std; the model must have been compiled by edgetpu_compiler",
    ),
    # https://arm-software.github.io/armnn/latest/namespacetflite.html
    DelegateSpec(
        "armnn",
        "Mali GPU by Arm NN",
        "delegate",
        "libarmnnDelegate.so",
        devices=("dev/mali*",),
        settings={"backends": "GpuAcc,CpuAcc"},
        hint="install Arm NN's delegate",
    ),
    # https://docs.mesa3d.org/teflon.html
    DelegateSpec(
        "teflon",
        "NPU by Mesa Teflon (VeriSilicon, Rockchip)",
        "delegate",
        "libteflon.so",
        needs=("usr/lib/teflon/libteflon.so", "libteflon.so"),
        devices=("dev/accel/accel*", "dev/dri/renderD*"),
        suits="int8",
        hint="sudo apt-get install mesa-teflon-delegate",
    ),
    # https://github.com/VeriSilicon/tflite-vx-delegate
    DelegateSpec(
        "vx",
        "VeriSilicon NPU by its delegate",
        "delegate",
        "libvx_delegate.so",
        devices=("dev/galcore",),
        hint="install the board vendor's tflite-vx-delegate",
    ),
    # https://github.com/nxp-imx/tflite-ethosu-delegate-imx
    DelegateSpec(
        "ethosu",
        "Arm Ethos-U NPU",
        "delegate",
        "libethosu_delegate.so",
        devices=("dev/ethosu*",),
        suits="int8",
        hint="install the board vendor's ethosu delegate",
    ),
)


def unsuited(name: str, file: ModelFile) -> str:
    """Return the reason why a delegate cannot run this model; empty if it may."""
    if any(op.name == _VARIABLE for _, op in file.steps()):
        return "the model is stateful, and the CPU could not continue its state after a failure"
    suits = next((row.suits for row in ROWS if row.name == name), "any")
    if suits == "int8" and not any(t.dtype in ("int8", "uint8") for g in file.subgraphs for t in g.tensors):
        return "runs 8-bit models only"
    if suits == _EDGE_TPU and _EDGE_TPU not in file.custom:
        return "the model was not compiled by edgetpu_compiler"
    return ""


_FOLDERS = ("usr/local/lib", "usr/lib/*-linux-gnu*", "usr/lib", "usr/lib64", "lib")


class Libraries:
    """Finds the shared libraries of the file system at `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, name: str) -> str:
        """Return the full path of a library by its path or file name; empty if there is none.

        Of several with that name it prefers one that can be loaded.
        """
        if "/" in name:
            path = self._root / name.lstrip("/")
            return str(path) if path.exists() or path.is_symlink() else ""
        found = [str(path) for folder in _FOLDERS for path in sorted(self._root.glob(f"{folder}/{name}"))]
        return next((path for path in found if not load_problem(Path(path))), next(iter(found), ""))


def load_problem(path: Path) -> str:
    """Return the reason why the loader cannot load a file on this machine; empty if it may."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "not a shared library"
        with path.open("rb") as file, Path("/proc/self/exe").open("rb") as program:
            theirs, ours = file.read(20), program.read(20)
    except OSError as error:
        return f"cannot be read: {reason_of(error)}"
    if theirs[:4] != b"\x7fELF" or len(theirs) < 20:
        return "not a shared library"
    return "" if theirs[18:20] == ours[18:20] else "built for another kind of processor"  # e_machine of elf(5)


EXTERNAL = "external:"
_GPUS, _RENDER = ("gpu", "gpu-f32"), "dev/dri/renderD*"
"""Rows without devices, because Vulkan finds them, and the nodes that Mesa's drivers open."""


class DelegateProbe(Struct, frozen=True):
    """A delegate on this board.

    Attributes:
        name, title: of the delegate.
        plan: how to open it; None: this board lacks it.
        parts: paths of its files; measurements expire when one changes.
        missing: what is missing, and what to do.
    """

    name: str
    title: str
    plan: BackendSpec | None = None
    parts: tuple[str, ...] = ()
    missing: str = ""


def probe_delegates(
    names: Sequence[str] = (), root: Path = Path("/"), *, besides: Sequence[str] = ()
) -> list[DelegateProbe]:
    """Probe every delegate, or those that are named, or `external:PATH?key=value`, in that order.

    Raises:
        BackendError: there is no such delegate. The error also names `besides`, which the caller accepts.
    """
    rows = {row.name: row for row in ROWS}
    libraries = Libraries(root)
    found = []
    for name in names or rows:
        if name.startswith(EXTERNAL):
            found.append(_probe_external(name, libraries))
        elif name in rows:
            found.append(_probe(rows[name], root, libraries))
        else:
            from agent.config.wording import nearest

            known = (*besides, *rows, f"{EXTERNAL}PATH?key=value")
            raise BackendError(f"no backend {name!r}{nearest(name, known)}")
    return found


def device_nodes(name: str = "", root: Path = Path("/")) -> list[Path]:
    """List the device nodes of one delegate on this board, or of all."""
    patterns = [pattern for row in ROWS if name in ("", row.name) for pattern in row.devices]
    found: list[Path] = []
    for pattern in dict.fromkeys((*patterns, _RENDER) if name in ("", *_GPUS) else patterns):
        glob, _, text = pattern.partition("=")
        paths = [path for path in sorted(root.glob(glob)) if not text or _begins(path, text)]
        found += paths if pattern.startswith("dev/") else map(partial(_usb_node, root), paths)
    return list(dict.fromkeys(path for path in found if path.is_char_device()))


def _usb_node(root: Path, attribute: Path) -> Path:
    """Return the node of the USB device that an attribute in sysfs belongs to."""
    try:
        bus, device = (int((attribute.parent / name).read_text()) for name in ("busnum", "devnum"))
    except (OSError, ValueError):
        return attribute
    return root / f"dev/bus/usb/{bus:03d}/{device:03d}"


_GROUPS = ("video", "audio", "render")
"""Groups of cameras, microphones and GPUs, as in the daemon's unit."""
_GROUP, _ANYBODY = stat.S_IRGRP | stat.S_IWGRP, stat.S_IROTH | stat.S_IWOTH


def device_groups(root: Path = Path("/")) -> list[int]:
    """List the groups that may use cameras, microphones, GPUs and accelerators here.

    These are the groups of the daemon's unit and those of the accelerators' device nodes: in a container the
    latter are the host's numbers, without names.
    """
    found = {group for node in device_nodes(root=root) if (group := _writers(node))}
    for name in _GROUPS:
        with suppress(KeyError):
            found.add(grp.getgrnam(name).gr_gid)
    return sorted(found)


def only_for_root(backend: str, root: Path = Path("/")) -> Path | None:
    """Return a device node of a backend that only root may open, whatever a user's groups; None: none."""
    for node in device_nodes(backend, root):
        with suppress(OSError):
            if not _writers(node) and node.stat().st_mode & _ANYBODY != _ANYBODY:
                return node
    return None


def _writers(node: Path) -> int:
    """Return the group that may read and write a device node; 0: only root's."""
    with suppress(OSError):
        status = node.stat()
        if status.st_mode & _GROUP == _GROUP:
            return status.st_gid
    return 0


def _probe(row: DelegateSpec, root: Path, libraries: Libraries) -> DelegateProbe:
    def missing(what: str) -> DelegateProbe:
        return DelegateProbe(row.name, row.title, missing=f"{what}: {row.hint}" if row.hint else what)

    if row.devices and not any(_exists(pattern, root) for pattern in row.devices):
        return missing(f"no device ({', '.join('/' + pattern for pattern in row.devices)})")
    helper = next((path for path in map(libraries.path, row.needs) if path), "")
    if row.needs and not helper:
        return missing(f"no {' or '.join(row.needs)}")
    if helper and (why := load_problem(Path(helper))):
        return missing(f"{helper}: {why}")
    if row.kind == "accelerator":
        plan = BackendSpec(row.name, row.kind, row.library, row.settings)
        return DelegateProbe(row.name, row.title, plan, _parts(row, root, helper))
    library = helper if helper.endswith(row.library) else libraries.path(row.library)
    if not library:
        return missing(f"no {row.library}")
    if why := load_problem(Path(library)):
        return missing(f"{library}: {why}")
    settings = {key: value.format(library=helper) for key, value in row.settings.items()}
    return DelegateProbe(
        row.name,
        row.title,
        BackendSpec(row.name, row.kind, library, settings),
        _parts(row, root, helper, library),
    )


def _probe_external(name: str, libraries: Libraries) -> DelegateProbe:
    path, _, query = name.removeprefix(EXTERNAL).partition("?")
    title = f"external delegate {path}"
    library = libraries.path(path)
    if not library:
        return DelegateProbe(name, title, missing=f"{path}: no such file")
    if why := load_problem(Path(library)):
        return DelegateProbe(name, title, missing=f"{path}: {why}")
    plan = BackendSpec(name, "delegate", library, dict(parse_qsl(query, keep_blank_values=True)))
    return DelegateProbe(name, title, plan, (library,))


def _parts(row: DelegateSpec, root: Path, *libraries: str) -> tuple[str, ...]:
    more = (str(path) for pattern in row.parts for path in sorted(root.glob(pattern)))
    return tuple(dict.fromkeys(path for path in (*libraries, *more) if path))


def _exists(pattern: str, root: Path) -> bool:
    """Return True if a glob matches, or with `FILE=text` a file that begins so."""
    pattern, _, text = pattern.partition("=")
    return any(not text or _begins(path, text) for path in root.glob(pattern))


def _begins(path: Path, text: str) -> bool:
    try:
        return path.read_text(errors="replace").startswith(text)
    except OSError:
        return False


_VULKAN_S = 20.0
_VULKAN_CPU = 4
"""VK_PHYSICAL_DEVICE_TYPE_CPU."""
_PROPERTIES_BYTES, _TYPE_AT, _NAME_AT, _NAME_BYTES = 4096, 16, 20, 256
"""VkPhysicalDeviceProperties has 824 bytes on a 64-bit system; where the device's type and name begin in it."""


def software_driver() -> str:
    """Return the name of the software driver if Vulkan has no other; empty if it has a GPU, or no driver.

    Such a driver, Mesa's llvmpipe, computes on the CPU. Takes 0.2 to 0.5 s.
    """
    try:
        process = ChildProcess("agent.compute.infer.delegates")
    except OSError:
        return ""
    try:
        return process.ask(within_s=_VULKAN_S, what="Vulkan").decode(errors="replace")
    except ChildError:
        return ""
    finally:
        process.end()


def main(_: int, answers_to: int, life: int) -> None:
    """Send the name of the software driver, see `ChildProcess`."""
    init_child(life)
    found = _vulkan_devices()
    is_software = found and all(kind == _VULKAN_CPU for kind, _ in found)
    send(answers_to, found[0][1].encode() if is_software else b"")
    os._exit(0)


class _InstanceCreateInfo(ctypes.Structure):
    _fields_ = (
        ("sType", ctypes.c_int32),
        ("pNext", ctypes.c_void_p),
        ("flags", ctypes.c_uint32),
        ("pApplicationInfo", ctypes.c_void_p),
        ("enabledLayerCount", ctypes.c_uint32),
        ("ppEnabledLayerNames", ctypes.c_void_p),
        ("enabledExtensionCount", ctypes.c_uint32),
        ("ppEnabledExtensionNames", ctypes.c_void_p),
    )


def _vulkan_devices() -> list[tuple[int, str]]:
    """Return type and name of each Vulkan device, with its drivers loaded. Raises OSError if there is none."""
    library = ctypes.CDLL("libvulkan.so.1")
    instance, count = ctypes.c_void_p(), ctypes.c_uint32()
    asked = _InstanceCreateInfo(sType=1)  # VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO
    if library.vkCreateInstance(ctypes.byref(asked), None, ctypes.byref(instance)):
        raise OSError("Vulkan has no driver that can be used")
    library.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None)
    handles = (ctypes.c_void_p * count.value)()
    library.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), handles)
    return [_described(library, handle) for handle in handles[: count.value]]


def _described(library: ctypes.CDLL, handle: int | None) -> tuple[int, str]:
    found = ctypes.create_string_buffer(_PROPERTIES_BYTES)
    library.vkGetPhysicalDeviceProperties(ctypes.c_void_p(handle), found)
    kind = int.from_bytes(found.raw[_TYPE_AT : _TYPE_AT + 4], sys.byteorder)
    name = found.raw[_NAME_AT : _NAME_AT + _NAME_BYTES].split(b"\0")[0]
    return kind, name.decode(errors="replace")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
