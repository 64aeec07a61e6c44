"""The manifest: TOML beside a model file, which says what the model needs and its file does not say.

Every key may be left out. What the manifest leaves out is taken from the TFLite Metadata inside the model file,
else guessed from its tensors and its last operations, else it has the default below: see
`agent.compute.decode.defaults`. `vedette models inspect MODEL --write-manifest` writes all that was found, with
the source of each key.

The manifest of YAMNet for classification, which scores 521 sounds; `unzip yamnet.tflite` gives its labels:

    name = "yamnet"
    file = "yamnet.tflite"
    licence = "Apache-2.0"

    [audio]
    rate_hz = 16000
    frontend = "raw"  # it takes 15600 samples as they are, 0.975 s, as floats in -1..1
    every_s = 0.48  # half a window: what one cuts in two, the next holds whole

    [output]
    decoder = "classify"
    labels = "yamnet_label_list.txt"
    score_threshold = 0.3  # of each sound by itself

    [output.options]
    top_k = 5  # sounds at once, of those that the stream wants

The stream says which it wants: `decode.labels = ["Bark", "Smoke detector, smoke alarm"]`; without, all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from agent.config.toml import Problem, TomlFile, parse_toml, with_new_keys
from agent.errors import ConfigError, ModelError
from agent.types import ChannelOrder

Unit = Annotated[float, Meta(ge=0.0, le=1.0)]
Mean = Annotated[float, Meta(ge=-1e6, le=1e6)]
Std = Annotated[float, Meta(ge=1e-6, le=1e6)]
Resize = Literal["stretch", "letterbox"]


class InputManifest(Struct, frozen=True, forbid_unknown_fields=True):
    """How a picture becomes the input tensor.

    Attributes:
        order: channel order that the model was trained with.
        resize: `stretch` to the input's size, or `letterbox`: keep the aspect and pad with grey 114.
        mean, std: `(pixel - mean) / std`, per channel in `order`, in the tensor's real-valued domain.
    """

    order: ChannelOrder = "rgb"
    resize: Resize = "stretch"
    mean: tuple[Mean, Mean, Mean] = (0.0, 0.0, 0.0)
    std: tuple[Std, Std, Std] = (1.0, 1.0, 1.0)


class AudioManifest(Struct, frozen=True, forbid_unknown_fields=True):
    """How sound becomes the input tensor: samples → rows of a front end → the newest rows, quantised.

    Attributes:
        rate_hz: of the samples that the front end takes.
        frontend: name of a front end in `agent.compute.infer.audio_input`.
        every_s: from one inference to the next, s; 0: whenever the tensor is full of new rows, for a model that
            remembers what it has heard.
        mean, std: `(row - mean) / std`, in the tensor's real-valued domain.
        options: what this front end needs besides, checked by it.
    """

    rate_hz: Annotated[int, Meta(ge=4000, le=192_000)]
    frontend: str
    every_s: Annotated[float, Meta(ge=0.0, le=60.0)] = 0.0
    mean: Mean = 0.0
    std: Std = 1.0
    options: dict[str, Any] = {}


class OutputManifest(Struct, frozen=True, forbid_unknown_fields=True):
    """How the output tensors become detections.

    Attributes:
        decoder: name of a decoder in `agent.compute.decode`; empty: the one that the outputs fit.
        labels: class names in order, of sounds each once; or in the file the name of a text file beside it.
        score_threshold: detections below are dropped.
        iou_threshold: overlap above which non-maximum suppression drops the weaker of two boxes.
        options: what this decoder needs besides, checked by the decoder.
    """

    decoder: str = ""
    labels: tuple[str, ...] = ()
    score_threshold: Unit = 0.4
    iou_threshold: Unit = 0.6
    options: dict[str, Any] = {}


class GoldenManifest(Struct, frozen=True, forbid_unknown_fields=True):
    """Inputs that a device must answer as the CPU does before it may run the model.

    Attributes:
        files: beside the manifest, pictures or recordings as the model will meet them; none: noisy shapes.
        tolerance: root mean square of the difference, as a share of the answer's own deviation (of its size where
            its numbers are alike, or it is only one), over the worst output; None: 0.1 of a quantised model, 0.02
            of another.
    """

    files: tuple[str, ...] = ()
    tolerance: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None


HIDDEN = "hidden"
"""Name of the output that a deeper variant goes on from."""
AUTO = "auto"
"""In place of a variant's name: the cascade picks an exit for each input."""
PICTURE_HITS, SOUND_HITS = 3, 1
"""Detections that announce a track by default: one picture of many may deceive, and a bark fills one window."""


