"""Count the files of `agent/` that a frame, a command and an update run through, and the modules that are loaded.

The daemon runs in a process with a profiler in every thread, on the packaged clip, with a real mosquitto. A file
counts if at least one of its functions is called. For the frame: in all threads but the daemon's own, the
governor's and those of the board's sensors, which run by the clock, for two seconds up to the acknowledgement of
an event. For the command, of a stream that is off: in all threads from its arrival to its answer, each of three
times, without the functions that the daemon's own thread and those others call by the clock. What runs at import
does not count.

For the update: `vedette update apply FILE --here` in a process of its own, from its command line until a full
bundle is committed, without the start of the program, which every command shares. Slots, journal, bundle,
signature and configuration are real, in a folder of `tests/support/pretend_board.py`, which replaces systemd and
the daemon, the installation of the wheels, and the check of this machine against the bundle's target. So what the
new version runs of itself (`update selftest`, `config check`) does not count.

Loaded modules are those of a daemon with the shortest configuration, nine lines, four seconds after its first
event.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import common

AGENT = str(common.ROOT / "agent") + os.sep
MOST = {"frame_files": 45, "command_files": 22, "update_files": 24, "loaded_modules": 130, "loaded_lines": 28_000}
AFTER_S = 4.0
BY_CLOCK = ("governor", "sensors-")
"""Beginnings of the names of threads that run by the clock, besides the daemon's own."""


def main() -> None:
    common.arguments(__doc__ or "").parse_args()
    with tempfile.TemporaryDirectory() as name, common.mosquitto() as port:
        folder = Path(name)
        frame = {file for own, file, _ in counted(folder / "frame", port, wait_event)[0] if not own}
        idle, *answers = counted(folder / "command", port, send_commands)
        command = {file for _, file, _ in set.intersection(*answers) - {one for one in idle if one[0]}}
        update = counted_update(folder)
        sizes = counted_modules(folder / "loaded", port)
    paths = {"frame": frame, "command": command, "update": update}
    for what, files in paths.items():
        print(f"{what}: {len(files)} files")
        print("\n".join(f"  {file}" for file in sorted(files)))
    print(f"loaded: {len(sizes)} modules, {sum(sizes.values())} lines")
    print("\n".join(f"  {size:4} {name}" for name, size in sorted(sizes.items())))
    figures = {f"{what}_files": float(len(files)) for what, files in paths.items()}
    figures |= {"loaded_modules": float(len(sizes)), "loaded_lines": float(sum(sizes.values()))}
    common.conclude("paths", figures, {name: f"<= {limit}" for name, limit in MOST.items()})


def counted(folder: Path, port: int, occasion: Any) -> list[set[tuple[bool, str, str]]]:
    """Return what ran after each signal to a daemon: whether in its own thread, file, function."""
    folder.mkdir()
    config, out = folder / "vedette.toml", folder / "files"
    config.write_text(
        f'[mqtt]\nhost = "127.0.0.1"\nport = {port}\ncommands = true\n[device]\nname = "{folder.name}"\n'
        f'[storage]\nstate_dir = "{folder / "state"}"\n[health]\nevery_s = 600\n[selection]\nafter_s = 100000\n'
        f'[streams.bench]\nsource = "file:{common.CLIP}?pace=realtime&loop=1"\nmodel = "nanodet"\n',
        encoding="utf-8",
    )

    def profile(daemon: subprocess.Popen[bytes]) -> signal.Signals:
        occasion(folder.name, port, daemon)
        return signal.SIGUSR2

    rows = told_by("--run", config, out, profile)
    rounds = json.loads("".join(rows))
    return [{(own, file, function) for own, file, function in one} for one in rounds]


def told_by(
    mode: str, config: Path, out: Path, wait: Callable[[subprocess.Popen[bytes]], signal.Signals]
) -> list[str]:
    """Run a daemon in a mode of this program; return what it writes after the signal that `wait` returns."""
    env = {**os.environ, "PYTHONPATH": str(common.ROOT)}
    daemon = subprocess.Popen([sys.executable, __file__, mode, str(config), str(out)], env=env)
    try:
        daemon.send_signal(wait(daemon))
        for _ in range(100):
            if out.exists():
                return out.read_text(encoding="utf-8").splitlines()
            time.sleep(0.1)
        raise SystemExit("the daemon has not told what it uses")
    finally:
        daemon.terminate()
        daemon.wait()


def counted_modules(folder: Path, port: int) -> dict[str, int]:
    """Return the modules of `agent/` that a daemon has loaded, with their lines."""
    folder.mkdir()
    config, out = folder / "vedette.toml", folder / "modules"
    config.write_text(
        f'[mqtt]\nhost = "127.0.0.1"\nport = {port}\n[device]\nname = "loaded"\n[storage]\n'
        f'state_dir = "{folder / "state"}"\n[streams.front]\n'
        f'source = "file:{common.CLIP}?pace=realtime&loop=1"\nmodel = "nanodet"\n',
        encoding="utf-8",
    )

    def run_for_a_while(_: subprocess.Popen[bytes]) -> signal.Signals:
        next(events(port, "loaded"))
        time.sleep(AFTER_S)
        return signal.SIGUSR1

    rows = (row.split() for row in told_by("--load", config, out, run_for_a_while))
    return {name: int(size) for name, size in rows}


