"""Completes the manifest of a model that leaves keys out, and records the source of each that is no default.

The order is: the manifest; the TFLite Metadata in the file; a guess from tensors, last operations and the
decoder's published models; the defaults of `agent.compute.manifest`. Only what few models of another kind look
like is guessed: for others the error says which keys to write.

The scores of classifiers, keywords and boxes are probabilities if the graph ends in SOFTMAX or LOGISTIC. Else
they are logits if a quantised output's range exceeds 0..1, or if a float output comes from a multiplication
with weights (FULLY_CONNECTED, CONV_2D …). Logits of several classes get a softmax, those of one class or of
boxes a sigmoid. `[output.options] logits` overrides this.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import Struct, structs

from agent.compute.decode import DECODERS, create_decoder, find_fitting, options_kind
from agent.compute.decode.decoder import DecoderContext
from agent.compute.decode.metadata import Metadata, read_metadata
from agent.compute.manifest import Completed, InputManifest, Manifest, OutputManifest
from agent.compute.tflite.model import POSTPROCESS, ModelFile, Subgraph, TensorSpec
from agent.config import DecodeConfig
from agent.errors import ModelError, NormalisationError, UndecodableError
from agent.structs import convert

Keys = tuple[str, ...]
Ending = Literal["softmax", "sigmoid", "logits", "embedding", ""]
"""Kind of an output according to the last operations; empty: unknown. An embedding is a mean or of length 1."""
METADATA = "from the metadata in the model file"
_AS_SAMPLES = "guessed: as of samples"
PROBABILITIES: tuple[Ending, ...] = ("softmax", "sigmoid")
_ENDINGS: dict[str, Ending] = {"LOGISTIC": "sigmoid", "SOFTMAX": "softmax", "STABLEHLO_LOGISTIC": "sigmoid"}
_EMBEDDING = frozenset({"AVERAGE_POOL_2D", "L2_NORMALIZATION", "MEAN"})
_RESHAPING = frozenset({"DEQUANTIZE", "QUANTIZE", "RESHAPE", "SQUEEZE"})
_WEIGHTED = frozenset({"BATCH_MATMUL", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "LOG_SOFTMAX"})
_PASSED = """
ADD AVERAGE_POOL_2D CONCATENATION DEQUANTIZE EXPAND_DIMS MEAN QUANTIZE RESHAPE RESIZE_BILINEAR SLICE SQUEEZE
STRIDED_SLICE TRANSPOSE
"""
_PASSING = frozenset(_PASSED.split())
"""Operations that keep probabilities probabilities, and logits logits."""
_SCORE_NAMES = ("class", "logit", "prob", "score", "softmax")
"""Words in the names of outputs with scores of classes."""
_STEPS = 32
_BACKGROUND = ("background", "???", "void", "unlabeled", "nothing")
_SPEECH_HZ = 16_000
_RATES = {44_032: 44_100, 144_000: 48_000, 160_000: 32_000}
"""Samples of a window → a second, of those that do not hear 16 kHz: TensorFlow.js' words, BirdNET and Perch."""
_LEAST_SAMPLES = 4000
"""A vector of fewer numbers is no window of samples."""
_LEAST_SIDE = 8
"""A grey picture with a shorter side is a table of something else."""
_SHOWN, _LONG = 2, 60
"""Tensors in a message, and characters of each."""
_MANY_SOUNDS = 100
"""From so many classes of sound on, several may be heard together, as with YAMNet and BirdNET."""
_SCORES = 2
"""Index of the scores among the outputs of `TFLite_Detection_PostProcess`, whose second input they are."""
_BEYOND, _USED = 0.25, 0.55
"""A normalisation is doubtful from this share of pixel values outside, and up to this share of the range used."""
_SLACK = 0.05
"""The calibrated range of quantised probabilities may exceed 0..1 by so much."""


class ModelFacts(Struct, frozen=True):
    """Facts read from a model file.

    Attributes:
        metadata: see `Metadata`.
        inputs: of the variant that takes the model's input.
        outputs: of the variant that answers by default.
        endings: one per output.
        detections: names of the boxes, classes, scores and count of `TFLite_Detection_PostProcess`; else empty.
    """

    metadata: Metadata
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    endings: tuple[Ending, ...] = ()
    detections: tuple[str, ...] = ()


