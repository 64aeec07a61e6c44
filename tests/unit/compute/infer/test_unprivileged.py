"""Vetting as root runs as another user, in single-threaded programs that these tests start."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import Literal

import pytest

from agent.compute.infer.delegates import device_groups
from agent.compute.infer.session import BackendSpec, SessionOptions
from agent.compute.infer.unprivileged import without_root
from agent.compute.infer.worker import WorkerSession
from agent.errors import BackendError, ModelError, VedetteError
from agent.models.files import ZOO
from agent.models.library import open_model
from tests.support import tflite_builder as build

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="root gives up its rights")
_BEGIN = """
import os, signal, sys
from pathlib import Path
from agent import child
from agent.compute.infer import unprivileged
from agent.compute.infer.unprivileged import without_root
from agent.errors import ModelError
from agent.models.library import open_model
from agent.compute.manifest import Model
from agent.models.files import preloaded

sys.executable = "/bin/sh"  # that everybody may run; nothing here is to start it

def ids():
    return [*os.getresuid(), *os.getresgid(), *os.getgroups()]

def tried(work, kind):
    try:
        return without_root(work, kind)
    except ModelError as error:
        return str(error)
"""


def alone(code: str, *args: str, prefix: Sequence[str] = ()) -> list[str]:
    """Run code in a program of its own; gives its lines."""
    command = [*prefix, sys.executable, "-c", _BEGIN + dedent(code), *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [*done.stdout.splitlines(), *done.stderr.splitlines()]


def fails(error: Exception) -> int:
    raise error


@needs_root
def test_root_gives_up_every_right_and_the_daemons_user_is_preferred(tmp_path: Path) -> None:
    code = """
    print(0 in without_root(ids, list[int]))
    print(tried(lambda: os.setuid(0), None))
    os.chown(sys.argv[1], 4711, 4712)
    child._STATE = Path(sys.argv[1])
    print(*without_root(ids, list[int])[:6])
    """
    no, error, daemon, said = alone(code, str(tmp_path))
    assert no == "False"
    assert error == "the process without root's rights ended by itself with exit status 1"
    assert daemon == "4711 4711 4711 4712 4712 4712"
    assert said == "without root: PermissionError: [Errno 1] Operation not permitted"


@needs_root
def test_what_only_root_may_read_is_read_before(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    for kind in (".tflite", ".toml"):
        (private / f"small-speech{kind}").write_bytes((ZOO / f"small-speech{kind}").read_bytes())
    code = """
    path = sys.argv[1]
    with preloaded([path, "nobody"]):
        print(without_root(lambda: open_model(path, "3"), Model) == open_model(path, "3"))
        print(tried(lambda: open_model("nobody"), Model))
    print(tried(lambda: open_model(path, "3"), Model))
    """
    same, missing, unread = alone(code, str(private / "small-speech.tflite"))
    assert same == "True"
    assert missing.startswith("no bundled model is called 'nobody'")
    assert unread.endswith("cannot be read: Permission denied")


@needs_root
def test_a_death_is_an_error_and_a_python_that_others_may_not_start_is_roots() -> None:
    code = """
    print(tried(lambda: os.kill(os.getpid(), signal.SIGKILL), None))
    sys.executable = "/root/python"
    print(without_root(os.geteuid, int))
    import threading
    threading.Thread(target=threading.Event().wait, daemon=True).start()  # as the work may leave behind
    print(without_root(os.geteuid, int))
    print(unprivileged.parsed_as_root)
    """
    death, user, again, why = alone(code)
    assert death == "the process without root's rights was killed by SIGKILL"
    assert (user, again) == ("0", "0")
    assert why == "user nobody may not run /root/python"


@needs_root
def test_a_process_that_holds_the_pipe_holds_root_no_longer_than_it_may() -> None:
    code = """
    import subprocess, time
    def leaves():
        if not os.fork():
            time.sleep(60)
    began = time.monotonic()
    def limited(work):
        try:
            return without_root(work, None, 0.5)
        except ModelError as error:
            return str(error)
    print(limited(leaves))
    print(limited(lambda: time.sleep(60)))
    print(time.monotonic() - began < 50.0)
    """
    left, slow, soon = alone(code)
    assert left == slow == "the process without root's rights took longer than 0.5 s"
    assert soon == "True"


@needs_root
def test_it_inherits_no_files_of_roots() -> None:
    code = """
    file = os.open("/etc/shadow", os.O_RDONLY)
    print(without_root(lambda: [os.readlink(f"/proc/self/fd/{one}") for one in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{one}")], list[str]).count("/etc/shadow"))
    """
    assert alone(code) == ["0"]


@needs_root
def test_a_result_has_a_bound_and_a_model_that_is_expected_comes_on_top() -> None:
    code = """
    large = 65 * 2**20
    print(tried(lambda: bytes(large), bytes))
    print(len(without_root(lambda: bytes(large), bytes, model_bytes=large)) == large)
    """
    assert alone(code) == ["the process without root's rights returned more than 64 MB", "True"]


@needs_root
@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv of util-linux")
def test_a_root_that_may_become_nobody_else_works_as_root() -> None:
    code = """
    from agent.compute.infer.session import SessionOptions
    from agent.compute.infer.vetting import VETTING
    sys.executable = sys.argv[1]
    print(without_root(os.geteuid, int), VETTING.check(open_model("small-speech", "3"), SessionOptions()))
    """
    prefix = ["setpriv", "--bounding-set=-setuid,-setgid", "--"]
    assert alone(code, sys.executable, prefix=prefix) == ["0 True"]


@pytest.fixture
def coral(tmp_path: Path) -> Path:
    """Make an Edge TPU on USB and another one on PCIe; gives the root of the file system."""
    usb = tmp_path / "sys/bus/usb/devices/1-1"
    usb.mkdir(parents=True)
    for name, text in {"idVendor": "18d1\n", "busnum": "1\n", "devnum": "4\n"}.items():
        (usb / name).write_text(text)
    for node in ("dev/bus/usb/001/004", "dev/apex_0"):
        path = tmp_path / node
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.mknod(path, stat.S_IFCHR | 0o660, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("no device nodes can be made here")
        path.chmod(0o660)
        os.chown(path, 0, 4711)
    return tmp_path


@needs_root
def test_the_groups_of_accelerators_nodes_are_kept(coral: Path) -> None:
    assert 4711 in device_groups(coral)


@needs_root
@pytest.mark.parametrize("kind", ["cpu", "delegate"])
def test_a_process_of_a_model_has_no_rights_of_roots(
    kind: Literal["cpu", "delegate"], request: pytest.FixtureRequest
) -> None:
    library = str(request.getfixturevalue("library")) if kind == "delegate" else ""
    session = WorkerSession(
        open_model("small-speech", "3"), BackendSpec(kind, kind, library, {"mode": "fast"}), SessionOptions()
    )
    status = Path(f"/proc/{session.pid}/status").read_text(encoding="utf-8")
    session.close()
    for what in ("Uid", "Gid"):
        (ids,) = re.findall(rf"^{what}:(.*)$", status, re.M)
        assert "0" not in ids.split()
    assert int(re.findall(r"^CapPrm:\s*(\w+)$", status, re.M)[0], 16) == 0


@pytest.mark.parametrize("error", [ModelError("why"), BackendError("why"), VedetteError("why")])
def test_its_errors_are_those_of_the_work(error: VedetteError) -> None:
    with pytest.raises(VedetteError, match=r"^why$") as caught:
        without_root(partial(fails, error), int)
    assert type(caught.value) is type(error)


@needs_root
def test_roots_config_check_names_the_model_that_crashes(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    (private / "bad.tflite").write_bytes(build.crashing_model())
    (private / "bad.toml").write_text('name = "bad"\n[output]\ndecoder = "classify"\n')
    config = private / "vedette.toml"
    config.write_text(f'[streams.bad]\nsource = "test:"\nmodel = "{private / "bad.tflite"}"\n')
    command = [sys.executable, "-m", "agent", "config", "check", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    *_, line = done.stderr.splitlines()
    assert re.search(r":3: \S+/bad\.tflite: crashed \S+ \S+ when it was first run \(SIGSEGV\); ", line)


@needs_root
@pytest.mark.parametrize("scheme", ["file", "dir", "wav"])
def test_a_source_in_a_folder_that_this_user_may_not_enter_is_one_problem(tmp_path: Path, scheme: str) -> None:
    if scheme == "file":
        pytest.importorskip("av")
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    (private / "clip").touch()
    config = tmp_path / "v.toml"
    model = "small-speech" if scheme == "wav" else "nanodet"
    config.write_text(f'[streams.a]\nsource = "{scheme}:{private}/clip"\nmodel = "{model}"\n')
    code = """
    from agent.daemon import check
    from agent.capture.source import open_source
    from agent.capture.sound import open_sound
    from agent.config.load import load
    from agent.errors import SourceError

    source = load(Path(sys.argv[1])).config.streams["a"].source
    os.chdir("/")
    os.chmod(Path(sys.argv[1]).parent, 0o755)
    unprivileged._import_all()
    child.drop_root()
    try:
        check.check_there(source)
    except SourceError as error:
        print(error)
    try:
        open_sound(source, 16000, stall_s=1) if source.startswith("wav:") else open_source(source, stall_s=1)
    except SourceError as error:
        print(error)
    """
    checked, run = alone(code, str(config))
    assert checked == run == f"{scheme}:{private}/clip: cannot be read: Permission denied"
