"""The manifest: a TOML file beside a model file that states what the model needs.

Every key is optional. A missing one is taken from the TFLite Metadata in the model file, guessed from its
tensors and last operations, or has the default below, see `agent.compute.decode.completion`. `vedette models
inspect MODEL --write-manifest` writes all keys with their sources.

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
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from agent.config.features import SecondaryConfig
from agent.config.toml import Problem, TomlFile, parse_toml
from agent.errors import ConfigError, ModelError
from agent.structs import convert
from agent.types import ChannelOrder

Unit = Annotated[float, Meta(ge=0.0, le=1.0)]
Mean = Annotated[float, Meta(ge=-1e6, le=1e6)]
Std = Annotated[float, Meta(ge=1e-6, le=1e6)]
Resize = Literal["stretch", "letterbox"]


class InputManifest(Struct, frozen=True, forbid_unknown_fields=True):
    """Preparation of a picture for the input tensor.

    Attributes:
        order: channel order of the training.
        resize: `stretch` to the input's size, or `letterbox`: keep the aspect and pad with grey 114.
        mean, std: `(pixel - mean) / std`, per channel in `order`, in the tensor's real-valued domain.
        pixels: False: it takes real values that are no picture's, which no camera gives.
    """

    order: ChannelOrder = "rgb"
    resize: Resize = "stretch"
    mean: tuple[Mean, Mean, Mean] = (0.0, 0.0, 0.0)
    std: tuple[Std, Std, Std] = (1.0, 1.0, 1.0)
    pixels: bool = True


class AudioManifest(Struct, frozen=True, forbid_unknown_fields=True):
    """Preparation of sound for the input tensor: samples → rows of a front end → the newest rows, quantised.

    Attributes:
        rate_hz: of the samples that the front end takes.
        frontend: name of a front end in `agent.compute.infer.audio_input`.
        every_s: time from one inference to the next, s; 0: when the tensor is full of new rows, for a stateful
            model.
        mean, std: `(row - mean) / std`, in the tensor's real-valued domain.
        options: of the front end, which checks them.
    """

    rate_hz: Annotated[int, Meta(ge=4000, le=192_000)]
    frontend: str
    every_s: Annotated[float, Meta(ge=0.0, le=60.0)] = 0.0
    mean: Mean = 0.0
    std: Std = 1.0
    options: dict[str, Any] = {}


class OutputManifest(Struct, frozen=True, forbid_unknown_fields=True):
    """Decoding of the output tensors.

    Attributes:
        decoder: name of a decoder in `agent.compute.decode`; empty: guessed from the outputs.
        labels: class names in order, those of sounds unique; in the file also the name of a text file beside it.
        score_threshold: least score of a detection.
        iou_threshold: overlap above which non-maximum suppression drops the weaker of two boxes.
        options: of the decoder, which checks them.
    """

    decoder: str = ""
    labels: tuple[str, ...] = ()
    score_threshold: Unit = 0.4
    iou_threshold: Unit = 0.6
    options: dict[str, Any] = {}


class GoldenManifest(Struct, frozen=True, forbid_unknown_fields=True):
    """Inputs that an accelerator must answer as the CPU does before it is used.

    Attributes:
        files: beside the manifest, typical pictures or recordings; none: noisy shapes.
        tolerance: largest root mean square of the difference, as a share of the answer's own deviation (of its
            size if it is one number, or all are equal), of the worst output; None: 0.1 for a quantised model,
            else 0.02.
    """

    files: tuple[str, ...] = ()
    tolerance: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None


class VerificationManifest(Struct, frozen=True, forbid_unknown_fields=True):
    """Verification of each word that a keyword model is about to tell, by a second model.

    Attributes:
        model: gives embeddings of sound: name of a bundled model, or of a file beside the manifest.
        head: file beside the manifest that tells the words by their embeddings.
        score_threshold: least probability of a word that is told.
        running_threshold: the same amid other speech; None, or lower: as `score_threshold`.
        longest_s: sound without a pause that is longer is speech, and a word in it is amid speech, s; only with
            `running_threshold`.
    """

    model: Annotated[str, Meta(min_length=1)]
    head: Annotated[str, Meta(min_length=1)]
    score_threshold: Unit = 0.5
    running_threshold: Unit | None = None
    longest_s: Annotated[float, Meta(ge=0.1, le=1.5)] = 0.55


FEATURES = "features"
"""Name of the output that states or words are taught from: a map of the backbone [1, height, width, channels], or
an embedding of sound [1, …, size]. Also in place of a decoder: the outputs are no detections."""
CHANNELS_MAX = 1024
"""Most channels of such a map: more would make examples of more than the memory that they may take."""
HIDDEN = "hidden"
"""Name of the output that the next exit continues."""
AUTO = "auto"
"""In place of a variant's name: the cascade picks an exit for each input."""
PICTURE_HITS, SOUND_HITS = 3, 1
"""Default number of detections before a track is announced: one picture may deceive, but a bark fills one
window."""