class Variant(Struct, frozen=True, forbid_unknown_fields=True):
    """One depth or size of a model that has several.

    Attributes:
        name: what the config, the commands and the messages call it.
        signature: the signature of the file that runs it; empty for the model's only graph.
        after: name of the variant whose hidden state it goes on from; empty: it takes the model's input itself.
        depth: layers that its answer has gone through, for people.
        multiply_adds: of this variant alone, without those that it goes on from.
        confidence: at or above it no deeper variant is asked; None: it has the last word.
        temperature: what the scores are divided by before the softmax, so that confidence means a share of hits.
        complexity: an input up to this complexity, 0..1, may begin here; one above begins at a deeper variant.
    """

    name: str
    signature: str = ""
    after: str = ""
    depth: Annotated[int, Meta(ge=0)] = 0
    multiply_adds: Annotated[int, Meta(ge=0)] = 0
    confidence: Unit | None = None
    temperature: Annotated[float, Meta(ge=1e-3, le=1e3)] = 1.0
    complexity: Unit = 1.0


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """A model's manifest.

    Attributes:
        name: what the messages call the model; empty: as its file, without the suffix.
        output: see `OutputManifest`.
        input: for a model of pictures, see `InputManifest`.
        audio: for a model of sound, see `AudioManifest`; None: it takes pictures.
        file: name of the model file beside the manifest.
        sha256: of the model file; checked when it is loaded. Empty: not checked.
        licence: SPDX expression of the weights.
        source: where the model came from.
        description: for people.
        golden: see `GoldenManifest`.
        variants: largest or deepest first; the first is the default.
    """

    name: str = ""
    output: OutputManifest = OutputManifest()
    input: InputManifest = InputManifest()
    audio: AudioManifest | None = None
    file: str = ""
    sha256: str = ""
    licence: str = ""
    source: str = ""
    description: str = ""
    golden: GoldenManifest = GoldenManifest()
    variants: tuple[Variant, ...] = (Variant(name="full"),)

    def variant(self, name: str) -> Variant:
        """The variant of that name; the first for an empty name.

        Raises:
            ModelError: there is none.
        """
        for variant in self.variants:
            if name in ("", variant.name):
                return variant
        known = ", ".join(r.name for r in self.variants)
        raise ModelError(f"model {self.name} has no variant {name!r}; it has: {known}")

    @property
    def min_hits(self) -> int:
        """Detections that announce a track, where the stream leaves it open."""
        return PICTURE_HITS if self.audio is None else SOUND_HITS

    @property
    def has_tracks(self) -> bool:
        """Whether it finds what is there for a while and can be counted; a word is over when it is told."""
        return self.output.decoder != "keyword"

    @property
    def cascade(self) -> tuple[Variant, ...]:
        """Exits of a calibrated model, shallow first; empty for sizes, and for exits without thresholds."""
        if not self.variants[0].after or all(variant.confidence is None for variant in self.variants):
            return ()
        return self.variants[::-1]

    def exits(self, variant: str) -> tuple[Variant, ...]:
        """Return the exits that an input may take, shallow first; empty if one variant answers alone.

        Args:
            variant: `variant` of the stream: a variant's name; `auto` or empty: all exits of a calibrated model.

        Raises:
            ModelError: `auto`, and the model has no calibrated exits.
        """
        if variant == AUTO and not self.cascade:
            hint = self._without_exits()
            raise ModelError(f"model {self.name}: variant = {AUTO!r} picks among exits, and {hint}")
        return self.cascade if variant in ("", AUTO) else ()

    def _without_exits(self) -> str:
        names = ", ".join(one.name for one in self.variants)
        if self.variants[0].after:
            return f"its exits have no thresholds: run `vedette models calibrate`, or name one of {names}"
        if len(self.variants) == 1:
            return "this model has one variant: leave `variant` out"
        return f"this model has sizes only: name one of {names}"

    def chain(self, name: str) -> tuple[Variant, ...]:
        """The variants that run for this one, in order: those whose hidden state it goes on from, and itself.

        Raises:
            ModelError: there is no such variant, or they go on from each other in a circle.
        """
        chain = [self.variant(name)]
        while chain[0].after:
            before = self.variant(chain[0].after)
            if before in chain:
                raise ModelError(f"model {self.name}: variant {before.name!r} goes on from itself")
            chain.insert(0, before)
        return tuple(chain)


