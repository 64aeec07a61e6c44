"""Open models by name or path: read, complete the manifest, and share the bytes between streams of one variant.

Functions that take the name or path of a model raise ModelError, see `open_model`.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from msgspec import Struct
from msgspec.structs import replace

from agent.compute.decode import DECODERS, lacks_labels, options_kind
from agent.compute.manifest import FEATURES, Completed, Manifest, Model, Variant
from agent.compute.tflite.model import ModelFile
from agent.compute.tflite.read import Runtime, incompatibilities, only_signature, read_modelfile
from agent.config.toml import Problem, TomlFile, problems_of
from agent.errors import ModelError, UndecodableError
from agent.models.files import load_file, preloaded
from agent.structs import convert
from agent.text import plain

if TYPE_CHECKING:
    from agent.compute.infer.tensors import Ends
    from agent.compute.infer.vetting import Vetting


log = logging.getLogger(__name__)
_NO_LABELS = (
    "[output] labels are left out: classes are published as class0, class1 and so on; name the classes in order, "
    'in a list, or by labels = "labels.txt" in a file beside the manifest, a line each'
)
_DESCRIPTIVE = (("name",), ("licence",), ("description",))
"""Keys that do not affect inference."""
_open: WeakValueDictionary[tuple[str, str, str], Model] = WeakValueDictionary()
_completions: dict[str, tuple[str, dict[str, Any], Completed]] = {}
"""Cache by name or path, since reading takes long: sha256 of the file, its manifest, and the completed
manifest."""
_without_int4: set[str] = set()
"""sha256 of files that have no weights to expand."""


class Known(Struct, frozen=True):
    """A model file with its manifest.

    Attributes:
        content: what the runtime gets: the `.tflite` file, with slow INT4 weights as INT8.
        sha256: hex digest of the file.
        size: of the file, bytes.
        stated: the manifest as written; None: there is none.
        completed: see `Completed`.
    """

    content: bytes
    sha256: str
    size: int
    stated: TomlFile | None
    completed: Completed

    @property
    def manifest(self) -> Manifest:
        return self.completed.manifest

    def remarks(self) -> list[str]:
        """List what was found or guessed, in one line, and every doubt."""
        return _remarks(self.stated.data if self.stated else {}, self.completed)


def log_guesses(stream: str, name_or_path: str) -> None:
    """Log what was guessed about a stream's open model, and warn of doubts."""
    if name_or_path in _completions:
        _, keys, completed = _completions[name_or_path]
        for remark in _remarks(keys, completed):
            log_it = log.warning if remark in completed.doubts else log.info
            log_it("stream %s: %s: %s", stream, name_or_path, remark)


def _remarks(keys: dict[str, Any], completed: Completed) -> list[str]:
    found = _describe_sources(completed.sources)
    why = "its manifest leaves keys out" if keys else "it has no manifest"
    output = completed.manifest.output
    unnamed = [_NO_LABELS] if lacks_labels(output) and output.decoder != "keyword" else []
    return [*([f"{why}: {found}"] if found else []), *completed.doubts, *unnamed]


def _describe_sources(sources: Mapping[tuple[str, ...], str]) -> str:
    """Describe in one line which keys that affect inference were found or guessed, and from what."""
    by_source: dict[str, list[str]] = {}
    for keys, source in sources.items():
        if keys not in _DESCRIPTIVE:
            by_source.setdefault(source, []).append(".".join(keys))
    return "; ".join(f"{', '.join(names)} ({source})" for source, names in by_source.items())


def open_model(
    name_or_path: str, variant: str = "", wait_s: float | None = None, vetting: Vetting | None = None
) -> Model:
    """Open a model with the variants that may run, and without the bytes of the others.

    Args:
        name_or_path: see `agent.models.files.load_file`.
        variant: its name, `auto` or empty, see `agent.compute.manifest.Manifest.exits`; with `+` appended the
            smaller sizes are opened, too.
        wait_s: longest wait for the runtime, see `agent.compute.infer.tensors.ends_of`.
        vetting: see `agent.compute.infer.tensors.ends_of`.

    Raises:
        NotYetError: the runtime has not answered in that time.
        ModelError: there is no such model, it is broken, or its manifest must say more.
    """
    known = look_up(name_or_path, wait_s=wait_s, vetting=vetting)
    content, manifest = known.content, known.manifest
    with prefixed_errors(name_or_path):
        running = _running_variants(manifest, variant)
        key = (name_or_path, known.sha256, " ".join(one.name for one in running))
        count, manifest = len(manifest.variants), replace(manifest, variants=running)
        before = _open.get(key)
        if before is not None and before.manifest == manifest:  # the manifest may have changed for the same file
            return before
        if len(running) == 1 < count:
            content = only_signature(content, running[0].signature)
    _open[key] = model = Model(content, known.sha256, manifest, name_or_path)
    return model