class Variant(Struct, frozen=True, forbid_unknown_fields=True):
    """An exit or a size of a model that has several.

    Attributes:
        name: in the configuration, commands and messages.
        signature: of the model file; empty for its only graph.
        after: name of the exit whose hidden state it continues; empty: it takes the model's input.
        depth: layers up to its answer, for people.
        multiply_adds: of this variant alone, without those that it continues.
        confidence: of an exit: at or above it no deeper exit runs; None: its answer is always taken.
        temperature: divisor of the scores before the softmax, so that a confidence is a share of right answers.
        complexity: of an exit: answers to inputs above it, 0..1, are not taken here but at a deeper exit.
    """

    name: str
    signature: str = ""
    after: str = ""
    depth: Annotated[int, Meta(ge=0)] = 0
    multiply_adds: Annotated[int, Meta(ge=0)] = 0
    confidence: Unit | None = None
    temperature: Annotated[float, Meta(ge=1e-3, le=1e3)] = 1.0
    complexity: Unit = 1.0

    @property
    def is_exit(self) -> bool:
        """True if it continues another variant or its scores are scaled, as those of a cascade's exits are."""
        return bool(self.after) or self.temperature != 1.0


ONLY_VARIANT = "full"
"""Name of the variant of a model whose manifest lists none."""


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """A model's manifest.

    Attributes:
        name: in messages; empty: the file's name without suffix.
        output: decoder, labels and thresholds.
        input: normalisation of pictures.
        audio: front end of a sound model; left out: the model takes pictures.
        file: name of the model file beside the manifest.
        sha256: of the model file; checked when it is loaded. Empty: not checked.
        licence: SPDX expression of the weights.
        source: origin of the model.
        description: for people.
        golden: inputs that an accelerator must answer as the CPU does.
        variants: largest or deepest first; the first is the default.
        secondary: models that are run on each object that this one finds.
        verification: of the words that it tells; None: there is none.
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
    variants: tuple[Variant, ...] = (Variant(name=ONLY_VARIANT),)
    secondary: tuple[SecondaryConfig, ...] = ()
    verification: VerificationManifest | None = None

    @property
    def _called(self) -> str:
        return f"model {self.name}" if self.name else "the model"

    def variant(self, name: str) -> Variant:
        """Return the variant of that name; the first for an empty name. Raises ModelError if there is none."""
        for variant in self.variants:
            if name in ("", variant.name):
                return variant
        known = ", ".join(r.name for r in self.variants)
        raise ModelError(f"{self._called} has no variant {name!r}; it has: {known}")

    @property
    def min_hits(self) -> int:
        """Number of detections before a track is announced, by default."""
        return PICTURE_HITS if self.audio is None else SOUND_HITS

    @property
    def has_tracks(self) -> bool:
        """True if it finds objects or sounds that last and can be counted; False for keywords and numbers."""
        return self.output.decoder not in ("keyword", FEATURES) and not self.gives_numbers

    @property
    def finds_objects(self) -> bool:
        """True if it finds objects that have a place in the picture and may move."""
        return self.audio is None and self.has_tracks and self.output.decoder not in ("classify", "ctc")

    @property
    def is_embedding(self) -> bool:
        """True for a model of sound that gives embeddings, of which words are taught."""
        return self.audio is not None and self.output.decoder == FEATURES

    @property
    def gives_numbers(self) -> bool:
        """True if its results are measurements, or outputs as they are."""
        return self.output.decoder in ("regression", "raw")

    @property
    def gives_texts(self) -> bool:
        """True if the labels of its results are texts that it reads, of which there is no list."""
        return self.output.decoder == "ctc"

    @property
    def cascade(self) -> tuple[Variant, ...]:
        """Exits of a calibrated model, shallow first; empty for sizes, and for exits without thresholds."""
        if not self.variants[0].after or all(variant.confidence is None for variant in self.variants):
            return ()
        return self.variants[::-1]

    def exits(self, variant: str) -> tuple[Variant, ...]:
        """Return the exits that an input may take, shallow first; empty if one variant answers alone.

        For `auto` and an empty name these are all exits of a calibrated model; without such exits `auto` raises
        ModelError.
        """
        if variant == AUTO and not self.cascade:
            hint = self._without_exits()
            raise ModelError(f"{self._called}: variant = {AUTO!r} picks among exits, and {hint}")
        return self.cascade if variant in ("", AUTO) else ()

    def _without_exits(self) -> str:
        names = ", ".join(one.name for one in self.variants)
        if self.variants[0].after:
            return f"its exits have no thresholds: run `vedette optimise calibrate`, or name one of {names}"
        if len(self.variants) == 1:
            return "this model has one variant: leave `variant` out"
        return f"this model has sizes only: name one of {names}"

    def chain(self, name: str) -> tuple[Variant, ...]:
        """Return a variant and all that have to run before it, in the order in which they run.

        Raises:
            ModelError: there is no such variant, or the chain is a circle.
        """
        chain = [self.variant(name)]
        while chain[0].after:
            before = self.variant(chain[0].after)
            if before in chain:
                raise ModelError(f"{self._called}: variant {before.name!r} continues itself")
            chain.insert(0, before)
        return tuple(chain)


class Completed(Struct, frozen=True):
    """A manifest with every key.

    Attributes:
        manifest: see `Manifest`.
        sources: of the keys that the manifest file leaves out, but for defaults.
        doubts: likely mistakes, a line each, although the model can run.
    """

    manifest: Manifest
    sources: dict[tuple[str, ...], str]
    doubts: tuple[str, ...] = ()


class Model(Struct, frozen=True, weakref=True):
    """A model in memory, without the secondary ones of its manifest.

    Attributes:
        content: the `.tflite` file.
        sha256: hex digest of `content`.
        manifest: see `Manifest`.
        path: of its file, for messages.
    """

    content: bytes
    sha256: str
    manifest: Manifest
    path: str

    @property
    def is_packaged(self) -> bool:
        """True if it comes with Vedette or an installed package: its path is a name then."""
        return not Path(self.path).suffix


def read_manifest(text: str, path: str) -> TomlFile:
    """Parse a manifest without checking its keys. Raises ModelError."""
    try:
        return parse_toml(text, path)
    except ConfigError as error:
        raise ModelError(str(error)) from None


def check_manifest(file: TomlFile) -> None:
    """Check the keys and values of a manifest whose `labels` are a list already.

    Raises:
        ModelError: names every unknown key, wrong value and contradiction, each with file, line and key.
    """
    contradictions = list(_contradictions(file.data))
    try:
        convert(file.data, Manifest)
    except msgspec.ValidationError:
        pass  # collecting all faults takes 20 ms, so do it only if there is one
    else:
        if not contradictions:
            return
    raise ModelError(*file.faults(Manifest, contradictions))


def _contradictions(data: dict[str, Any]) -> Iterator[Problem]:
    """Yield values of the right type that make no sense."""
    variants, output = data.get("variants"), data.get("output")
    if variants == []:
        yield ("variants",), "`variants` is empty; leave it out for a model with one graph"
    for number, variant in enumerate(variants if isinstance(variants, list) else ()):
        if isinstance(variant, dict) and variant.get("name") == AUTO:
            keys = ("variants", number, "name")
            yield keys, f"`variants[{number}].name`: no variant can be called {AUTO!r}, which selects the cascade"
    yield from _same_names(variants if isinstance(variants, list) else [])
    labels = output.get("labels") if isinstance(output, dict) else None
    if "audio" in data and isinstance(labels, list):
        # Labels of image models have gaps and repeats (two cranes); a sound has only its label.
        counts = Counter(label for label in labels if isinstance(label, str) and label)
        if twice := [repr(label) for label, count in counts.items() if count > 1]:
            yield ("output", "labels"), f"`output.labels`: {', '.join(twice)} more than once"
    verified = data.get("verification")
    if isinstance(verified, dict) and "longest_s" in verified and "running_threshold" not in verified:
        text = "has no effect without `running_threshold`: set that, too, or leave this out"
        yield ("verification", "longest_s"), f"`verification.longest_s`: {text}"


def _same_names(variants: list[Any]) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for number, variant in enumerate(variants):
        name = variant.get("name") if isinstance(variant, dict) else None
        if isinstance(name, str) and first.setdefault(name, number) != number:
            keys = ("variants", number, "name")
            text = f"{name!r} is the name of `variants[{first[name]}]`, too: give each variant a name of its own"
            yield keys, f"`variants[{number}].name`: {text}"
