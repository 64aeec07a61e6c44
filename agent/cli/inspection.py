"""What `vedette models` tells about a model, as structs that are printed or encoded."""

from __future__ import annotations

from collections import Counter

from msgspec import Struct

from agent.compute.decode.decoder import build_decoder
from agent.compute.infer.modelfile import ModelFile, Runtime, read_modelfile, refusals
from agent.compute.tensors import TensorSpec
from agent.config import DecodeConfig
from agent.errors import ModelError
from agent.library import guessed
from agent.manifest import Manifest
from agent.storage.models import load_file

_RUNTIMES: tuple[Runtime, ...] = ("litert", "tflite-runtime")


class Listed(Struct, frozen=True):
    """A line of `vedette models list`.

    Attributes:
        name: as given.
        decoder: of its manifest.
        labels: how many.
        rungs: names, largest first.
        input: of the rung that an input comes to first; of sound also its rate and its front end.
        size: bytes of the file.
        licence: SPDX expression.
        error: why it cannot be used; empty when it can.
    """

    name: str
    decoder: str = ""
    labels: int = 0
    rungs: tuple[str, ...] = ()
    input: str = ""
    size: int = 0
    licence: str = ""
    error: str = ""


class Inspection(Struct, frozen=True):
    """What `vedette models inspect` tells.

    Attributes:
        file: as given.
        size: bytes.
        description: as the converter wrote it.
        operations: how often each occurs, over all graphs.
        quantisation: what kinds of numbers it computes with, in words.
        weights: bytes of constants by dtype.
        signatures: name → inputs and outputs; the name is empty for a file without signatures.
        metadata: names of the metadata buffers.
        manifest: its own, or guessed; None when it cannot be guessed.
        guessed: whether the manifest is a guess or from the metadata inside the file.
        decoding_error: why the manifest is missing or does not fit.
        refusals: per runtime, what it refuses.
    """

    file: str
    size: int
    description: str
    operations: dict[str, int]
    quantisation: str
    weights: dict[str, int]
    signatures: dict[str, tuple[list[str], list[str]]]
    metadata: tuple[str, ...]
    manifest: Manifest | None
    guessed: bool
    decoding_error: str
    refusals: dict[Runtime, list[str]]

    @property
    def refused(self) -> bool:
        """Whether something speaks against using it."""
        return bool(self.decoding_error) or any(self.refusals.values())

    def summary(self) -> dict[str, str]:
        """Lines of a table; `refusals` and `decoding_error` are not among them."""
        lines = {"size": f"{self.size} bytes", "description": self.description, "quantisation": self.quantisation}
        lines["weights"] = ", ".join(f"{dtype} {size} bytes" for dtype, size in self.weights.items())
        lines["operations"] = ", ".join(f"{count} {name}" for name, count in self.operations.items())
        for name, (inputs, outputs) in self.signatures.items():
            lines[f"signature {name}" if name else "tensors"] = f"{', '.join(inputs)}\n→ {', '.join(outputs)}"
        lines["metadata"] = ", ".join(self.metadata)
        if self.manifest:
            output = self.manifest.output
            origin = "guessed" if self.guessed else "manifest"
            lines["sound"] = ", ".join(_sound(self.manifest))
            lines["decoder"] = f"{output.decoder} with {len(output.labels)} labels ({origin})"
        return {key: value for key, value in lines.items() if value}


def listed(name: str) -> Listed:
    """A line for a bundled model or a file."""
    try:
        content, manifest = load_file(name)
    except ModelError as error:
        return Listed(name, error=str(error))
    try:
        modelfile = read_modelfile(content)
        manifest = manifest or guessed(content, modelfile, name)
        inputs, _ = modelfile.ends(manifest.chain("")[0].signature)
    except ModelError as error:
        return Listed(name, error=f"{name}: {error}")
    return Listed(
        name,
        manifest.output.decoder,
        len(manifest.output.labels),
        tuple(rung.name for rung in manifest.rungs),
        _input(inputs, manifest),
        len(content),
        manifest.licence,
    )


def _input(inputs: tuple[TensorSpec, ...], manifest: Manifest) -> str:
    """What an input becomes before the model takes it."""
    return " → ".join((*_sound(manifest), *map(str, inputs[:1])))


def _sound(manifest: Manifest) -> list[str]:
    return [f"{manifest.audio.rate_hz} Hz, {manifest.audio.frontend}"] if manifest.audio else []


def inspection(file: str) -> Inspection:
    """Look inside a model.

    Raises:
        ModelError: it cannot be read, or is no model.
    """
    content, manifest = load_file(file)
    try:
        modelfile = read_modelfile(content)
    except ModelError as error:
        raise ModelError(f"{file}: {error}") from None
    is_guess, problem = manifest is None, ""
    try:
        manifest = manifest or guessed(content, modelfile, file)
        _check(manifest, modelfile)
    except ModelError as error:
        problem = str(error)
    return Inspection(
        file,
        modelfile.size,
        modelfile.description,
        _histogram(modelfile),
        _quantisation(modelfile),
        modelfile.weights,
        _signatures(modelfile),
        modelfile.metadata,
        manifest,
        is_guess,
        problem,
        {runtime: refusals(modelfile, runtime) for runtime in _RUNTIMES},
    )


def _check(manifest: Manifest, modelfile: ModelFile) -> None:
    """That the decoder fits every rung."""
    for rung in manifest.rungs:
        build_decoder(manifest, *modelfile.ends(rung.signature), DecodeConfig())


def _histogram(modelfile: ModelFile) -> dict[str, int]:
    return dict(Counter(op.custom or op.name for _, op in modelfile.steps()).most_common())


def _signatures(modelfile: ModelFile) -> dict[str, tuple[list[str], list[str]]]:
    names = [signature.name for signature in modelfile.signatures] or [""]
    ends = {name: modelfile.ends(name) for name in names}
    return {name: ([*map(str, inputs)], [*map(str, outputs)]) for name, (inputs, outputs) in ends.items()}


def _quantisation(modelfile: ModelFile) -> str:
    """What an owner of the model would call it."""
    kinds = Counter(
        t.quantisation.kind
        for graph in modelfile.subgraphs
        for t in graph.tensors
        if t.size and t.dtype != "int32"
    )
    spread = ", ".join(f"{count} constants per {kind}" for kind, count in kinds.items() if kind != "none")
    if modelfile.dynamic_range:
        name = "dynamic range"
    elif spread:
        name = "static"
    else:
        name = "none"
    return " ".join(filter(None, (name, "with INT4" if modelfile.int4 else "", f"({spread})" if spread else "")))
