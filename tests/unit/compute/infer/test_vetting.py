"""A model runs in another process before it runs in this one; what crashes there is an error here."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
from msgspec.structs import replace

from agent.compute.infer import vetting
from agent.compute.infer.backends import open_session
from agent.compute.infer.litert import CpuBackend, CpuSession, load_runtime, runtime_version
from agent.compute.infer.session import AUTO, SessionOptions
from agent.compute.infer.vetting import Vetting, VettingLimits, identity
from agent.compute.manifest import Manifest, Model, OutputManifest, Variant
from agent.daemon.streams import perception
from agent.errors import BackendError, ModelError
from agent.models.library import open_model, open_whole_model
from tests.support import tflite_builder as build
from tests.support.delegates import identity_model
from tests.support.publishing import wait_for

SIZES = (Variant("large", "large"), Variant("small", "small"))


def model(content: bytes, variants: tuple[Variant, ...] = (Variant("full"),)) -> Model:
    return Model(content, "", Manifest("odd", OutputManifest("classify"), variants=variants), "odd.tflite")


def endless_model(number: int) -> Model:
    """Ends for hardly any input; no two numbers have the same file."""
    return model(build.looping_model() + bytes(number))


class Notes:
    """A record in memory."""

    def __init__(self) -> None:
        self.kept: dict[vetting.Identity, str] = {}

    def read(self, model: Model) -> str | None:
        return self.kept.get(identity(model))

    def write(self, model: Model, reason: str) -> None:
        self.kept[identity(model)] = reason


@pytest.fixture(autouse=True)
def _nothing_is_known() -> Iterator[None]:
    vetting.KNOWN.clear()
    yield
    vetting.KNOWN.clear()


def children() -> set[str]:
    """Pids of processes that try models."""
    found = subprocess.run(
        ["pgrep", "-P", str(os.getpid()), "-f", "vetting_process"], capture_output=True, text=True
    )
    return set(found.stdout.split())


def test_a_model_that_crashes_the_runtime_is_refused_with_the_signals_name() -> None:
    notes, bad = Notes(), model(build.crashing_model())
    runtime = runtime_version(load_runtime()[0])
    with pytest.raises(ModelError, match=rf"^odd\.tflite: crashed {runtime} when it was first run \(SIGSEGV\);"):
        Vetting(notes).open(bad, SessionOptions())
    assert notes.kept[identity(bad)].startswith(f"crashed {runtime}")


@pytest.mark.parametrize("backend", ["cpu", AUTO])
def test_no_backend_of_this_process_opens_it(backend: str) -> None:
    with pytest.raises(ModelError, match=r"\(SIGSEGV\)"):
        open_session(model(build.crashing_model()), backend, SessionOptions())


def test_any_of_its_graphs_may_be_the_one_that_crashes() -> None:
    large = build.constant_graph({"scores": np.zeros((1, 4), np.float32)})
    small = build.Graph(
        [build.T("x", (5, 0)), build.T("y", (1, 4))], [build.Op("SOFTMAX", (0,), (1,))], (0,), (1,)
    )
    keys = [
        build.Signature("large", {"image": 0}, {"scores": large.outputs[0]}),
        build.Signature("small", {"x": 0}, {"y": 1}, 1),
    ]
    content = build.write(large.tensors, large.operations, large.inputs, large.outputs, keys, more=[small])
    crashing = build.unknown_to_xnnpack(content)
    assert Vetting().check(model(crashing, SIZES[:1]), SessionOptions())
    with pytest.raises(ModelError, match=r"when it was first run \(SIGSEGV\)"):
        Vetting().check(model(crashing, SIZES), SessionOptions())
    if load_runtime()[0] == "litert":  # whose XNNPACK refuses it
        with pytest.raises(
            BackendError, match=r"^odd\.tflite: variant 'small' cannot be run: XNNPack delegate failed"
        ):
            Vetting().check(model(content, SIZES), SessionOptions())


def test_what_is_known_costs_nothing_and_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    notes, sound, bad = Notes(), open_model("small-speech", "3"), model(build.crashing_model())
    notes.kept = {identity(sound): "", identity(bad): "crashed ago"}
    monkeypatch.setattr(vetting, "ChildProcess", None)
    assert Vetting(notes).check(sound, SessionOptions())
    with pytest.raises(ModelError, match=r"^odd\.tflite: crashed ago$"):
        Vetting(notes).check(bad, SessionOptions())


def test_a_model_that_does_not_end_is_told_by_its_cpu_time() -> None:
    endless = endless_model(1)
    notes = Notes()
    with pytest.raises(ModelError, match=r"hung .* when it was first run: it took over 1 s of CPU time;"):
        Vetting(notes, VettingLimits(cpu_s=1)).check(endless, SessionOptions(threads=1))
    assert notes.kept[identity(endless)].startswith("hung")


def test_one_that_is_not_done_in_time_is_not_held_against_it() -> None:
    """The board may be busy: only CPU time is the model's own."""
    endless = endless_model(2)
    notes = Notes()
    with pytest.raises(BackendError, match=r"cannot be vetted: its process hangs: vetting took longer than 1 s"):
        Vetting(notes, VettingLimits(within_s=1.0)).check(endless, SessionOptions(threads=1))
    assert notes.kept == {}


