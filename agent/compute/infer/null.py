"""The null backend: the tensors of a model and no computing. For tests, and to measure everything else."""

from __future__ import annotations

from agent.compute.infer.backend import Options
from agent.compute.infer.modelfile import read_modelfile
from agent.manifest import Model


class NullBackend:
    """Opens models whose every output is the zero point: no detection."""

    def open(self, model: Model, options: Options) -> NullSession:
        """See `Backend.open`."""
        return NullSession(model, read_modelfile(model.content), options.rung)