def counted_update(folder: Path) -> set[str]:
    """Return the files that an update runs through, from a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(common.ROOT)}
    out = folder / "files"
    subprocess.run([sys.executable, __file__, "--update", str(folder / "board"), str(out)], check=True, env=env)
    return set(out.read_text(encoding="utf-8").splitlines())


def wait_event(device: str, port: int, daemon: subprocess.Popen[bytes]) -> None:
    """Profile two seconds, and on until an event has come and had time to be acknowledged."""
    messages = events(port, device)
    next(messages)
    time.sleep(5)  # what vetted the model has ended
    daemon.send_signal(signal.SIGUSR1)
    began = time.monotonic_ns()
    while next(messages) < began + 2e9:
        pass
    time.sleep(0.3)


def send_commands(device: str, port: int, daemon: subprocess.Popen[bytes]) -> None:
    """Profile a daemon with nothing to do, then three commands, of a stream that is off: no frame is counted."""
    next(events(port, device))
    ask = [sys.executable, "-m", "agent", "command", "--host", "127.0.0.1", "--port", str(port), device, "bench"]
    subprocess.run([*ask, "enabled", "off"], check=True, cwd=common.ROOT, stdout=subprocess.DEVNULL)
    time.sleep(6)  # the stream has stopped, and its state was published
    daemon.send_signal(signal.SIGUSR1)
    time.sleep(12)
    for threshold in ("0.4", "0.5", "0.6"):
        daemon.send_signal(signal.SIGUSR1)
        subprocess.run([*ask, "threshold", threshold], check=True, cwd=common.ROOT, stdout=subprocess.DEVNULL)


def events(port: int, device: str) -> Iterator[int]:
    """Yield when each event of a device comes, in ns of the monotonic clock, for a minute."""
    from agent.comms.consumer import BrokerOptions, Subscriber

    subscriber = Subscriber(BrokerOptions("127.0.0.1", port))
    subscriber.start()
    for message in subscriber.messages(time.monotonic() + 60):
        if message is not None and message.device == device and message.kind == "events":
            yield message.received_ns


def run(config: str, out: str) -> None:
    """Run the daemon with a profiler, which begins to count anew at SIGUSR1, and ends at SIGUSR2."""
    rounds: list[set[tuple[bool, str, str]]] = []
    on, own = threading.Event(), threading.get_ident()
    by_clock = threading.local()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and on.is_set() and code.co_filename.startswith(AGENT):
            if not hasattr(by_clock, "is_it"):
                name = threading.current_thread().name
                by_clock.is_it = threading.get_ident() == own or name.startswith(BY_CLOCK)
            rounds[-1].add((by_clock.is_it, code.co_filename.removeprefix(AGENT), code.co_qualname))

    def off(*_: Any) -> None:
        on.clear()
        Path(out + ".new").write_text(json.dumps([list(seen) for seen in rounds]), encoding="utf-8")
        Path(out + ".new").replace(out)

    def begin(*_: Any) -> None:
        rounds.append(set())
        on.set()

    signal.signal(signal.SIGUSR1, begin)
    signal.signal(signal.SIGUSR2, off)
    threading.setprofile(profile)
    sys.setprofile(profile)
    sys.argv = ["vedette", "run", "-c", config]
    from agent.__main__ import main as vedette

    vedette()


def load(config: str, out: str) -> None:
    """Run the daemon; SIGUSR1 writes which modules it has loaded."""

    def write(*_: Any) -> None:
        files = {name: one.__file__ for name, one in sorted(sys.modules.items()) if name.split(".")[0] == "agent"}
        rows = [
            f"{name} {len(Path(file).read_text(encoding='utf-8').splitlines())}"
            for name, file in files.items()
            if file
        ]
        Path(out + ".new").write_text("\n".join(rows), encoding="utf-8")
        Path(out + ".new").replace(out)

    signal.signal(signal.SIGUSR1, write)
    sys.argv = ["vedette", "run", "-c", config]
    from agent.__main__ import main as vedette

    vedette()


def apply_update(folder: str, out: str) -> None:
    """Apply a bundle to a board in a folder with a profiler, and write the files that were run through."""
    import pytest

    from agent.cli.main import vedette
    from agent.update.install import health_check
    from tests.support.pretend_board import Board

    Path(folder).mkdir()
    files: set[str] = set()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(AGENT) and not importing(frame):
            files.add(file.removeprefix(AGENT))

    with pytest.MonkeyPatch.context() as patch:
        board = Board(Path(folder), patch)
        bundle = board.bundle()
        patch.setenv("VEDETTE_ROOT", str(board.where.root))
        patch.setattr(health_check, "Systemd", lambda: board.service)
        sys.setprofile(profile)
        failed = vedette(["update", "apply", str(bundle), "--here"], standalone_mode=False)
        sys.setprofile(None)
        if failed:
            raise SystemExit("the update was not committed")
    Path(out).write_text("\n".join(files), encoding="utf-8")


def importing(frame: FrameType | None) -> bool:
    """Return True if a module of `agent/` is being imported."""
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_code.co_filename.startswith(AGENT):
            return True
        frame = frame.f_back
    return False


if __name__ == "__main__":
    modes = {"--run": run, "--load": load, "--update": apply_update}
    modes[sys.argv[1]](*sys.argv[2:]) if sys.argv[1:2] and sys.argv[1] in modes else main()