def facts_of(content: bytes, file: ModelFile, first: str = "", last: str = "") -> ModelFacts:
    """Read the facts from a model file and its parsed contents.

    `first` and `last` are the signatures of the variants that take the input and answer by default; empty: the
    first graph.

    Raises:
        ModelError: the metadata is damaged, or there is no such signature.
    """
    inputs, outputs = file.ends(first)[0], file.ends(last)[1]
    graph = file.graph(last)
    ends = file.output_tensors(last)
    made = next((op.outputs for op in graph.operations if op.custom == POSTPROCESS), ())
    names = {tensor: spec.name for tensor, spec in zip(ends, outputs, strict=True)}
    detections = tuple(names.get(tensor, "") for tensor in made[:4])
    unambiguous = len(detections) == 4 and all(detections) and len(set(detections)) == 4
    endings = tuple(_ending(graph, tensor) for tensor in ends)
    metadata = read_metadata(content) or Metadata()
    return ModelFacts(metadata, inputs, outputs, endings, detections if unambiguous else ())


def _ending(graph: Subgraph, tensor: int) -> Ending:
    makers = {output: operation for operation in graph.operations for output in operation.outputs}
    is_last, is_embedding = True, False
    for _ in range(_STEPS):
        operation = makers.get(tensor)
        if operation is None:
            return ""
        is_embedding = is_embedding or (is_last and operation.name in _EMBEDDING)
        is_last = is_last and operation.name in _RESHAPING
        place = 0
        if operation.custom == POSTPROCESS and operation.outputs[_SCORES : _SCORES + 1] == (tensor,):
            place = 1
        elif operation.name in _ENDINGS:
            return _ENDINGS[operation.name]
        elif operation.name in _WEIGHTED:
            return "embedding" if is_embedding else "logits"
        elif operation.name not in _PASSING:
            return "embedding" if is_embedding else ""
        if len(operation.inputs) <= place:
            return ""
        tensor = next((one for one in operation.inputs[place:] if one in makers), operation.inputs[place])
    return ""


def complete(stated: Mapping[str, Any], facts: ModelFacts, name: str) -> Completed:
    """Complete the checked tables of a manifest file, empty if there is none, for a model of that name.

    Raises:
        ModelError: a key can neither be found nor guessed; the error names it.
    """
    if not facts.inputs:
        raise ModelError(f"model {name}: it has no input")
    keys = _Keys(stated)
    keys.put(("name",), name, "the name of the file")
    _add_sound(keys, facts)
    _add_metadata(keys, facts)
    _add_output(keys, facts)
    if "audio" not in keys.data:
        _add_input(keys, facts.inputs[0], facts.outputs)
    try:
        manifest = convert(keys.data, Manifest)
    except msgspec.ValidationError as error:  # of the model file, since the manifest was checked
        raise ModelError(f"the model file has an unusable value: {error}; set it in the manifest") from None
    return Completed(manifest, keys.sources, tuple(_doubts(keys, facts, manifest)))


class _Keys:
    """Keys of a manifest, to which missing ones are added."""

    def __init__(self, stated: Mapping[str, Any]) -> None:
        self.data: dict[str, Any] = copy.deepcopy(dict(stated))
        self.sources: dict[Keys, str] = {}

    def has(self, *keys: str) -> bool:
        return keys[-1] in self._table(keys)

    def get(self, *keys: str) -> Any:
        return self._table(keys).get(keys[-1])

    def put(self, keys: Keys, value: Any, source: str) -> None:
        """Add a key with its source, unless it is present."""
        table = self._table(keys)
        if keys[-1] not in table:
            table[keys[-1]] = value
            self.sources[keys] = source

    def _table(self, keys: Keys) -> dict[str, Any]:
        table = self.data
        for key in keys[:-1]:
            table = table.setdefault(key, {})
        return table


