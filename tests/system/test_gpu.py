"""A real GPU backend: LiteRT's, over Vulkan; Mesa's llvmpipe computes it where there is no GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from agent.compute.infer.backends import open_session, resolve_backend
from agent.compute.infer.benchmark import golden_inputs, output_error, tolerance
from agent.compute.infer.chain import ModelChain
from agent.compute.infer.delegates import device_nodes, probe_delegates
from agent.compute.infer.litert import load_runtime
from agent.compute.infer.session import BackendSpec, SessionOptions
from agent.compute.infer.worker import WorkerSession
from agent.config import SelectionConfig
from agent.daemon.measurements import StoredMeasurements
from agent.errors import BackendError
from agent.models.golden import golden
from agent.models.library import open_model, open_whole_model
from agent.storage.state import MeasurementFiles

(FOUND,) = probe_delegates(["gpu"])
pytestmark = [
    pytest.mark.board,
    pytest.mark.timeout(400),  # llvmpipe computes on the same cores as everything else
    pytest.mark.skipif(
        FOUND.plan is None or load_runtime()[0] != "litert", reason=f"no GPU backend: {FOUND.missing}"
    ),
]


def test_it_answers_as_the_cpu_does_at_every_depth() -> None:
    model = open_whole_model("small-speech")
    cpu, gpu = open_session(model, "cpu", SessionOptions()), open_session(model, "gpu", SessionOptions())
    assert isinstance(gpu, WorkerSession)
    for deepest in ("3", "4", "12"):
        manifest = replace(model.manifest, variants=model.manifest.chain(deepest)[::-1])
        one, other = ModelChain(cpu, manifest), ModelChain(gpu, manifest)
        assert (other.inputs, other.outputs) == (one.inputs, one.outputs)
        cases = golden_inputs(one.inputs, 1)
        off = output_error(one.run_cases(cases), other.run_cases(cases), one.outputs)
        assert 0.0 <= off <= tolerance(manifest, one.outputs)
    assert gpu.usage().rss_mb > 50.0
    gpu.close()
    cpu.close()


@pytest.mark.skipif(bool(device_nodes("gpu")), reason="a GPU is here")
def test_a_gpu_without_a_device_node_is_left_out_by_the_selection(tmp_path: Path) -> None:
    surveys = StoredMeasurements(MeasurementFiles(tmp_path), SelectionConfig(candidates=("gpu",), threads_max=1))
    asked: list[str] = []
    made = surveys.measure(open_model("small-speech", "3"), surveys.delegates(), asked.append)
    assert set(asked) == {"cpu, 1 thread"}
    assert "computes on the CPU" in made.measured[-1].refused


def test_an_npu_that_is_not_there_says_so() -> None:
    with pytest.raises(BackendError) as caught:
        WorkerSession(
            open_whole_model("small-speech"), BackendSpec("npu", "accelerator", "NPU"), SessionOptions()
        )
    assert "npu" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_it_computes_in_the_precision_that_was_asked_for() -> None:
    model = open_model("small-speech", "3")
    cpu = open_session(model, "cpu", SessionOptions())
    whole = ModelChain(cpu, model.manifest)
    cases = golden(model)(whole.inputs)
    right, answers = whole.run_cases(cases), {}
    for name in ("gpu", "gpu-f32"):
        session = WorkerSession(model, resolve_backend(name), SessionOptions(), deadline_s=60.0)
        answers[name] = ModelChain(session, model.manifest).run_cases(cases)
        assert session.backend == name
        assert output_error(right, answers[name], whole.outputs) <= tolerance(model.manifest, whole.outputs)
        session.close()
    cpu.close()
    assert any(not np.array_equal(a, b) for a, b in zip(answers["gpu"][0], answers["gpu-f32"][0], strict=True))
