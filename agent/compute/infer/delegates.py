"""Table of delegates and accelerators, and probes for them on this board.

A delegate that is found is only a candidate: `agent.compute.infer.benchmark` opens it in a worker process, checks
its answers and measures it. No library is loaded here, because it may end the process.

Sources of names and options: each project's own documentation, given in its row.
"""

from __future__ import annotations

import grp
import stat
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl

from msgspec import Struct

from agent.compute.infer.session import BackendSpec
from agent.compute.tflite.model import ModelFile
from agent.errors import BackendError

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
        """Return the full path of a library by its path or file name; empty if there is none."""
        if "/" in name:
            path = self._root / name.lstrip("/")
            return str(path) if path.exists() or path.is_symlink() else ""
        found = (str(path) for folder in _FOLDERS for path in sorted(self._root.glob(f"{folder}/{name}")))
        return next(found, "")


EXTERNAL = "external:"
_GPUS, _GPU_NODES = ("gpu", "gpu-f32"), ("dev/dri/renderD*", "dev/kgsl-3d0", "dev/mali*")
"""Rows without devices, because Vulkan also has drivers that compute on the CPU, and the nodes of real GPUs."""


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
    for pattern in dict.fromkeys((*patterns, *_GPU_NODES) if name in ("", *_GPUS) else patterns):
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
_GROUP = stat.S_IRGRP | stat.S_IWGRP


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
    if row.kind == "accelerator":
        plan = BackendSpec(row.name, row.kind, row.library, row.settings)
        return DelegateProbe(row.name, row.title, plan, _parts(row, root, helper))
    library = helper if helper.endswith(row.library) else libraries.path(row.library)
    if not library:
        return missing(f"no {row.library}")
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
