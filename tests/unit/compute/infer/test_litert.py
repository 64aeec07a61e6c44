"""Tests of every backend, with the runtime that is installed."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from agent.compute.infer.backends import open_session
from agent.compute.infer.litert import CpuBackend, default_threads, load_runtime, native_stderr
from agent.compute.infer.session import BackendSpec, SessionOptions
from agent.compute.infer.tensors import NullBackend
from agent.compute.manifest import Manifest, Model, OutputManifest, Variant
from agent.errors import BackendError, ModelError
from agent.models.library import open_whole_model
from tests.support import tflite_builder as build
from tests.support.delegates import COMPILER, NO_COMPILER
from tests.support.tflite_builder import Op, T


def model(content: bytes, *variants: Variant) -> Model:
    manifest = Manifest(name="m", output=OutputManifest("classify"), variants=variants or (Variant("full"),))
    return Model(content, hashlib.sha256(content).hexdigest(), manifest, "m.tflite")


def test_a_model_answers() -> None:
    session = open_session(model(build.add_model()), "cpu", SessionOptions(threads=1))
    session.input(0)[:] = [[1, 2, 3, 4]]
    session.invoke()
    assert session.output(0).tolist() == [[2, 3, 4, 5]]
    assert (session.backend, session.variant) == ("cpu", "full")


def test_a_view_is_the_tensors_own_memory() -> None:
    session = open_session(model(build.add_model()), "auto", SessionOptions())
    session.input(0)[:] = 7
    assert session.input(0).tolist() == [[7, 7, 7, 7]]


def test_a_live_view_at_invoke_is_refused_and_a_dropped_one_is_not() -> None:
    session = open_session(model(build.add_model()), "cpu", SessionOptions())
    view = session.input(0)
    with pytest.raises(BackendError, match="still alive"):
        session.invoke()
    del view
    session.invoke()
    slices = session.output(0)[0, 1:]
    with pytest.raises(BackendError, match="still alive"):
        session.invoke()
    assert slices.shape == (3,)


def test_a_variant_is_a_signature() -> None:
    content = build.add_model(signature="deep")
    session = open_session(model(content, Variant("12", "deep")), "cpu", SessionOptions(variant="12"))
    assert [spec.name for spec in session.inputs] == ["image"]
    session.input(0)[:] = 1
    session.invoke()
    assert session.output(0).tolist() == [[2, 2, 2, 2]]


@pytest.mark.parametrize("backend", [CpuBackend(), NullBackend()], ids=["cpu", "null"])
def test_a_missing_signature_names_those_that_there_are(backend: CpuBackend | NullBackend) -> None:
    content = build.add_model(signature="deep")
    with pytest.raises(ModelError, match=r"m\.tflite: .*no signature 'deeper'; .* has: deep"):
        backend.open(model(content, Variant("12", "deeper")), SessionOptions())


@pytest.mark.numerics
def test_a_session_tells_how_many_operations_xnnpack_has_taken_of_the_first_graph() -> None:
    whole = open_whole_model("small-speech")
    taken = []
    for variant in whole.manifest.variants:
        session = CpuBackend().open(whole, SessionOptions(variant.name, threads=1))
        taken.append((session.delegated, session.nodes))
        session.close()
    known = [(delegated, nodes) for delegated, nodes in taken if delegated >= 0]
    assert len(known) == 1, "of the other graphs it is not known"
    assert known[0][0] == (known[0][1] if load_runtime()[0] == "litert" else 0)


def test_quantised_tensors_tell_their_scale() -> None:
    session = open_session(
        model(build.add_model(dtype="int8", scale=0.5, zero_point=-3)), "cpu", SessionOptions()
    )
    spec = session.inputs[0]
    assert (spec.dtype, spec.scale, spec.zero_point) == ("int8", 0.5, -3)
    assert spec.real(np.array([-3, -1], np.int8)).tolist() == [0.0, 1.0]
    assert spec.stored_threshold(1.0) == -1.0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<!DOCTYPE html><html>not found</html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n",
        build.add_model()[:200],
        build.bad_dimension_model(),
        build.custom_model("edgetpu-custom-op"),
    ],
    ids=["empty", "html", "lfs", "truncated", "dimension", "edgetpu"],
)
def test_a_model_that_cannot_run_is_refused_in_one_line(content: bytes) -> None:
    with pytest.raises(ModelError) as caught:
        open_session(model(content), "cpu", SessionOptions())
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.skipif(find_spec("ai_edge_litert") is None, reason="tflite-runtime runs such a model")
def test_an_input_whose_sizes_may_change_is_named_where_the_runtime_cannot_run_it() -> None:
    weights = T("weights", (2, 4), data=np.ones((2, 4), np.float32))

    def dense(name: str, shape: tuple[int, ...], signature: tuple[int, ...]) -> Model:
        ends = [T(name, shape, signature=signature), weights, T("scores", (1, 2))]
        return model(build.write(ends, [Op("FULLY_CONNECTED", (0, 1), (2,))], inputs=(0,), outputs=(2,)))

    with pytest.raises(BackendError, match=r"m\.tflite: .*'image' has the shape \[1, \?\].*with fixed sizes"):
        open_session(dense("image", (1, 1), (1, -1)), "cpu", SessionOptions())
    assert open_session(dense("image", (1, 4), (-1, 4)), "cpu", SessionOptions()).inputs[0].shape == (1, 4)


def test_the_null_backend_has_the_models_tensors_and_no_answer() -> None:
    content = build.add_model((1, 5), dtype="int8", scale=0.5, zero_point=-3)
    null = NullBackend().open(model(content), SessionOptions())
    real = open_session(model(content), "cpu", SessionOptions())
    assert (null.inputs, null.outputs) == (real.inputs, real.outputs)
    null.input(0)[:] = 1
    null.invoke()
    assert null.output(0).tolist() == [[-3] * 5]
    null.close()
    real.close()


def test_an_unknown_backend_names_the_known() -> None:
    with pytest.raises(BackendError, match="no backend 'fpga'; known: auto, cpu, "):
        open_session(model(build.add_model()), "fpga", SessionOptions())


def test_the_null_backend_is_offered_to_nobody() -> None:
    with pytest.raises(BackendError, match="no backend 'null'; known: auto, cpu, "):
        open_session(model(build.add_model()), "null", SessionOptions())


@pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the runtime's own, of `__del__`
def test_a_library_that_is_no_delegate_is_told_from_one_that_cannot_be_loaded(tmp_path: Path) -> None:
    for name, source, told in (
        ("other.so", "int x;", "is no TFLite delegate: it has no tflite_plugin_create_delegate"),
        ("needy.so", "extern int nowhere(void); int f(void) { return nowhere(); }", "undefined symbol: nowhere"),
    ):
        library = tmp_path / name
        command = [str(COMPILER), "-shared", "-fPIC", "-Wl,-z,now", "-x", "c", "-o", str(library), "-"]
        subprocess.run(command, input=source, text=True, check=True)
        backend = CpuBackend(BackendSpec(f"external:{library}", "delegate", str(library)))
        with pytest.raises(BackendError, match=f"{library} .*{told}$"):
            backend.open(model(build.add_model()), SessionOptions())


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (4, 3), (8, 4)])
def test_a_core_stays_free(cores: int, threads: int) -> None:
    assert default_threads(cores) == threads


def test_a_machine_without_a_runtime_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.compute.infer.litert.RUNTIMES", {"litert": "no_such_runtime"})
    with pytest.raises(BackendError, match="pip install ai-edge-litert"):
        load_runtime()


def test_what_native_code_says_goes_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with native_stderr(logging.getLogger("native")):
        os.write(2, b"INFO: created a delegate\n")
    assert "INFO: created a delegate" in caplog.text


def test_dynamic_range_runs_on_litert_and_is_refused_where_it_answers_wrongly(tmp_path: Path) -> None:
    hybrid = model(build.fully_connected_model(hybrid=True))
    if load_runtime()[0] == "litert":
        open_session(hybrid, "cpu", SessionOptions()).close()
    else:
        with pytest.raises(ModelError, match="dynamic"):
            open_session(hybrid, "cpu", SessionOptions())
