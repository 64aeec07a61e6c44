"""Models by name or path, ready for a backend; streams that run the same variant of a model share its bytes."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from agent.compute.decode.decoder import DECODERS, options_kind
from agent.compute.decode.defaults import Completed, complete, describe_sources, facts_of, lacks_labels, says_all
from agent.compute.infer.audio_input import FRONTENDS
from agent.compute.infer.audio_input import options_kind as frontend_options_kind
from agent.compute.infer.choice import Inputs, golden_inputs
from agent.compute.infer.runtime_shapes import Ends, ends_of
from agent.compute.manifest import AudioManifest, Manifest, Model, Variant
from agent.compute.tensors import TensorSpec
from agent.compute.tflite.model import ModelFile
from agent.compute.tflite.read import Runtime, incompatibilities, only_signature, read_modelfile
from agent.config.toml import Problem, TomlFile, nearest, problems_of
from agent.errors import ModelError, NormalisationError, SourceError, UndecodableError
from agent.models.files import golden_paths, load_file, preloaded
from agent.text import plain
from agent.types import Array

if TYPE_CHECKING:
    from agent.compute.infer.vetting.vetting import Vetting


log = logging.getLogger(__name__)

_NO_LABELS = (
    "[output] labels are left out: what it finds is told as class0, class1 and so on; name the classes in order, "
    'in a list, or by labels = "labels.txt" in a file beside the manifest, a line each'
)

_open: WeakValueDictionary[tuple[str, str, str], Model] = WeakValueDictionary()
_completions: dict[str, tuple[str, dict[str, Any], Completed]] = {}
"""By name or path: sha256 of the file, what its manifest says, and what was made of both: reading takes long."""

_of_old_keys: dict[str, list[str]] = {}
"""Remarks by name or path, for `tell`."""


class Known(Struct, frozen=True):
    """A model and all that is known of it.

    Attributes:
        content: the `.tflite` file.
        sha256: hex digest of it.
        stated: what its manifest says; None: it has none.
        completed: see `agent.compute.decode.defaults.Completed`.
    """

    content: bytes
    sha256: str
    stated: TomlFile | None
    completed: Completed

    @property
    def manifest(self) -> Manifest:
        """The manifest with every key."""
        return self.completed.manifest

    def remarks(self) -> list[str]:
        """List what was found or guessed, in one line, every doubt, and old keys of the manifest."""
        if self.stated is None:
            return _remarks({}, self.completed)
        return [*_remarks(self.stated.data, self.completed), *_old_keys(self.stated)]


def tell(stream: str, name_or_path: str) -> None:
    """Log what was guessed of a stream's model, which is open, and warn of what is doubtful.

    Nothing is known of a model whose manifest says everything, but for its old keys.
    """
    for remark in _of_old_keys.get(name_or_path, ()):
        log.warning("stream %s: %s", stream, remark)
    if name_or_path in _completions:
        _, keys, completed = _completions[name_or_path]
        for remark in _remarks(keys, completed):
            log_it = log.warning if remark in completed.doubts else log.info
            log_it("stream %s: %s: %s", stream, name_or_path, remark)


def _old_keys(stated: TomlFile) -> list[str]:
    if not stated.old_keys:
        return []
    changed, rewrite = ", ".join(stated.old_keys), f"`vedette config migrate {stated.path}`"
    return [f"{stated.path}: keys of an earlier version: {changed}; rename them by {rewrite}"]


def _remarks(keys: dict[str, Any], completed: Completed) -> list[str]:
    found = describe_sources(completed.sources)
    why = "its manifest leaves keys out" if keys else "it has no manifest"
    output = completed.manifest.output
    unnamed = [_NO_LABELS] if lacks_labels(output) and output.decoder != "keyword" else []
    return [*([f"{why}: {found}"] if found else []), *completed.doubts, *unnamed]


def open_model(
    name_or_path: str, variant: str = "", wait_s: float | None = None, vetting: Vetting | None = None
) -> Model:
    """The model of that name or path with the variants that may run, and nothing of the others.

    Args:
        name_or_path: see `agent.models.files.load_file`.
        variant: its name, `auto` or empty, see `agent.compute.manifest.Manifest.exits`.
        wait_s: for the runtime, if that must be asked, see `agent.compute.infer.runtime_shapes.ends_of`.
        vetting: see `agent.compute.infer.runtime_shapes.ends_of`.

    Raises:
        NotYetError: the runtime has not answered in that time.
        ModelError: there is none, it is broken, or nothing tells how to use it.
    """
    known = look_up(name_or_path, wait_s=wait_s, vetting=vetting)
    content, manifest = known.content, known.manifest
    with prefixed_errors(name_or_path):
        kept = _kept(manifest, variant)
        key = (name_or_path, known.sha256, " ".join(one.name for one in kept))
        all_there_are, manifest = len(manifest.variants), replace(manifest, variants=kept)
        before = _open.get(key)
        if before is not None and before.manifest == manifest:  # it may have been written anew for the same file
            return before
        if len(kept) == 1 < all_there_are:
            content = only_signature(content, kept[0].signature)
    _open[key] = model = Model(content, known.sha256, manifest, name_or_path)
    return model


def open_model_without_root(name_or_path: str, variant: str = "") -> Model:
    """Open a model for a command, as `open_model` does. Root reads its file, and has another user parse it.

    Args:
        name_or_path: see `open_model`.
        variant: see `open_model`.

    Raises:
        ModelError: see `open_model`.
    """
    from agent.compute.infer.vetting.unprivileged import without_root

    with preloaded([name_or_path]) as size:
        found = without_root(lambda: replace(open_model(name_or_path, variant), path=""), Model, model_bytes=size)
    return replace(found, path=name_or_path)  # which need not be UTF-8, as what is sent must be


def open_whole_model(name_or_path: str) -> Model:
    """The model of that name or path with every variant.

    Raises:
        ModelError: see `open_model`.
    """
    known = look_up(name_or_path)
    return Model(known.content, known.sha256, known.manifest, name_or_path)


def open_manifest(name_or_path: str, wait_s: float | None = None) -> Manifest:
    """The manifest of the model of that name or path, with every variant.

    Args:
        name_or_path: see `open_model`.
        wait_s: see `open_model`.

    Raises:
        ModelError: see `open_model`.
    """
    return look_up(name_or_path, wait_s=wait_s).manifest


def look_up(
    name_or_path: str, *, thorough: bool = False, wait_s: float | None = None, vetting: Vetting | None = None
) -> Known:
    """Read a model and its manifest, and complete the manifest.

    Args:
        name_or_path: see `agent.models.files.load_file`.
        thorough: look for doubts even where the manifest says everything, for exactly this file by its sha256.
        wait_s: see `open_model`.
        vetting: see `open_model`.

    Raises:
        ModelError: see `open_model`.
    """
    content, stated = load_file(name_or_path)
    if stated is not None:
        _check_signatures(stated, content)
        _of_old_keys[name_or_path] = _old_keys(stated)
    sha256, keys = hashlib.sha256(content).hexdigest(), ({} if stated is None else stated.data)
    if "sha256" in keys and says_all(keys) and not thorough:
        completed = Completed(msgspec.convert({"name": plain(Path(name_or_path).stem)} | keys, Manifest), {})
    else:
        before = _completions.get(name_or_path)
        if before is None or before[:2] != (sha256, keys):
            with prefixed_errors(name_or_path):
                ask = partial(ends_of, content, sha256, name_or_path, wait_s, vetting)
                completed = _completed(content, stated, name_or_path, ask)
                before = sha256, copy.deepcopy(keys), completed
            _completions[name_or_path] = before
        completed = before[2]
    if stated is not None:
        _check_options(stated, completed.manifest.output.decoder)
    return Known(content, sha256, stated, completed)


class Draft(Struct, frozen=True):
    """What can be written into a manifest of a model.

    Attributes:
        manifest: with every key that is known.
        sha256: of the model.
        sources: where keys came from that were found or guessed.
        missing: keys that nothing tells: of `[input]`, which has placeholders there, and `[output] labels`.
    """

    manifest: Manifest
    sha256: str
    sources: dict[tuple[str, ...], str]
    missing: tuple[tuple[str, str], ...] = ()


def draft(name_or_path: str) -> Draft:
    """Find what can be written into a manifest, also where `[input] mean` and `std` are missing.

    Raises:
        ModelError: see `open_model`.
    """
    try:
        known = look_up(name_or_path, thorough=True)
        return Draft(known.manifest, known.sha256, dict(known.completed.sources), _unnamed(known.manifest))
    except NormalisationError:
        pass
    content, stated = load_file(name_or_path)
    keys: dict[str, Any] = copy.deepcopy({} if stated is None else stated.data)
    pixels = keys.setdefault("input", {})
    missing = tuple(key for key in ("mean", "std") if key not in pixels)
    pixels |= dict.fromkeys(missing, [127.5] * 3)
    sha256 = hashlib.sha256(content).hexdigest()
    ask = partial(ends_of, content, sha256, name_or_path, None)
    found = _completed(content, TomlFile(name_or_path, keys, {}), name_or_path, ask)
    untold = (*(("input", key) for key in missing), *_unnamed(found.manifest))
    return Draft(found.manifest, sha256, found.sources, untold)


def _unnamed(manifest: Manifest) -> tuple[tuple[str, str], ...]:
    """The key of the labels where nothing tells them."""
    return (("output", "labels"),) if lacks_labels(manifest.output) else ()


@contextmanager
def prefixed_errors(name_or_path: str) -> Iterator[None]:
    """Errors inside begin with the model that they are about.

    Raises:
        ModelError: as inside, of the same kind.
    """
    try:
        yield
    except ModelError as error:
        if str(error).startswith(f"{name_or_path}: "):
            raise
        first, *more = error.faults
        raise type(error)(f"{name_or_path}: {first}", *more) from None


def _kept(manifest: Manifest, variant: str) -> tuple[Variant, ...]:
    """The variants that may run: all of a cascade, else the chain of the one asked for; deepest first."""
    return manifest.exits(variant)[::-1] or manifest.chain(variant)[::-1]


def _completed(content: bytes, stated: TomlFile | None, name_or_path: str, ask: Callable[[], Ends]) -> Completed:
    """Complete a manifest by what the file tells of its tensors; where that does not do, the runtime is asked.

    Raises:
        ModelError: the runtime cannot run it; else, something must be stated in the manifest.
    """
    keys, stem, file = ({} if stated is None else stated.data), Path(name_or_path).stem, read_modelfile(content)
    facts, name = facts_of(content, file, *_signatures(keys)), plain(stem)
    try:
        return complete(keys, facts, name)
    except ModelError as error:
        complaint = error
    check_runs(file)
    inputs, outputs = ask()
    if (inputs, outputs) != (facts.inputs, facts.outputs) and len(keys.get("variants", ())) <= 1:
        facts = replace(facts, inputs=inputs, outputs=outputs)
        try:
            return complete(keys, facts, name)
        except ModelError as error:
            complaint = error
    raise _complaint(complaint, stated, stem)


def _complaint(error: ModelError, stated: TomlFile | None, stem: str) -> ModelError:
    """An error of completing, of the same kind, that begins with the manifest where one can help."""
    if stated is not None:
        return type(error)(f"{stated.path}: {error}")
    if isinstance(error, UndecodableError):
        return error
    return type(error)(f"write a manifest beside it ({stem}.toml): {error}")


def _signatures(keys: dict[str, object]) -> tuple[str, str]:
    """Of the variant that takes the input, and of the one that answers by default."""
    if not keys.get("variants"):
        return "", ""
    variants = msgspec.convert(keys["variants"], tuple[Variant, ...])
    chain = Manifest(variants=variants).chain("")
    return chain[0].signature, chain[-1].signature


def check_runs(file: ModelFile) -> None:
    """Refuse a model that the runtime of this machine cannot run, or gets wrong.

    Raises:
        ModelError: every reason.
    """
    if (runtime := installed_runtime()) and (reasons := incompatibilities(file, runtime)):
        raise ModelError(f"refused: {reasons[0]}", *reasons[1:])


def installed_runtime() -> Runtime | None:
    """The runtime that models run on here, without loading it; None: there is none."""
    packages: dict[Runtime, str] = {"litert": "ai_edge_litert", "tflite-runtime": "tflite_runtime"}
    return next((name for name, package in packages.items() if importlib.util.find_spec(package)), None)


def _check_signatures(stated: TomlFile, content: bytes) -> None:
    """Refuse several variants of which one does not say which signature of the file runs it.

    Raises:
        ModelError: each with file, line and key, and the signatures that there are.
    """
    variants = stated.data.get("variants", ())
    silent = [number for number, variant in enumerate(variants) if not variant.get("signature")]
    if len(variants) < 2 or not silent:
        return
    names = ", ".join(repr(one.name) for one in read_modelfile(content).signatures)
    what = f"choose one of {names}" if names else "the model file has none, so that it can have one variant only"
    raise ModelError(
        *(
            f"{stated.where('variants', number)}: `variants[{number}].signature` is left out, and each of "
            f"several variants needs one: {what}"
            for number in silent
        )
    )


def _check_options(stated: TomlFile, decoder: str) -> None:
    """Refuse a decoder or a front end that does not exist, and options in a manifest that it does not take.

    Raises:
        ModelError: each with file, line and key.
    """
    output, audio = stated.data.get("output", {}), stated.data.get("audio", {})
    problems = _unknown(decoder, DECODERS, "decoder", ("output", "decoder")) or problems_of(
        output.get("options", {}), options_kind(decoder), ("output", "options")
    )
    if audio:
        name, options = audio["frontend"], audio.get("options", {})
        problems += _unknown(name, FRONTENDS, "front end", ("audio", "frontend")) or problems_of(
            options | _rate(name, audio["rate_hz"]), frontend_options_kind(name), ("audio", "options")
        )
    if problems:
        raise ModelError(*(f"{stated.where(*keys)}: {what}" for keys, what in problems))


def _unknown(name: str, known: Collection[str], what: str, keys: tuple[str, str]) -> list[Problem]:
    if name in known:
        return []
    return [(keys, f"`{'.'.join(keys)}`: no {what} {name!r}{nearest(name, list(known))}")]


def _rate(frontend: str, rate_hz: int) -> dict[str, int]:
    """What a front end is told besides its options."""
    return {"rate_hz": rate_hz} if "rate_hz" in frontend_options_kind(frontend).__struct_fields__ else {}


# Golden inputs of a model: its manifest's pictures and recordings, prepared as the model takes them.

_Case = Callable[[Path, TensorSpec], Array]


def golden(model: Model) -> Inputs:
    """What a device has to answer as the CPU does.

    Shapes with noise over them where there are no golden files.

    Raises:
        ModelError: a golden file is not beside the manifest; when it is called, one cannot be used, or the
            inputs are too large.
    """
    files = golden_paths(model.path, model.manifest)

    def cases(specs: Sequence[TensorSpec]) -> list[list[Array]]:
        with prefixed_errors(model.path):
            if not files:
                return golden_inputs(specs)
            case = _picture(model) if model.manifest.audio is None else _sound(model.manifest.audio)
            return [[case(file, specs[0]), *golden_inputs(specs[1:], 1)[0]] for file in files]

    return cases


def _picture(model: Model) -> _Case:
    from agent.capture.images import read_picture
    from agent.compute.infer.image_input import ImageInput

    def case(file: Path, spec: TensorSpec) -> Array:
        try:
            image = read_picture(file)
        except SourceError as error:
            raise ModelError(f"golden file {error}") from None
        if image is None:
            raise ModelError(f"golden file {file}: expected a picture that can be decoded")
        tensor = np.empty(spec.shape, spec.dtype)
        ImageInput(spec, model.manifest.input).fill(tensor, image, "bgr")
        return tensor

    return case


def _sound(audio: AudioManifest) -> _Case:
    from agent.capture.audio_file import read_whole
    from agent.compute.infer.audio_input import AudioInput, build_frontend

    def case(file: Path, spec: TensorSpec) -> Array:
        try:
            samples = read_whole(file, audio.rate_hz)
        except SourceError as error:
            raise ModelError(f"golden file {error}") from None
        frontend = build_frontend(audio)
        rows = AudioInput(spec, audio, frontend)
        tensor = np.empty(spec.shape, spec.dtype)
        rows.fill(tensor)
        for _ in rows.feed(frontend(samples)):
            rows.fill(tensor)  # the newest window that is whole
        return tensor

    return case
