"""What a stream's model finds: its kind and its labels, from the manifest alone.

The TFLite runtime is not asked about the model, which may take long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Literal

from msgspec import Struct

from agent.compute.decode import DECODERS
from agent.compute.manifest import Manifest
from agent.config import StreamConfig
from agent.config.features import SecondaryConfig
from agent.errors import ModelError
from agent.models.library import open_manifest

DEEPEST = 3
"""Most secondary models one after the other: vehicle → plate → text → its language would be four models."""
MOST = 8
"""Most secondary models of one stream: each holds its weights and its tensors in memory."""

Kind = Literal["things", "verdicts", "sounds", "words", "numbers", "texts"]
"""Kind of findings: things with a place; verdicts on the whole picture; sounds; words; measurements; texts."""
IN_PICTURES: tuple[Kind, ...] = ("things", "verdicts", "numbers", "texts")
_NO_LABELS = ("", "???")
"""Labels in published lists that stand for no class."""
_NO_WORDS = ("unknown", "silence")
_VERDICTS = ("classify",)


class Findings(Struct, frozen=True):
    """What a stream's model finds.

    Attributes:
        kind: of the findings; None: not known, since the model cannot be opened.
        labels: that the model may find, in its order.
        unit: of measurements; empty: none.
        attributes: names of what secondary models tell about an object.
    """

    kind: Kind | None = None
    labels: tuple[str, ...] = ()
    unit: str = ""
    attributes: tuple[str, ...] = ()


ModelReader = Callable[[Mapping[str, StreamConfig]], dict[str, Findings]]
"""Returns what the model of each stream finds, by the stream's name."""


def findings_of(config: StreamConfig) -> Findings:
    """Return what a stream's model finds."""
    try:
        manifest = open_manifest(config.model, wait_s=0.0)
    except ModelError:
        return Findings()
    kind = _kind(manifest)
    unit = str(manifest.output.options.get("unit", ""))
    attributes = tuple(attribute_names(config, manifest)) if kind == "things" else ()
    return Findings(kind, _labels(manifest, config, kind), unit, attributes)


def all_findings(streams: Mapping[str, StreamConfig]) -> dict[str, Findings]:
    """Return what the model of each stream finds, by the stream's name."""
    return {name: findings_of(stream) for name, stream in streams.items()}


def findings_without_root(streams: Mapping[str, StreamConfig]) -> dict[str, Findings]:
    """Return the same as `all_findings`. Root reads the models as another user."""
    from agent.compute.infer.unprivileged import without_root
    from agent.models.files import preloaded

    with preloaded(stream.model for stream in streams.values()):
        return without_root(partial(all_findings, streams), dict[str, Findings])


def _kind(manifest: Manifest) -> Kind:
    if manifest.gives_numbers:
        return "numbers"
    if manifest.gives_texts:
        return "texts"
    if not manifest.has_tracks:
        return "words"
    if manifest.audio is not None:
        return "sounds"
    return "verdicts" if manifest.output.decoder in _VERDICTS else "things"


def _labels(manifest: Manifest, config: StreamConfig, kind: Kind) -> tuple[str, ...]:
    output = manifest.output
    if kind == "texts":
        return ()
    none = output.options.get("ignore", _NO_WORDS) if kind == "words" else _NO_LABELS
    row = DECODERS.get(output.decoder)
    labels = output.labels or ((row.label,) if row and row.label else ())
    asked = config.decode.labels
    return tuple(dict.fromkeys(one for one in labels if one not in none and (one in asked or not asked)))


def secondary_configs(config: StreamConfig, manifest: Manifest) -> tuple[SecondaryConfig, ...]:
    """Return what a stream runs on the objects of its model."""
    return manifest.secondary if config.secondary is None else config.secondary


def attribute_names(config: StreamConfig, manifest: Manifest) -> Iterator[str]:
    """Yield the names of the attributes of a stream's objects."""
    waiting = [(one, 1) for one in secondary_configs(config, manifest)]
    for _ in range(MOST):
        if not waiting:
            return
        one, depth = waiting.pop(0)
        yield one.name
        with suppress(ModelError):
            after = open_manifest(one.model, wait_s=0.0).secondary if depth < DEEPEST else ()
            waiting += [(each, depth + 1) for each in after]
