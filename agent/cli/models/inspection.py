"""Describe a model file for `vedette models list` and `vedette models inspect`."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from agent.compute.manifest import Manifest, Model, VerificationManifest
from agent.compute.tflite.expand import expand_int4, expandable
from agent.compute.tflite.model import ModelFile, TensorSpec
from agent.compute.tflite.read import Runtime, incompatibilities, read_modelfile
from agent.config import StreamConfig
from agent.errors import ModelError
from agent.models.files import load_file
from agent.models.library import Known, installed_runtime, look_up, prefixed_errors
from agent.text import plain

if TYPE_CHECKING:
    from agent.compute.infer.session import Session


_Ends = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]
_CRASHED = re.compile(r"crashed\b.*?\b(SIG[A-Z]+)")
"""Matches the message about a crash in a worker or a first run."""
_LONG = 60
"""Longest value that is shown, characters."""
_RUNTIMES: tuple[Runtime, ...] = ("litert", "tflite-runtime")


class Listed(Struct, frozen=True):
    """A line of `vedette models list`.

    Attributes:
        name: as given.
        decoder: name.
        labels: number of labels.
        variants: names, largest first.
        input: input tensor of the first variant; for sound also rate and front end.
        size: bytes of the file.
        licence: SPDX expression.
        error: why the model cannot be used; empty: it can.
    """

    name: str
    decoder: str = ""
    labels: int = 0
    variants: tuple[str, ...] = ()
    input: str = ""
    size: int = 0
    licence: str = ""
    error: str = ""


class ModelInspection(Struct, frozen=True):
    """Report of `vedette models inspect`.

    Attributes:
        file: as given.
        size: bytes.
        description: as the converter wrote it.
        operations: count by name, over all graphs.
        quantisation: kind of quantisation, in words.
        weights: bytes of constants by dtype.
        expanded: number of INT4 weights that run as INT8 on the installed runtime.
        signatures: name → inputs and outputs; the name is empty for a file without signatures.
        metadata: names of the metadata buffers.
        manifest: completed manifest; None: keys are missing.
        sources: origin of each key that the manifest leaves out, by path such as `input.mean`; not of defaults.
        doubts: what is likely wrong although the model can be run.
        guessed: the model has no manifest of its own.
        crash: signal with which the installed runtime crashes on the model; empty: it does not.
        decoding_error: why the model cannot be decoded or opened; empty: it can.
        refusals: compatibility problems by runtime.
    """

    file: str
    size: int
    description: str
    operations: dict[str, int]
    quantisation: str
    weights: dict[str, int]
    expanded: int
    signatures: dict[str, tuple[list[str], list[str]]]
    metadata: tuple[str, ...]
    manifest: Manifest | None
    sources: dict[str, str]
    doubts: tuple[str, ...]
    guessed: bool
    crash: str
    decoding_error: str
    refusals: dict[Runtime, list[str]]

    @property
    def refused(self) -> bool:
        """Return True if the model cannot be used."""
        return bool(self.crash or self.decoding_error) or any(self.refusals.values())

    def summary(self) -> dict[str, str]:
        """Return the lines of a table, without `refusals`, `crash` and `decoding_error`."""
        lines = {"size": f"{self.size} bytes", "description": self.description, "quantisation": self.quantisation}
        lines["weights"] = ", ".join(f"{dtype} {size} bytes" for dtype, size in self.weights.items())
        if self.expanded:
            lines["weights"] += f"; {self.expanded} of the INT4 weights run as INT8, at the same scales"
        lines["operations"] = ", ".join(f"{count} {name}" for name, count in self.operations.items())
        for name, (inputs, outputs) in self.signatures.items():
            lines[f"signature {name}" if name else "tensors"] = f"{', '.join(inputs)}\n→ {', '.join(outputs)}"
        lines["metadata"] = ", ".join(self.metadata)
        if self.manifest:
            output = self.manifest.output
            origin = "guessed" if self.guessed else "manifest"
            lines["sound"] = ", ".join(_sound(self.manifest))
            labels = f"with {len(output.labels)} labels" if output.labels else "without labels"
            lines["decoder"] = f"{output.decoder} {labels} ({origin})"
            if (stated := self.manifest.verification) is not None:
                lines["verification"] = _verification(stated)
            found = {keys: source for keys, source in self.sources.items() if "." in keys}
            lines |= {keys: f"{value_at(self.manifest, keys)}: {source}" for keys, source in found.items()}
        return {key: value for key, value in lines.items() if value}


def listed(name: str) -> Listed:
    """Describe a bundled model or a file in one line."""
    try:
        known = look_up(name)
        manifest = known.manifest
        inputs, _ = read_modelfile(known.content).ends(manifest.chain("")[0].signature)
    except ModelError as error:
        return Listed(plain(name), error=str(error))
    return Listed(
        plain(name),
        manifest.output.decoder,
        len(manifest.output.labels),
        tuple(variant.name for variant in manifest.variants),
        _input(inputs, manifest),
        known.size,
        manifest.licence,
    )


def _input(inputs: tuple[TensorSpec, ...], manifest: Manifest) -> str:
    return " → ".join((*_sound(manifest), *map(str, inputs[:1])))


def _sound(manifest: Manifest) -> list[str]:
    return [f"{manifest.audio.rate_hz} Hz, {manifest.audio.frontend}"] if manifest.audio else []


def inspection(file: str) -> ModelInspection:
    """Describe a model, and open it as a stream would, in a process of its own.

    Raises:
        ModelError: the file cannot be read, or is no model.
    """
    content, stated = load_file(file)
    with prefixed_errors(file):
        modelfile = read_modelfile(content)
        refused = {
            runtime: incompatibilities(read_modelfile(expand_int4(content, runtime)), runtime)
            for runtime in _RUNTIMES
        }
    known, crash, problem, tensors = _open_or_explain(file, refused)
    return ModelInspection(
        plain(file),
        modelfile.size,
        modelfile.description,
        _histogram(modelfile),
        _quantisation(modelfile),
        modelfile.weights,
        sum(expandable(modelfile, installed_runtime()).values()),
        _signatures(modelfile, tensors),
        modelfile.metadata,
        known.manifest if known else None,
        {".".join(keys): source for keys, source in known.completed.sources.items()} if known else {},
        known.completed.doubts if known else (),
        stated is None,
        crash,
        problem,
        refused,
    )


def _open_or_explain(
    file: str, refused: dict[Runtime, list[str]]
) -> tuple[Known | None, str, str, dict[str, _Ends]]:
    """Return what is known of a model, its crash, its error, and its tensors by signature."""
    runtime = installed_runtime()
    if runtime and refused[runtime]:
        return None, "", "", {}  # opening would only repeat the refusal
    known, tensors = None, dict[str, _Ends]()
    try:
        known = look_up(file, thorough=True)
        tensors = _open_variants(known, file)
    except ModelError as error:
        if found := _CRASHED.search(str(error)):
            return known, f"the runtime crashes on this model ({found[1]})", "", tensors
        return known, "", str(error), tensors
    return known, "", "", tensors


def _open_variants(known: Known, file: str) -> dict[str, _Ends]:
    """Open a model with every variant, as `vedette run` does.

    Raises:
        ModelError: the model does not fit its decoder or front end. BackendError: the runtime cannot run it.
    """
    from agent.compute.infer.session import BackendSpec, SessionOptions
    from agent.compute.infer.worker import WorkerSession

    model, tensors = Model(known.content, known.sha256, known.manifest, file), dict[str, _Ends]()
    session = WorkerSession(model, BackendSpec(), SessionOptions())
    try:
        with prefixed_errors(file):
            check_decoder_fits(session, model)
        for variant in model.manifest.variants:
            session.select(variant.name)
            tensors[variant.signature] = session.inputs, session.outputs
    finally:
        session.close()
    return tensors


def check_decoder_fits(session: Session, model: Model) -> None:
    """Check that a stream could run a model. Raises ModelError if its decoder or front end does not fit it."""
    if model.manifest.audio is None:
        from agent.compute.vision import build_detector

        for variant in model.manifest.variants:
            build_detector(session, model, StreamConfig("test:", model.path, variant=variant.name))
        return
    config = StreamConfig(source="wav:", model=model.path)
    if model.manifest.is_embedding:
        from agent.compute.listening import UtterancePerception

        UtterancePerception("inspect", config, model, lambda *_: session)
        return
    from agent.compute.hearing import AudioPerception
    from agent.compute.infer.backends import open_for_command
    from agent.features.verification.models import open_verifier

    with ExitStack() as opened:
        if (verifier := open_verifier(model, open_for_command)) is not None:
            opened.callback(verifier.close)
        hearing = AudioPerception("inspect", config, model, lambda *_: session)
        if verifier is not None:
            hearing.verify_with(verifier)


def _verification(stated: VerificationManifest) -> str:
    names = f"{plain(Path(stated.model).name)} with {plain(Path(stated.head).name)}"
    running = max(stated.running_threshold or 0.0, stated.score_threshold)
    amid = f", amid speech {running:g}" if running > stated.score_threshold else ""
    return f"{names}, from {stated.score_threshold:g}{amid}"


def value_at(manifest: Manifest, keys: str) -> str:
    """Return the value of a key such as `input.mean` for people, cut to 60 characters."""
    value: Any = msgspec.to_builtins(manifest)
    for key in keys.split("."):
        value = value[key]
    if isinstance(value, list | tuple) and len(set(map(str, value))) == 1:
        value = value[0]
    return str(value) if len(str(value)) <= _LONG else f"{str(value)[:_LONG]}…"


def _histogram(modelfile: ModelFile) -> dict[str, int]:
    return dict(Counter(op.custom or op.name for _, op in modelfile.steps()).most_common())


def _signatures(modelfile: ModelFile, opened: dict[str, _Ends]) -> dict[str, tuple[list[str], list[str]]]:
    names = [signature.name for signature in modelfile.signatures] or [""]
    ends = {name: opened.get(name) or modelfile.ends(name) for name in names}
    return {name: ([*map(str, inputs)], [*map(str, outputs)]) for name, (inputs, outputs) in ends.items()}


def _quantisation(modelfile: ModelFile) -> str:
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
