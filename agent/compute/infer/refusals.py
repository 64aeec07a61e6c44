"""What a runtime would refuse about a model, or get wrong unnoticed, and why; and what is no model at all."""

from __future__ import annotations

from typing import Literal

from agent.compute.infer.structure import ModelFile, TensorInfo

Runtime = Literal["litert", "tflite-runtime"]
"""As in `agent.compute.infer.litert`."""

_IDENTIFIER = b"TFL3"

_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git-LFS pointer, not the model: run `git lfs pull` where it came from"),
    (b"<", "a web page, not the model: download the raw file"),
    (b"{", "JSON, not a TFLite model"),
    (b"PK\x03\x04", "a zip archive: unpack the `.tflite` file from it"),
    (b"\x1f\x8b", "gzip-compressed: unpack it"),
    (b"\x89HDF", "a Keras HDF5 file: convert it to TFLite"),
)
"""How files begin that are often taken for models, and what they are."""


def diagnose(content: bytes) -> str | None:
    """What a file is that cannot be a TFLite model, in plain words; None when it may be one."""
    if not content:
        return "the model file is empty"
    if content[4:8] == _IDENTIFIER:
        return None
    start = content[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    for prefix, what in _FOREIGN:
        if start.startswith(prefix):
            return f"the model file is {what}"
    return f"the model file is no TFLite model: expected identifier TFL3 at byte 4, found {content[4:8]!r}"


_KNOWN: dict[Runtime, frozenset[str]] = {
    "tflite-runtime": frozenset({"TFLite_Detection_PostProcess", "Mfcc", "AudioSpectrogram", "NumericVerify"})
}
_KNOWN["litert"] = _KNOWN["tflite-runtime"] | {
    "Convolution2DTransposeBias",
    "MaxPoolingWithArgmax2D",
    "MaxUnpooling2D",
}
"""Custom operations that a runtime brings along: the resolver of TensorFlow's lite/core/kernels/register.cc, and
those that LiteRT's XNNPACK takes (tensorflow/lite/delegates/xnnpack/README.md)."""


_LONG = 60
"""Letters of a tensor's name in a message; the end tells more than the beginning."""


def refusals(modelfile: ModelFile, runtime: Runtime) -> list[str]:
    """What the runtime would refuse about a model, or would get wrong without a word. Empty: nothing known."""
    found = [_unresolved(code) for code in modelfile.custom if code not in _KNOWN[runtime]]
    if unknown := dict.fromkeys(op.name for _, op in modelfile.steps() if op.name.startswith("#")):
        found.append(f"operation {', '.join(unknown)} is newer than this reader: update vedette and the runtime")
    found += [
        f"tensor {tensor.name[-_LONG:]!r}: {fault}"
        for graph in modelfile.subgraphs
        for tensor in graph.tensors
        if (fault := _bad_quantisation(tensor))
    ]
    if runtime == "tflite-runtime":
        kinds = {"INT4": modelfile.int4, "dynamic-range INT8 (float activations)": modelfile.dynamic_range}
        found += [
            f"{kind} weights: tflite-runtime 2.14 computes wrong results from them unnoticed; use"
            " ai-edge-litert, or quantise statically to INT8"
            for kind, there in kinds.items()
            if there
        ]
    return found


def _unresolved(code: str) -> str:
    if code == "edgetpu-custom-op":
        return "compiled for the Edge TPU (custom operation edgetpu-custom-op): use the file it was compiled from"
    if code.startswith("Flex"):
        return f"operation {code} needs TensorFlow itself: convert again with TFLITE_BUILTINS only"
    return f"custom operation {code or '(no name)'} is unknown to the runtime"


def _bad_quantisation(tensor: TensorInfo) -> str:
    """The checks of `ParseQuantization` in tensorflow/tensorflow, tensorflow/lite/core/interpreter_builder.cc."""
    quantisation, shape = tensor.quantisation, tensor.shape
    if quantisation.scales != quantisation.zero_points:
        return f"{quantisation.scales} scales, but {quantisation.zero_points} zero points: convert again"
    if quantisation.kind != "channel":
        return ""
    if not 0 <= quantisation.dimension < len(shape):
        return f"quantised dimension must be in 0..{len(shape) - 1}, is {quantisation.dimension}: convert again"
    if quantisation.scales != shape[quantisation.dimension]:
        return f"{quantisation.scales} scales for {shape[quantisation.dimension]} channels: convert again"
    return ""