def _add_sound(keys: _Keys, facts: ModelFacts) -> None:
    """Add the front end of a model that takes a window of samples."""
    rate_hz, shape = facts.metadata.rate_hz, facts.inputs[0].shape
    sides = [side for side in shape if side != 1]
    is_window = len(sides) == 1 and sides[0] >= _LEAST_SAMPLES
    if {"audio", "input"} & keys.data.keys() or not (rate_hz or is_window):
        return
    if rate_hz:
        keys.put(("audio", "rate_hz"), rate_hz, METADATA)
    keys.put(("audio", "rate_hz"), _RATES.get(sides[0], _SPEECH_HZ), _AS_SAMPLES)
    keys.put(("audio", "frontend"), "raw", _AS_SAMPLES)
    half_s = round(math.prod(sides) / keys.get("audio", "rate_hz") / 2, 3)
    keys.put(("audio", "every_s"), half_s, _AS_SAMPLES)


def _add_metadata(keys: _Keys, facts: ModelFacts) -> None:
    metadata = facts.metadata
    found: dict[Keys, Any] = {
        ("licence",): metadata.licence,
        ("description",): metadata.description or metadata.name,
        ("output", "labels"): metadata.labels,
        ("output", "score_threshold"): metadata.score_threshold,
    }
    for place, value in found.items():
        if value not in ("", (), None):
            keys.put(place, value, METADATA)
    if metadata.mean is not None and metadata.std is not None and not keys.has("audio"):
        keys.put(("input", "mean"), metadata.mean, METADATA)
        keys.put(("input", "std"), metadata.std, METADATA)
        keys.put(("input", "order"), "rgb", METADATA)


def _add_output(keys: _Keys, facts: ModelFacts) -> None:
    if not keys.get("output", "decoder"):
        keys.data["output"].pop("decoder", None)
        keys.put(("output", "decoder"), _guess_decoder(keys, facts), "guessed: its outputs fit")
    decoder = keys.get("output", "decoder")
    usual = DECODERS[decoder].output if decoder in DECODERS else OutputManifest()
    for key in ("score_threshold", "iou_threshold"):
        if getattr(usual, key) != getattr(OutputManifest(), key):
            keys.put(("output", key), getattr(usual, key), f"usual for {decoder}")
    labels: Sequence[str] = keys.get("output", "labels") or ()
    if decoder == "ssd":
        _add_ssd(keys, facts)
    if decoder == "segment" and len(labels) > 1 and not any(word in labels[0].lower() for word in _BACKGROUND):
        keys.put(("output", "options", "background"), -1, f"guessed: the first label is {labels[0]!r}")
    _add_logits(keys, facts)


def _guess_decoder(keys: _Keys, facts: ModelFacts) -> str:
    """Return the decoder that fits the outputs. Raises UndecodableError if it is not certain enough."""
    decoder = find_fitting(facts.inputs, facts.outputs)
    if decoder in ("classify", "segment") and not _gives_scores(decoder, keys, facts):
        decoder = None
    if decoder is None:
        raise UndecodableError(
            f"cannot guess how to decode outputs {describe_specs(facts.outputs)}: its manifest must have "
            '[output] decoder and labels (an embedding is "raw", FOMO "fomo"); see `vedette guide models`'
        )
    is_word = decoder == "classify" and "audio" in keys.data and facts.outputs[0].shape[-1:] == (1,)
    return "keyword" if is_word and len(facts.outputs) == 1 else decoder


def _gives_scores(decoder: str, keys: _Keys, facts: ModelFacts) -> bool:
    """Return True if the labels, a name or the last operation tell that an output has scores of classes."""
    labels = len(keys.get("output", "labels") or ())
    if labels:
        return any(spec.shape[-1:] == (labels,) for spec in facts.outputs)
    if len(facts.outputs) != 1 or "embedding" in facts.endings:
        return False
    spec, ending = facts.outputs[0], facts.endings[0] if facts.endings else ""
    if decoder == "segment":
        return _gives_masks(spec, ending, facts.inputs[0])
    return any(hint in spec.name.lower() for hint in _SCORE_NAMES) or _logits(spec, ending)[0] is False


def _gives_masks(spec: TensorSpec, ending: Ending, image: TensorSpec) -> bool:
    """Return False for an output that may be a picture of colours or of grey, such as a map of depth."""
    shape: tuple[int, ...] = spec.shape
    if len(shape) == 3:
        return not spec.dtype.startswith("float")
    if shape[3] == 3 and shape[1] >= image.shape[1]:
        return ending == "softmax"
    return shape[3] > 1 or (ending == "sigmoid" and spec.shape != image.shape)