def open_model_without_root(name_or_path: str, variant: str = "") -> Model:
    """Like `open_model`, for a command of root's: root reads the file, and another user parses it."""
    from agent.compute.infer.unprivileged import without_root

    with preloaded([name_or_path]) as size:
        found = without_root(lambda: replace(open_model(name_or_path, variant), path=""), Model, model_bytes=size)
    return replace(found, path=name_or_path)  # the path need not be UTF-8, unlike what is sent between processes


def open_whole_model(name_or_path: str) -> Model:
    """Open a model with every variant."""
    known = look_up(name_or_path)
    return Model(known.content, known.sha256, known.manifest, name_or_path)


def open_manifest(name_or_path: str, wait_s: float | None = None) -> Manifest:
    """Return the completed manifest of a model, with every variant."""
    return look_up(name_or_path, wait_s=wait_s).manifest


def look_up(
    name_or_path: str, *, thorough: bool = False, wait_s: float | None = None, vetting: Vetting | None = None
) -> Known:
    """Read a model and its manifest, and complete the manifest.

    Args:
        name_or_path: see `agent.models.files.load_file`.
        thorough: look for doubts even if the manifest is complete and names the file's sha256.
        wait_s: see `open_model`.
        vetting: see `open_model`.
    """
    file, stated = load_file(name_or_path)
    sha256 = hashlib.sha256(file).hexdigest()
    with prefixed_errors(name_or_path):
        content = _expand(file, sha256)
    if stated is not None:
        _check_signatures(stated, content)
    keys = {} if stated is None else stated.data
    if "sha256" in keys and _says_all(keys) and not thorough:
        completed = Completed(convert({"name": plain(Path(name_or_path).stem)} | keys, Manifest), {})
    else:
        before = _completions.get(name_or_path)
        if before is None or before[:2] != (sha256, keys):
            with prefixed_errors(name_or_path):
                ask = partial(_ask_runtime, content, sha256, name_or_path, wait_s, vetting)
                completed = complete_manifest(content, stated, name_or_path, ask)
                before = sha256, copy.deepcopy(keys), completed
            _completions[name_or_path] = before
        completed = before[2]
    if stated is not None:
        _check_options(stated, completed.manifest.output.decoder)
    return Known(content, sha256, len(file), stated, completed)


def _ask_runtime(*args: Any) -> Ends:
    from agent.compute.infer.tensors import ends_of  # few files leave shapes to the runtime

    return ends_of(*args)


def _says_all(stated: Mapping[str, Any]) -> bool:
    """Return True if a manifest leaves out nothing that could be found or guessed."""
    output, picture = stated.get("output", {}), stated.get("input", {})
    decoder, options = output.get("decoder", ""), output.get("options", {})
    if decoder not in DECODERS or decoder == "ssd" or not {"labels", "score_threshold"} <= output.keys():
        return False
    if "audio" not in stated and not {"order", "resize", "mean", "std"} <= picture.keys():
        return False
    return "logits" in options or "logits" not in options_kind(decoder).__struct_fields__


def _expand(file: bytes, sha256: str) -> bytes:
    """Expand INT4 weights, see `expand_int4`. A file without any is parsed for that only once."""
    if sha256 in _without_int4:
        return file
    if file[4:8] == b"TFL3" and read_modelfile(file).int4:
        from agent.compute.tflite.expand import expand_int4

        content = expand_int4(file, installed_runtime())
        if content is not file:
            return content
    _without_int4.add(sha256)
    return file


@contextmanager
def prefixed_errors(name_or_path: str) -> Iterator[None]:
    """Prefix the model's name to errors inside.

    Raises:
        ModelError: of the same class as the one inside.
    """
    try:
        yield
    except ModelError as error:
        if str(error).startswith(f"{name_or_path}: "):
            raise
        first, *more = error.faults
        called = f"model {Path(name_or_path).stem}"
        if first.startswith((f"{called}: ", f"{called} ")):  # the name is said once
            first = first.removeprefix(called).lstrip(": ")
        raise type(error)(f"{name_or_path}: {first}", *more) from None


AND_SMALLER = "+"
"""Appended to the name of a variant, see `open_model`."""


def _running_variants(manifest: Manifest, variant: str) -> tuple[Variant, ...]:
    """Return the variants that may run: a whole cascade, the chain of one variant, deepest first, or sizes."""
    if variant.endswith(AND_SMALLER):
        return _sizes(manifest, variant.removesuffix(AND_SMALLER))
    return manifest.exits(variant)[::-1] or manifest.chain(variant)[::-1]


def _sizes(manifest: Manifest, variant: str) -> tuple[Variant, ...]:
    """Return a variant and those that need fewer multiply-adds; of exits those that run without them."""
    chosen = _running_variants(manifest, variant)
    if len(chosen) > 1:
        return chosen
    size = chosen[0].multiply_adds
    return (*chosen, *(one for one in manifest.variants if one.multiply_adds < size and not one.after))


