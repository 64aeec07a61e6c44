"""Open the model that a step works on, also one whose outputs no decoder takes; tell what it has learned from.

A step needs the input part of the manifest for its examples. Without labels the raw outputs are compared, so that
landmarks and other outputs that the daemon cannot decode can be quantised as well.

A training writes digests of its examples into its report, and a step that makes another file of the model carries
them on. By them a later step knows whether its own parts of the examples are those of the training, whatever
path, limit and share it was given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from agent.compute.decode.completion import complete, facts_of
from agent.compute.manifest import Manifest, Model, OutputManifest
from agent.compute.tflite.read import read_modelfile
from agent.errors import ModelError, NormalisationError
from agent.models.files import load_file, model_path, report_path
from agent.models.library import open_manifest, prefixed_errors
from agent.optimise.data import Examples
from agent.optimise.report import read_report

_UNDECODED = "undecoded"
"""Stands for a decoder while a manifest is completed, so that none is guessed."""
_SAMPLE, _DIGITS = 128, 12
"""Digests of examples in a report, and characters of each."""
_HELD_OUT = (
    "{}: was trained on examples that are held out here, {} of {} that were compared, so that the figures are "
    "too good: give the --limit of its training, and the same `held_out` in [data] of the recipe"
)

_AMONG = (
    "{}: was trained on some of these examples, {} of {} that were compared: here it is surer and better than on "
    "new ones"
)


def open_source(name_or_path: str, tell: Callable[[str], None]) -> Model:
    """Open a model for a step.

    Args:
        name_or_path: see `agent.models.files.load_file`.
        tell: called with a line on each doubt about a model whose outputs cannot be decoded. Its manifest states
            no decoder.

    Raises:
        ModelError: there is no such model, it is broken, or its manifest cannot be used.
    """
    content, stated = load_file(name_or_path)
    try:
        manifest = open_manifest(name_or_path)
    except NormalisationError:
        raise
    except ModelError:
        if stated is not None and (stated.data.get("output", {}).get("decoder") or stated.data.get("variants")):
            raise
        manifest = _undecoded(name_or_path, content, {} if stated is None else stated.data, tell)
    return Model(content, hashlib.sha256(content).hexdigest(), manifest, name_or_path)


def _undecoded(
    name_or_path: str, content: bytes, keys: dict[str, object], tell: Callable[[str], None]
) -> Manifest:
    with prefixed_errors(name_or_path):
        facts = facts_of(content, read_modelfile(content))
        found = complete({**keys, "output": {"decoder": _UNDECODED}}, facts, Path(name_or_path).stem)
    for doubt in ("its outputs cannot be decoded, and are compared as they are", *found.doubts):
        tell(f"{name_or_path}: {doubt}")
    return replace(found.manifest, output=OutputManifest())


def logits_keys(model: Model, content: bytes) -> dict[str, Any]:
    """Return the keys of a result's manifest that the model's own states wrongly of it.

    A module that gives logits may belong to a file that ends in a softmax, and what is made of it has none.

    Args:
        model: whose manifest the result takes over.
        content: of the result.

    Raises:
        ModelError: the manifest cannot be read any more.
    """
    before, after = (facts_of(one, read_modelfile(one)).endings[:1] for one in (model.content, content))
    if before == after or after not in (("logits",), ("probabilities",)):
        return {}
    stated = load_file(model.path)[1]
    if stated is None or "logits" not in stated.data.get("output", {}).get("options", {}):
        return {}  # it is found in the file
    return {"output": {"options": {"logits": after == ("logits",)}}}


def learned_doubts(model: Model, seen: Examples, held_out: Examples) -> tuple[str, ...]:
    """Return a line if a model was trained on examples that are held out, as its report says.

    Args:
        model: with its report beside it; of one without, nothing is known.
        seen: examples for the step.
        held_out: those to measure on.

    Raises:
        ModelError: an example cannot be read any more.
    """
    known = learned_before(model.path, model.sha256)
    both = known & _digests(held_out) if known else set()
    # Of two that are equal, one may be in each part.
    told = both and not known <= _digests(seen)
    return (_HELD_OUT.format(model.path, len(both), len(known)),) if told else ()


def judged_by_learned(model: Model, examples: Examples) -> tuple[str, ...]:
    """Return a line if a model is judged by examples that its report says it was trained on.

    Raises:
        ModelError: an example cannot be read any more.
    """
    known = learned_before(model.path, model.sha256)
    both = known & _digests(examples) if known else set()
    return (_AMONG.format(model.path, len(both), len(known)),) if both else ()


def learned_sample(
    examples: Examples | None, model: Model | None = None, known: Collection[str] = ()
) -> tuple[str, ...]:
    """Return digests for the report of a training: the lowest, which are a random choice.

    Args:
        examples: that are trained on; None: the step trains on none.
        model: what is trained further, whose own report counts, too; None: a new one.
        known: digests of what the weights to begin with were trained on.

    Raises:
        ModelError: an example cannot be read any more.
    """
    before = learned_before(model.path, model.sha256) if model else set()
    return tuple(sorted({*(_digests(examples) if examples else ()), *before, *known})[:_SAMPLE])


def learned_before(path: str, sha256: str) -> set[str]:
    """Return the digests of examples in the report beside a model's file, which may have several manifests.

    Args:
        path: name or path of the model.
        sha256: of its file; a report of another one does not count.
    """
    with suppress(ModelError):  # there is none
        found = read_report(report_path(model_path(path)))
        return set(found.learned) if found.sha256_after == sha256 else set()
    return set()


def _digests(examples: Examples) -> set[str]:
    return {examples.digest(index)[:_DIGITS] for index in range(len(examples))}
