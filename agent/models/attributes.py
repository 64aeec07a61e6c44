"""Names of the attributes that secondary models give to a stream's objects, without asking the TFLite runtime."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from agent.compute.manifest import Manifest
from agent.config import StreamConfig
from agent.config.secondary import SecondaryConfig
from agent.errors import ModelError
from agent.models.library import open_manifest

DEEPEST = 3
"""Most secondary models one after the other: vehicle → plate → text → its language would be four models."""
MOST = 8
"""Most secondary models of one stream: each holds its weights and its tensors in memory."""


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
