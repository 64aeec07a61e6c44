"""Ask for the GPU, and print a line of JSON about this process: said, loaded, unchanged.

LiteRT's library for GPUs ends the process that loads it on a Cortex-A72. So it must be another process than this.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from agent.compute.infer.backends import open_session
from agent.compute.infer.benchmark import golden_inputs
from agent.compute.infer.chain import ModelChain
from agent.compute.infer.session import SessionOptions
from agent.compute.manifest import Model
from agent.errors import BackendError
from agent.models.library import open_model


def main() -> None:
    model = open_model("nanodet", "256")
    cpu = open_session(model, "cpu", SessionOptions(threads=1))
    whole = ModelChain(cpu, model.manifest)
    inputs = golden_inputs(whole.inputs, 1)
    before = whole.run_cases(inputs)
    said = _said_of_the_gpu(model)
    after = whole.run_cases(inputs)
    unchanged = all(np.array_equal(a, b) for a, b in zip(before[0], after[0], strict=True))
    print(json.dumps({"said": said, "loaded": _loaded(), "unchanged": unchanged}))


def _said_of_the_gpu(model: Model) -> str:
    """Return why the GPU cannot be used; empty: it can."""
    try:
        open_session(model, "gpu", SessionOptions()).close()
    except BackendError as error:
        return str(error)
    return ""


def _loaded() -> list[str]:
    """Return the names of the shared libraries in this process."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    paths = {Path(line.split(maxsplit=5)[5]).name for line in lines if "/" in line}
    return sorted(name for name in paths if ".so" in name)


if __name__ == "__main__":
    main()