def complete_manifest(
    content: bytes, stated: TomlFile | None, name_or_path: str, ask: Callable[[], Ends]
) -> Completed:
    """Complete a manifest by what the file says about its tensors, or else by asking the runtime.

    Raises:
        ModelError: the runtime cannot run the model, or the manifest must say more.
    """
    from agent.compute.decode.completion import complete, facts_of  # a manifest that says all does without

    keys, stem, file = ({} if stated is None else stated.data), Path(name_or_path).stem, read_modelfile(content)
    facts, name = facts_of(content, file, *_signatures(keys)), plain(stem)
    try:
        return complete(keys, facts, name)
    except ModelError as error:
        complaint = error
    _check_runs(file)
    inputs, outputs = ask()
    if (inputs, outputs) != (facts.inputs, facts.outputs) and len(keys.get("variants", ())) <= 1:
        facts = replace(facts, inputs=inputs, outputs=outputs)
        try:
            return complete(keys, facts, name)
        except ModelError as error:
            complaint = error
    raise _complaint(complaint, stated, stem)


def _complaint(error: ModelError, stated: TomlFile | None, stem: str) -> ModelError:
    """Return the error with the path of the manifest that would help, in the same class."""
    if stated is not None:
        return type(error)(f"{stated.path}: {error}")
    if isinstance(error, UndecodableError):
        return error
    return type(error)(f"write a manifest beside it ({stem}.toml): {error}")


def _signatures(keys: dict[str, object]) -> tuple[str, str]:
    """Return the signatures of the variant that takes the input, and of the one that answers by default."""
    if not keys.get("variants"):
        return "", ""
    variants = convert(keys["variants"], tuple[Variant, ...])
    chain = Manifest(variants=variants).chain("")
    return chain[0].signature, chain[-1].signature


def _check_runs(file: ModelFile) -> None:
    """Check that the runtime of this machine runs a model correctly."""
    if (runtime := installed_runtime()) and (reasons := incompatibilities(file, runtime)):
        raise ModelError(f"refused: {reasons[0]}", *reasons[1:])


def installed_runtime() -> Runtime | None:
    """Return the installed TFLite runtime, without loading it; None: there is none."""
    packages: dict[Runtime, str] = {"litert": "ai_edge_litert", "tflite-runtime": "tflite_runtime"}
    return next((name for name, package in packages.items() if importlib.util.find_spec(package)), None)


def _check_signatures(stated: TomlFile, content: bytes) -> None:
    """Check that each of several variants names its signature.

    Raises:
        ModelError: for each that does not: file, line and key, and the signatures of the file.
    """
    variants = stated.data.get("variants", ())
    unsigned = [number for number, variant in enumerate(variants) if not variant.get("signature")]
    if len(variants) < 2 or not unsigned:
        return
    names = ", ".join(repr(one.name) for one in read_modelfile(content).signatures)
    what = f"choose one of {names}" if names else "the model file has none, so that it can have one variant only"
    raise ModelError(
        *(
            f"{stated.where('variants', number)}: `variants[{number}].signature` is left out, and each of "
            f"several variants needs one: {what}"
            for number in unsigned
        )
    )


def _check_options(stated: TomlFile, decoder: str) -> None:
    """Check that a manifest's decoder and front end exist, and take its options.

    Raises:
        ModelError: each problem with file, line and key.
    """
    output, audio = stated.data.get("output", {}), stated.data.get("audio", {})
    problems = _unknown(decoder, (*DECODERS, FEATURES), "decoder", ("output", "decoder")) or problems_of(
        output.get("options", {}), options_kind(decoder), ("output", "options")
    )
    if audio:
        problems += _frontend_problems(audio["frontend"], audio.get("options", {}), audio["rate_hz"])
    if problems:
        raise ModelError(*(f"{stated.where(*keys)}: {what}" for keys, what in problems))


def _unknown(name: str, known: Collection[str], what: str, keys: tuple[str, str]) -> list[Problem]:
    if name in known:
        return []
    from agent.config.wording import nearest

    return [(keys, f"`{'.'.join(keys)}`: no {what} {name!r}{nearest(name, list(known))}")]


def _frontend_problems(name: str, options: dict[str, Any], rate_hz: int) -> list[Problem]:
    from agent.compute.infer.audio_input import BUILDERS  # models of pictures need no front end

    if problems := _unknown(name, BUILDERS, "front end", ("audio", "frontend")):
        return problems
    kind = BUILDERS[name][0]
    rate = {"rate_hz": rate_hz} if "rate_hz" in kind.__struct_fields__ else {}
    return problems_of(options | rate, kind, ("audio", "options"))