def _add_ssd(keys: _Keys, facts: ModelFacts) -> None:
    # The operation counts classes without the background, which label files of TensorFlow begin with.
    if tuple(keys.get("output", "labels") or ())[:1] in (("???",), ("background",)):
        keys.put(("output", "options", "label_offset"), 1, "guessed: the labels begin with the background")
    if facts.detections:
        roles = dict(zip(("boxes", "classes", "scores", "count"), facts.detections, strict=True))
        keys.put(("output", "options", "tensors"), roles, f"the order of {POSTPROCESS}")


def _add_logits(keys: _Keys, facts: ModelFacts) -> None:
    """Add the key `logits` if the model shows whether scores are logits."""
    decoder = keys.get("output", "decoder")
    if decoder not in DECODERS or "logits" not in options_kind(decoder).__struct_fields__:
        return
    at = _scores_at(keys, facts)
    if at is None or at >= len(facts.endings):
        return
    spec, ending = facts.outputs[at], facts.endings[at]
    logits, why = _logits(spec, ending)
    if logits is None:
        return
    classes = spec.shape[-1] if decoder in ("classify", "keyword") else 0
    is_sigmoid = classes == 1 or ("audio" in keys.data and classes >= _MANY_SOUNDS)
    keys.put(("output", "options", "logits"), "sigmoid" if logits and is_sigmoid else logits, f"guessed: {why}")


def _logits(spec: TensorSpec, ending: Ending) -> tuple[bool | None, str]:
    """Return whether an output has logits (None: unknown), and the reason."""
    if ending in PROBABILITIES:
        return False, f"{spec.name} comes from a softmax or a sigmoid"
    if limits := stored_range(spec):
        least, most = limits
        return least < -_SLACK or most > 1.0 + _SLACK, f"{spec.name} reaches from {least:.3g} to {most:.3g}"
    if ending in ("logits", "embedding"):
        return True, f"{spec.name} comes from weights, without a softmax or a sigmoid"
    return None, ""


def stored_range(spec: TensorSpec) -> tuple[float, float] | None:
    """Return the least and the largest real that a quantised tensor can hold; None: it is not quantised."""
    try:
        limits = np.iinfo(spec.dtype)
    except (TypeError, ValueError):
        return None
    if not spec.quantised:
        return None
    return (limits.min - spec.zero_point) * spec.scale, (limits.max - spec.zero_point) * spec.scale


def _scores_at(keys: _Keys, facts: ModelFacts) -> int | None:
    """Return the index of the scores' output; None: the decoder does not fit, which `build_decoder` reports."""
    try:
        output = convert(keys.data["output"], OutputManifest)
        context = DecoderContext(output, facts.inputs, facts.outputs, DecodeConfig())
        place: int | None = getattr(create_decoder(output.decoder, context), "scores_at", None)
    except (msgspec.ValidationError, ModelError):
        return None
    return place


def describe_specs(specs: Sequence[TensorSpec]) -> str:
    """Describe the first tensors and the number of further ones."""
    more = f" and {len(specs) - _SHOWN} more" if len(specs) > _SHOWN else ""
    return f"{', '.join(str(spec)[:_LONG] for spec in specs[:_SHOWN]) or 'none'}{more}"


def _add_input(keys: _Keys, spec: TensorSpec, outputs: Sequence[TensorSpec]) -> None:
    decoder = keys.get("output", "decoder")
    usual = DECODERS[decoder].input if decoder in DECODERS else None
    if usual is not None:
        for key in ("order", "resize"):
            keys.put(("input", key), getattr(usual, key), f"usual for {decoder}")
    if _normalises(keys):
        return
    try:
        _check_picture(spec)
        guess = guess_input(decoder, spec, outputs)
    except ModelError:
        if ("output", "decoder") in keys.sources:  # guessed: the manifest does not say how to use the model
            raise
        return
    is_float = spec.dtype.startswith("float")
    source = f"usual for {decoder}" if is_float else "guessed: pixels unchanged, as an integer input expects"
    keys.put(("input", "mean"), guess.mean, source)
    keys.put(("input", "std"), guess.std, source)