class Model(Struct, frozen=True, weakref=True):
    """A model in memory: bytes, their hash, and the manifest.

    Attributes:
        content: the `.tflite` file.
        sha256: hex digest of `content`.
        manifest: see `Manifest`.
        path: where it came from, for messages.
    """

    content: bytes
    sha256: str
    manifest: Manifest
    path: str


def read_manifest(text: str, path: str) -> TomlFile:
    """Read a manifest, of which nothing is checked yet. Keys of earlier versions get their new names.

    Args:
        text: of the file.
        path: of the file, for messages.

    Raises:
        ModelError: it is not TOML, with the line.
    """
    try:
        return with_new_keys(parse_toml(text, path))
    except ConfigError as error:
        raise ModelError(str(error)) from None


def check_manifest(file: TomlFile) -> None:
    """Refuse what no manifest says. Its `labels` are a list already.

    Raises:
        ModelError: every unknown key, wrong value and contradiction, each with file, line and key.
    """
    contradictions = list(_contradictions(file.data))
    try:
        msgspec.convert(file.data, Manifest)
    except msgspec.ValidationError:
        pass  # finding every fault takes 20 ms, and mostly there is none
    else:
        if not contradictions:
            return
    raise ModelError(*file.faults(Manifest, contradictions))


def manifest_from(data: dict[str, Any], where: str) -> Manifest:
    """Build a manifest from the tables of a complete one; see `check_manifest`.

    Args:
        data: the tables.
        where: path of the file, for messages.

    Raises:
        ModelError: see `check_manifest`.
    """
    check_manifest(TomlFile(where, data, {}))
    return msgspec.convert(data, Manifest)


def _contradictions(data: dict[str, Any]) -> Iterator[Problem]:
    """What is of the right type and makes no sense."""
    variants, output = data.get("variants"), data.get("output")
    if variants == []:
        yield ("variants",), "`variants` is empty; leave it out for a model with one graph"
    for number, variant in enumerate(variants if isinstance(variants, list) else ()):
        if isinstance(variant, dict) and variant.get("name") == AUTO:
            keys = ("variants", number, "name")
            yield keys, f"`variants[{number}].name`: no variant can be called {AUTO!r}: that asks for the cascade"
    yield from _same_names(variants if isinstance(variants, list) else [])
    labels = output.get("labels") if isinstance(output, dict) else None
    if "audio" in data and isinstance(labels, list):
        # Lists of what pictures show have gaps, and two cranes; a sound is told by its label alone.
        counts = Counter(label for label in labels if isinstance(label, str) and label)
        if twice := [repr(label) for label, count in counts.items() if count > 1]:
            yield ("output", "labels"), f"`output.labels`: {', '.join(twice)} more than once"


def _same_names(variants: list[Any]) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for number, variant in enumerate(variants):
        name = variant.get("name") if isinstance(variant, dict) else None
        if isinstance(name, str) and first.setdefault(name, number) != number:
            keys = ("variants", number, "name")
            text = f"{name!r} is the name of `variants[{first[name]}]`, too: give each variant a name of its own"
            yield keys, f"`variants[{number}].name`: {text}"
