"""Completes a manifest key by key, and records the source of each key that is neither stated nor a default.

The order is: the manifest; the TFLite Metadata in the file; a guess from tensors, last operations and the
decoder's published models; the defaults of `agent.compute.manifest`.

The scores of classifiers, keywords and boxes are probabilities if the graph ends in SOFTMAX or LOGISTIC. Else
they are logits if a quantised output's range exceeds 0..1, or if a float output comes from a multiplication
with weights (FULLY_CONNECTED, CONV_2D …). Logits of several classes get a softmax, those of one class or of
boxes a sigmoid. `[output.options] logits` overrides this.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import Struct, structs

from agent.compute.decode.ctc import fits, lacks_space
from agent.compute.decode.decoder import DECODERS, DecoderContext, create_decoder, options_kind
from agent.compute.decode.guesses import (
    USUAL_INPUTS,
    USUAL_OUTPUTS,
    Sound,
    check_picture,
    describe_specs,
    guess_input,
    guess_output,
    guess_sound,
)
from agent.compute.decode.metadata import Metadata, read_metadata
from agent.compute.manifest import FEATURES, AudioManifest, InputManifest, Manifest, OutputManifest
from agent.compute.tflite.model import POSTPROCESS, ModelFile, Subgraph, TensorSpec
from agent.config import DecodeConfig
from agent.errors import ModelError
from agent.structs import convert

Keys = tuple[str, ...]
Ending = Literal["softmax", "sigmoid", "logits", "embedding", ""]
"""Kind of an output according to the last operations; empty: unknown. An embedding is a mean or of length 1."""
METADATA = "from the metadata in the model file"
_DESCRIPTIVE = (("name",), ("licence",), ("description",))
"""Keys that do not affect inference."""
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
_NAMED_BY_DECODER = ("blazeface", "keypoints", "landmarks", "raw", FEATURES)
"""Decoders of a single class, or of none, that need no label."""
_AUDIO = AudioManifest(0, "")
_STEPS = 32
_BACKGROUND = ("background", "???", "void", "unlabeled", "nothing")
_WITHOUT_BACKGROUND = (19, 150)
"""Number of classes of Cityscapes and ADE20K, whose first class is a road and a wall."""
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


class Completed(Struct, frozen=True):
    """A manifest with every key.

    Attributes:
        manifest: see `Manifest`.
        sources: of the keys that the manifest file leaves out, but for defaults.
        doubts: likely mistakes, a line each, although the model can run.
    """

    manifest: Manifest
    sources: dict[Keys, str]
    doubts: tuple[str, ...] = ()


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
    sound = _add_sound(keys, facts)
    _add_metadata(keys, facts)
    _add_output(keys, facts, is_of_words=sound is not None and sound.decoder == "keyword")
    if "audio" not in keys.data:
        _add_input(keys, facts.inputs[0], facts.outputs)
    try:
        manifest = convert(keys.data, Manifest)
    except (
        msgspec.ValidationError
    ) as error:  # the manifest was checked, so that the value comes from the model file
        raise ModelError(f"the model file has an unusable value: {error}; set it in the manifest") from None
    return Completed(manifest, keys.sources, tuple(_doubts(stated, keys, facts, manifest)))


def says_all(stated: Mapping[str, Any]) -> bool:
    """Return True if a manifest leaves out nothing that could be found or guessed."""
    output, picture = stated.get("output", {}), stated.get("input", {})
    decoder, options = output.get("decoder", ""), output.get("options", {})
    if decoder not in DECODERS or decoder == "ssd" or not {"labels", "score_threshold"} <= output.keys():
        return False
    if "audio" not in stated and not {"order", "resize", "mean", "std"} <= picture.keys():
        return False
    return "logits" in options or "logits" not in options_kind(decoder).__struct_fields__


def lacks_labels(output: OutputManifest) -> bool:
    """Return True if a model has no labels and its decoder does not name its class either."""
    return not output.labels and output.decoder not in _NAMED_BY_DECODER


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


def _add_sound(keys: _Keys, facts: ModelFacts) -> Sound | None:
    """Add the front end of a model of sound and the words of its family; return it, None if it is unknown."""
    rate_hz = facts.metadata.rate_hz
    if {"audio", "input"} & keys.data.keys() or (sound := guess_sound(facts.inputs[0], rate_hz)) is None:
        return None
    for key, value in structs.asdict(sound.audio).items():
        source = METADATA if rate_hz and key == "rate_hz" else f"guessed: as of {sound.family}"
        if value != getattr(_AUDIO, key):
            keys.put(("audio", key), value, source)
    if not facts.metadata.labels and facts.outputs and facts.outputs[0].shape[-1:] == (len(sound.labels),):
        keys.put(("output", "labels"), sound.labels, f"guessed: the words of {sound.family}")
    return sound


def _add_metadata(keys: _Keys, facts: ModelFacts) -> None:
    metadata = facts.metadata
    found: dict[Keys, Any] = {
        ("licence",): metadata.licence,
        ("description",): metadata.description or metadata.name,
        ("output", "labels"): metadata.labels,
    }
    for place, value in found.items():
        if value:
            keys.put(place, value, METADATA)
    if metadata.score_threshold is not None:
        keys.put(("output", "score_threshold"), metadata.score_threshold, METADATA)
    if metadata.mean is not None and metadata.std is not None and not keys.has("audio"):
        keys.put(("input", "mean"), metadata.mean, METADATA)
        keys.put(("input", "std"), metadata.std, METADATA)
        keys.put(("input", "order"), "rgb", METADATA)


def _add_output(keys: _Keys, facts: ModelFacts, *, is_of_words: bool) -> None:
    if not keys.get("output", "decoder"):
        keys.data["output"].pop("decoder", None)
        decoder = "ctc" if _is_reader(keys, facts) else guess_output(facts.inputs, facts.outputs).decoder
        if decoder == "classify" and _is_embedding(keys, facts):
            decoder = "raw"
            keys.put(("output", "options", "normalise"), True, "guessed: as embeddings are compared")
        if decoder in ("classify", "segment"):
            _check_guess(decoder, keys, facts)
        if decoder == "landmarks":
            decoder = _check_points(keys, facts)
        if decoder == "segment" and _is_fomo(keys, facts):
            decoder = "fomo"
        if decoder == "classify" and "audio" in keys.data and (is_of_words or _is_single_score(facts)):
            decoder = "keyword"
        keys.put(("output", "decoder"), decoder, "guessed: its outputs fit")
    decoder = keys.get("output", "decoder")
    usual = USUAL_OUTPUTS.get(decoder, OutputManifest())
    for key in ("score_threshold", "iou_threshold"):
        if getattr(usual, key) != getattr(OutputManifest(), key):
            keys.put(("output", key), getattr(usual, key), f"usual for {decoder}")
    if decoder == "ssd":
        _add_ssd(keys, facts)
    if decoder == "segment":
        _add_background(keys, facts)
    if decoder == "classify" and facts.metadata.calibration:
        keys.put(("output", "options", "calibration"), facts.metadata.calibration, METADATA)
    if decoder == "ctc" and lacks_space(facts.outputs, len(keys.get("output", "labels") or ())):
        keys.put(("output", "options", "blank"), "first", "guessed: PaddleOCR's order, with a space at the end")
    _add_logits(keys, facts)


def _check_guess(decoder: str, keys: _Keys, facts: ModelFacts) -> None:
    """Refuse a guess of `classify` or `segment` by a shape that landmarks or pictures have, too."""
    labels = len(keys.get("output", "labels") or ())
    if len(facts.outputs) > 1:
        is_plausible = labels > 0 and any(spec.shape[-1:] == (labels,) for spec in facts.outputs)
    elif decoder == "segment":
        is_plausible = labels > 0 or _gives_masks(facts)
    else:
        is_plausible = labels > 0 or _gives_scores(facts)
    if not is_plausible:
        other = 'one of points "landmarks", an embedding "raw"'
        if decoder == "segment":
            other = "a picture or a map of depths cannot be decoded"
        raise ModelError(
            f"cannot guess how to decode outputs {describe_specs(facts.outputs)}; if one has scores of classes,"
            f' its manifest must have [output] decoder = "{decoder}" and labels; {other}'
        )


def _is_embedding(keys: _Keys, facts: ModelFacts) -> bool:
    """Return True for a mean of a map, or a vector of length 1, for whose numbers there are no labels."""
    labels = len(keys.get("output", "labels") or ())
    return facts.endings == ("embedding",) and facts.outputs[0].shape[-1] != labels


def _gives_masks(facts: ModelFacts) -> bool:
    """Return False for an output that may be a picture of colours or of grey, such as a map of depth."""
    spec, ending = facts.outputs[0], facts.endings[0] if facts.endings else ""
    if len(spec.shape) == 3:
        return not spec.dtype.startswith("float")
    if spec.shape[3] == 3 and spec.shape[1] >= facts.inputs[0].shape[1]:
        return ending == "softmax"
    return spec.shape[3] > 1 or (ending == "sigmoid" and spec.shape != facts.inputs[0].shape)


def _check_points(keys: _Keys, facts: ModelFacts) -> str:
    """Return the decoder of what has the shapes of landmarks: classes are probabilities, or have their labels."""
    labels = len(keys.get("output", "labels") or ())
    wide = [number for number, spec in enumerate(facts.outputs) if spec.shape and spec.shape[-1] != 1]
    likely = any(facts.endings[at] in PROBABILITIES for at in wide if at < len(facts.endings))
    if likely or any(facts.outputs[number].shape[-1] == labels for number in wide):
        _check_guess("classify", keys, facts)
        return "classify"
    if ("output", "labels") in keys.sources:  # of the sides of a hand, of which another output tells
        keys.get("output").pop("labels")
        keys.sources.pop(("output", "labels"))
    return "landmarks"


def _is_fomo(keys: _Keys, facts: ModelFacts) -> bool:
    """Return True for a grid of an eighth of the picture with a class more than there are labels."""
    labels, image = len(keys.get("output", "labels") or ()), facts.inputs[0].shape
    grid = facts.outputs[0].shape
    return (
        len(facts.outputs) == 1
        and len(grid) == len(image) == 4
        and (grid[1] * 8, grid[2] * 8, grid[3]) == (image[1], image[2], labels + 1)
    )


def _is_reader(keys: _Keys, facts: ModelFacts) -> bool:
    """Return True for one output of steps × characters, if the labels are single characters."""
    labels = keys.get("output", "labels") or ()
    short = len(labels) > 1 and all(len(label) <= 1 or label == "???" for label in labels)
    return short and len(facts.outputs) == 1 and fits(facts.outputs[0], len(labels))


def _is_single_score(facts: ModelFacts) -> bool:
    return len(facts.outputs) == 1 and facts.outputs[0].shape[-1:] == (1,)


def _gives_scores(facts: ModelFacts) -> bool:
    spec = facts.outputs[0]
    named = any(hint in spec.name.lower() for hint in _SCORE_NAMES)
    return named or _logits(spec, facts.endings[0] if facts.endings else "")[0] is False


def _add_background(keys: _Keys, facts: ModelFacts) -> None:
    """Add that a segmentation has no background, which is its first class by default."""
    labels: tuple[str, ...] = tuple(keys.get("output", "labels") or ())
    sizes = {spec.shape[-1] for spec in facts.outputs if len(spec.shape) == 4}
    if len(labels) > 1 and not any(word in labels[0].lower() for word in _BACKGROUND):
        keys.put(("output", "options", "background"), -1, f"guessed: the first label is {labels[0]!r}")
    elif not labels and sizes & set(_WITHOUT_BACKGROUND):
        keys.put(("output", "options", "background"), -1, "guessed: Cityscapes and ADE20K have none")


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


def _add_input(keys: _Keys, spec: TensorSpec, outputs: Sequence[TensorSpec]) -> None:
    decoder = keys.get("output", "decoder")
    if usual := USUAL_INPUTS.get(decoder):
        for key in ("order", "resize"):
            keys.put(("input", key), getattr(usual, key), f"usual for {decoder}")
    if _normalises(keys):
        return
    try:
        check_picture(spec)
        guess = guess_input(decoder, spec, outputs)
    except ModelError:
        if ("output", "decoder") in keys.sources:  # guessed: the manifest does not say how to use the model
            raise
        return
    source = "guessed: pixels unchanged, as an integer input expects"
    if spec.dtype.startswith("float"):
        source = f"usual for {decoder}"
    keys.put(("input", "mean"), guess.mean, source)
    keys.put(("input", "std"), guess.std, source)


def _normalises(keys: _Keys) -> bool:
    return keys.has("input", "mean") and keys.has("input", "std")


def _doubts(stated: Mapping[str, Any], keys: _Keys, facts: ModelFacts, manifest: Manifest) -> Iterator[str]:
    """Yield where the manifest contradicts the model file, or lacks what cannot be guessed."""
    if manifest.audio is None and (found := _saturation(facts.inputs[0], manifest.input)):
        yield found
    metadata, picture = facts.metadata, stated.get("input", {})
    if manifest.audio is None and facts.inputs[0].picture and not _normalises(keys):
        yield f"[input] mean and std are left out: {facts.inputs[0].name} gets pixels as floats 0..255"
    for key in ("mean", "std"):
        known = getattr(metadata, key)
        if known is not None and key in picture and not np.allclose(picture[key], known):
            yield f"[input] {key} = {list(picture[key])}, but the metadata in the model file says {list(known)}"
    yield from _logits_doubts(stated, keys, facts)
    if manifest.output.decoder == "keyword" and not manifest.output.labels:
        yield '[output] labels are left out: the word is reported as class0; set labels = ["the word"]'


def _logits_doubts(stated: Mapping[str, Any], keys: _Keys, facts: ModelFacts) -> Iterator[str]:
    """Yield where `logits` of the manifest contradicts the model's last operations or quantisation."""
    logits = stated.get("output", {}).get("options", {}).get("logits")
    at = None if logits is None else _scores_at(keys, facts)
    if at is None or at >= len(facts.endings):
        return
    found, why = _logits(facts.outputs[at], facts.endings[at])
    if found is not None and found is not bool(logits):
        stands = f'"{logits}"' if isinstance(logits, str) else str(logits).lower()
        yield f"[output.options] logits = {stands}, but {why}: leave logits out, or correct it"


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


def describe_sources(sources: Mapping[Keys, str]) -> str:
    """Describe in one line which keys that affect inference were found or guessed, and from what."""
    by_source: dict[str, list[str]] = {}
    for keys, source in sources.items():
        if keys not in _DESCRIPTIVE:
            by_source.setdefault(source, []).append(".".join(keys))
    return "; ".join(f"{', '.join(names)} ({source})" for source, names in by_source.items())