def test_a_lack_of_memory_is_not_held_against_it_either(tmp_path: Path) -> None:
    large = open_model(str(identity_model(tmp_path, steps=3, size=60_000_000)))
    notes = Notes()
    with pytest.raises(BackendError):
        Vetting(notes, VettingLimits(memory=2**27)).check(large, SessionOptions(threads=1))
    assert notes.kept == {}
    assert identity(large) not in vetting.KNOWN


def test_limits_of_the_daemon_itself_stay_and_its_models_run() -> None:
    program = """
        import resource
        from agent.compute.infer.session import SessionOptions
        from agent.compute.infer.vetting import VETTING
        from agent.models.library import open_model
        for kind, limit in (("AS", 3_000_000_000), ("DATA", 2_000_000_000), ("CPU", 50), ("CORE", 0)):
            resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (limit, limit))
        print(VETTING.check(open_model("small-speech", "3"), SessionOptions(threads=1)))
    """
    command = [sys.executable, "-c", dedent(program)]
    assert subprocess.run(command, capture_output=True, text=True, check=False).stdout == "True\n"


def test_a_model_that_hangs_on_pictures_but_not_on_noise_is_refused() -> None:
    with pytest.raises(ModelError, match=r"hung .* when it was first run"):
        Vetting(limits=VettingLimits(cpu_s=2)).check(model(build.looping_model()), SessionOptions(threads=1))


def test_a_model_that_hangs_only_later_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.compute.infer.vetting.OPEN_S", 1.0)
    sleeper = model(build.looping_model())
    vetting.KNOWN[identity(sleeper)] = vetting.Outcome("", time.monotonic())
    with closing(Vetting().open(sleeper, SessionOptions(threads=1))) as session:
        session.input(0)[...] = 0.5
        session.invoke()
        assert session.output(0)[0] == 0.0
        session.input(0)[...] = 0.0
        with pytest.raises(BackendError, match="hangs"):
            session.invoke()


def test_a_model_that_takes_gigabytes_only_later_fails_alone() -> None:
    filling = model(build.filling_model())
    vetting.KNOWN[identity(filling)] = vetting.Outcome("", time.monotonic())
    with closing(Vetting().open(filling, SessionOptions(threads=1))) as session:
        session.input(0)[...] = 1.0
        session.invoke()
        session.input(0)[...] = 5e8
        with pytest.raises(BackendError):
            session.invoke()


def test_a_model_whose_output_changes_its_size_is_refused() -> None:
    filling = model(build.filling_model())
    vetting.KNOWN[identity(filling)] = vetting.Outcome("", time.monotonic())
    with closing(Vetting().open(filling, SessionOptions(threads=1))) as session:
        session.input(0)[...] = 3.0
        with pytest.raises(ModelError, match=r"output 0 has the shape \[3\], and had \[1\] before"):
            session.invoke()


def test_a_model_whose_cost_is_fixed_runs_in_this_process() -> None:
    with closing(Vetting().open(model(build.add_model()), SessionOptions(threads=1))) as session:
        assert isinstance(session, CpuSession)


def test_tensors_that_no_board_has_memory_for_are_refused_before_the_runtime_sees_them() -> None:
    tensors = [build.T("x", (1, 2**29)), build.T("y", (1, 2**29))]
    huge = model(build.write(tensors, [build.Op("LOGISTIC", (0,), (1,))], (0,), (1,)))
    for opening in (Vetting().check, CpuBackend().open):
        with pytest.raises(ModelError, match=r"^odd\.tflite: refused: its tensors need at least 4096 MB "):
            opening(huge, SessionOptions(threads=1))


