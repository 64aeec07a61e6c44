"""A real GPU backend: LiteRT's, over Vulkan; Mesa's llvmpipe computes it where there is no GPU."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from agent.compute.infer.backend import Options, Plan, open_session
from agent.compute.infer.finding import candidates
from agent.compute.infer.litert import load_runtime
from agent.compute.infer.measure import distance, golden_inputs, tolerance
from agent.compute.infer.whole import Whole
from agent.compute.infer.worker import WorkerSession
from agent.errors import BackendError
from agent.library import open_whole_model

(FOUND,) = candidates(["gpu"])
pytestmark = pytest.mark.skipif(
    FOUND.plan is None or load_runtime()[0] != "litert", reason=f"no GPU backend: {FOUND.missing}"
)


def test_it_answers_as_the_cpu_does_at_every_depth() -> None:
    model = open_whole_model("small-speech")
    cpu, gpu = open_session(model, "cpu", Options()), open_session(model, "gpu", Options())
    assert isinstance(gpu, WorkerSession)
    for deepest in ("3", "4", "12"):
        manifest = replace(model.manifest, rungs=model.manifest.chain(deepest)[::-1])
        one, other = Whole(cpu, manifest), Whole(gpu, manifest)
        assert (other.inputs, other.outputs) == (one.inputs, one.outputs)
        cases = golden_inputs(one.inputs, 1)
        off = distance(one.answers(cases), other.answers(cases), one.outputs)
        assert 0.0 <= off <= tolerance(manifest, one.outputs)
    assert gpu.usage().rss_mb > 50.0
    gpu.close()
    cpu.close()


def test_an_npu_that_is_not_there_says_so() -> None:
    with pytest.raises(BackendError) as caught:
        WorkerSession(open_whole_model("small-speech"), Plan("npu", "accelerator", "NPU"), Options())
    assert "npu" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