def _check_picture(spec: TensorSpec) -> None:
    """Raise ModelError if an input takes no picture."""
    height, width, channels = spec.picture or (0, 0, 0)
    if channels <= 1 and min(height, width) < _LEAST_SIDE:
        raise ModelError(
            f"input {spec} is neither a picture, [1,height,width,3] or [1,height,width,1], nor a window of "
            "samples; if it takes features of sound, its manifest must have [audio] rate_hz, frontend and options"
        )


def guess_input(decoder: str, spec: TensorSpec, outputs: Sequence[TensorSpec] = ()) -> InputManifest:
    """Guess the input part of a manifest for a picture, by decoder, input and outputs.

    A quantised input takes the pixels as they are: its scale was calibrated for them.

    Raises:
        NormalisationError: mean and std cannot be guessed. The error names what a manifest must say.
    """
    row = DECODERS.get(decoder)
    others = row.other_pixels if row else {}
    known = next((others[one.shape[-1]] for one in outputs if one.shape and one.shape[-1] in others), None)
    usual = known or (row.input if row else None) or InputManifest()
    if spec.quantised:
        mean = float(spec.zero_point + (128 if spec.dtype == "int8" else 0))
        return structs.replace(usual, mean=(mean,) * 3, std=(1.0 / spec.scale,) * 3)
    if not spec.dtype.startswith("float"):
        return structs.replace(usual, mean=(0.0,) * 3, std=(1.0,) * 3)
    if row is None or row.input is None:
        raise NormalisationError(
            f"the range of float input {spec} is unknown; its manifest must have [input] mean and std: "
            "mean = [127.5, 127.5, 127.5] and std = [127.5, 127.5, 127.5] for -1..1; 0 and 255 for 0..1"
        )
    return usual


def _normalises(keys: _Keys) -> bool:
    return keys.has("input", "mean") and keys.has("input", "std")


def _doubts(keys: _Keys, facts: ModelFacts, manifest: Manifest) -> Iterator[str]:
    """Yield what the manifest lacks and cannot be guessed, and a normalisation that does not fit the model."""
    if manifest.audio is None and (found := _saturation(facts.inputs[0], manifest.input)):
        yield found
    if manifest.input.pixels and manifest.audio is None and facts.inputs[0].picture and not _normalises(keys):
        yield f"[input] mean and std are left out: {facts.inputs[0].name} gets pixels as floats 0..255"
    if manifest.output.decoder == "keyword" and not manifest.output.labels:
        yield '[output] labels are left out: the word is reported as class0; set labels = ["the word"]'


def _saturation(spec: TensorSpec, manifest: InputManifest) -> str:
    """Describe an integer input whose normalisation is likely wrong; empty: it is not.

    That is so if a quarter of a pixel's 256 values lie outside the tensor's range, or if all of them use only
    about half of it.
    """
    if not spec.quantised or spec.dtype not in ("uint8", "int8") or spec.picture is None or not manifest.pixels:
        return ""
    limits, channels = np.iinfo(spec.dtype), min(3, spec.picture[2])
    mean, std = np.array(manifest.mean)[:channels], np.array(manifest.std)[:channels]
    with np.errstate(all="ignore"):
        stored = (np.arange(256.0)[:, None] - mean) / std / spec.scale + spec.zero_point
        beyond = np.mean((stored < limits.min - 0.5) | (stored > limits.max + 0.5), axis=0).max()
        used = (np.ptp(np.clip(stored, limits.min, limits.max), axis=0) / (limits.max - limits.min)).min()
    fault = ""
    if beyond >= _BEYOND:
        fault = f"{beyond:.0%} of the pixel values lie outside its range, so that pictures are saturated"
    elif used <= _USED:
        fault = f"pixels use {used:.0%} of its range, so that pictures are flat"
    if not fault:
        return ""
    zero = spec.zero_point + (128 if spec.dtype == "int8" else 0)
    return (
        f"input {spec.name}: with [input] mean = {_short(manifest.mean)} and std = {_short(manifest.std)},"
        f" {fault}; its quantisation fits mean = {zero:g} and std = {1.0 / spec.scale:.4g}"
    )


def _short(values: tuple[float, float, float]) -> str:
    return f"{values[0]:.4g}" if len(set(values)) == 1 else str([round(value, 3) for value in values])
