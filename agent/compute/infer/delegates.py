"""What might run a model on some board, as a table: where to look for it, what it needs, how it is opened.

A row that is found is only a candidate: `agent.compute.infer.selection` opens it in a process of its own, checks
its answers and measures it. Nothing is loaded here.

Sources of names and options: each project's own documentation, given in its row.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from agent.compute.infer.structure import ModelFile

_EDGE_TPU = "edgetpu-custom-op"
_ETHOS_U = "ethos-u"
_VARIABLE = "VAR_HANDLE"
_VULKAN = ("usr/lib/*-linux-gnu*/libvulkan_*.so",)
"""Mesa's drivers, of which the loader takes the one that fits."""


class Row(Struct, frozen=True):
    """One way to run models.

    Attributes:
        name: what the config and the messages call it.
        title: for people.
        kind: see `Plan`.
        library: file name of the delegate's library; of an accelerator, LiteRT's name for it.
        needs: other files of which one must be there, each a name that the loader finds or a glob from `/`.
        devices: globs of device nodes of which one must be there; empty: none is asked for.
        settings: options of the delegate; `{library}` is the first of `needs` that was found. Of an accelerator
            `precision`: `f32`.
        parts: globs of other files that it is made of, such as the GPU's drivers.
        suits: `any`, or models compiled for it only: the custom operation that those have; or `int8`.
        hint: what to do when something is missing.
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
    Row(
        "gpu",
        "GPU by LiteRT (WebGPU over Vulkan), in float16 where it has that",
        "accelerator",
        "GPU",
        needs=("libvulkan.so.1",),
        parts=_VULKAN,
        hint="sudo apt-get install mesa-vulkan-drivers",
    ),
    Row(
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
    Row(
        "npu",
        "NPU by LiteRT (dispatch to the vendor's library)",
        "accelerator",
        "NPU",
        needs=("libLiteRtDispatch_Qualcomm.so", "libLiteRtDispatch_MediaTek.so"),
        devices=(*_FASTRPC, "dev/apusys*"),
        hint="install LiteRT's dispatch library of the vendor",
    ),
    # https://docs.qualcomm.com/doc/80-63442-10/topic/options.html; HTP from the SD888 on, DSP on SD855 and SD865
    Row(
        "qnn-htp",
        "Qualcomm NPU (Hexagon HTP) by QNN",
        "delegate",
        "libQnnTFLiteDelegate.so",
        needs=("libQnnHtp.so",),
        devices=_FASTRPC,
        settings={"backend_type": "htp", "library_path": "{library}"},
        hint=_QAIRT,
    ),
    Row(
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
    Row(
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
    Row(
        "edgetpu",
        "Coral Edge TPU",
        "delegate",
        "libedgetpu.so.1",
        devices=("dev/apex_*", "sys/bus/usb/devices/*/idVendor=1a6e", "sys/bus/usb/devices/*/idVendor=18d1"),
        suits=_EDGE_TPU,
        hint="plug it in, and install libedgetpu1-std; the model must have been compiled by edgetpu_compiler",
    ),
    # https://arm-software.github.io/armnn/latest/namespacetflite.html
    Row(
        "armnn",
        "Mali GPU by Arm NN",
        "delegate",
        "libarmnnDelegate.so",
        devices=("dev/mali*",),
        settings={"backends": "GpuAcc,CpuAcc"},
        hint="install Arm NN's delegate",
    ),
    # https://docs.mesa3d.org/teflon.html
    Row(
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
    Row(
        "vx",
        "VeriSilicon NPU by its delegate",
        "delegate",
        "libvx_delegate.so",
        devices=("dev/galcore",),
        hint="install the board vendor's tflite-vx-delegate",
    ),
    # https://github.com/nxp-imx/tflite-ethosu-delegate-imx
    Row(
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
    """Why this model is nothing for the row of that name; empty if it may be."""
    if any(op.name == _VARIABLE for _, op in file.steps()):
        return "the model remembers what it was given, and the CPU could not go on from there if this failed"
    suits = next((row.suits for row in ROWS if row.name == name), "any")
    if suits == "int8" and not any(t.dtype in ("int8", "uint8") for g in file.subgraphs for t in g.tensors):
        return "runs 8-bit models only, and this one is not"
    if suits == _EDGE_TPU and _EDGE_TPU not in file.custom:
        return "the model has not been compiled for it by edgetpu_compiler"
    return ""