def test_few_models_are_tried_at_once_in_the_order_in_which_they_came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vetting, "_AT_ONCE", 1)
    monkeypatch.setattr(vetting, "_TRIALS", vetting._Trials())
    sound = open_whole_model("small-speech")
    models = [replace(sound, content=sound.content + bytes(n)) for n in range(11, 16)]
    started = [vetting.outcome(one, SessionOptions(threads=1), VettingLimits(), None) for one in models]
    others, most = children(), 0
    while not all(one.done() for one in started):
        most = max(most, len(children() - others))
    assert most <= 1
    assert [one.result() for one in started] == [""] * 5


def test_whoever_does_not_want_to_wait_is_told_so_and_the_outcome_comes() -> None:
    slow = endless_model(3)
    notes, limits = Notes(), VettingLimits(cpu_s=1)
    assert not Vetting(notes, limits).check(slow, SessionOptions(threads=1), 0.01)
    wait_for(lambda: bool(notes.kept))


def test_the_runtimes_own_refusal_is_passed_on() -> None:
    refused = model(build.write([build.T("x", (1, 4))], [build.Op("ADD", (0,), (0,))], (0,), (0,)))
    with pytest.raises(BackendError, match=r"^odd\.tflite: (litert|tflite-runtime) cannot run it: "):
        Vetting().check(refused, SessionOptions())


def test_many_at_once_are_tried_once_each_and_no_process_remains() -> None:
    before = children()
    sound = open_whole_model("small-speech")
    others = [replace(sound, content=sound.content + bytes(n)) for n in range(1, 4)]
    with ThreadPoolExecutor(8) as pool:
        ways = list(pool.map(lambda one: Vetting().check(one, SessionOptions(threads=1)), [sound, *others] * 3))
    assert all(ways)
    assert len(vetting.KNOWN) == 4
    wait_for(lambda: children() <= before)


def test_a_model_gets_few_descriptors_and_no_rights_of_roots() -> None:
    assert not Vetting(limits=VettingLimits(cpu_s=2)).check(endless_model(4), SessionOptions(threads=1), 0.0)
    forks: list[str] = []

    def forked() -> bool:
        for pid in children():
            forks.extend(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return bool(forks)

    wait_for(forked)
    fork = Path("/proc") / forks[0]
    wait_for(lambda: re.search(r"Max cpu time +2 ", (fork / "limits").read_text()) is not None)
    assert re.search(r"Max core file size +0 ", (fork / "limits").read_text())
    (users,) = re.findall(r"Uid:\t(.*)", (fork / "status").read_text())
    assert "0" not in users.split()
    pipes = [one for one in (fork / "fd").iterdir() if str(one.readlink()).startswith("pipe:")]
    assert len(pipes) == 1  # for its outcome
    os.kill(int(forks[0]), signal.SIGKILL)  # else the model of the next test waits until this one has been tried


def test_a_stream_is_prepared_when_its_model_has_been_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    from agent.config import StreamConfig

    monkeypatch.setattr(perception, "PREPARE_S", 60.0)
    sense = perception.prepare_perception("porch", StreamConfig("test:", "nanodet", variant="256"))
    assert sense is not None
    sense.close()
    assert identity(open_model("nanodet", "256")) in vetting.KNOWN


def test_a_daemon_that_is_killed_leaves_no_process_that_tries_a_model(tmp_path: Path) -> None:
    (tmp_path / "slow.tflite").write_bytes(endless_model(0).content)
    (tmp_path / "slow.toml").write_text('name = "slow"\n[output]\ndecoder = "classify"\n')
    program = """
        import os, subprocess, sys
        from agent.compute.infer.session import SessionOptions
        from agent.compute.infer.vetting import VETTING
        from agent.models.library import open_model
        VETTING.check(open_model(sys.argv[1]), SessionOptions(threads=1), 1.0)
        subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "vetting_process"])
        os.kill(os.getpid(), 9)
    """
    command = [sys.executable, "-c", dedent(program), str(tmp_path / "slow.toml")]
    (pid,) = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    wait_for(lambda: subprocess.run(["pgrep", "-g", pid], capture_output=True, check=False).returncode == 1)
