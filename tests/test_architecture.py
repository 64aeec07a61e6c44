"""The house rules, read off the imports: a wrong arrow fails the build."""

from __future__ import annotations

import ast
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
AGENT = ROOT / "agent"
SIZE_LIMIT, SIZE_MOST = 500, 800
"""Lines: a module above the first is printed, one above the second fails."""

FLOW = {
    "agent.messages",
    "agent.clips",
    "agent.errors",
    "agent.config",
    "agent.deviceconfig",
    "agent.hosts",
    "agent.text",
    "agent.manifest",
    "agent.manifestparts",
    "agent.plaintext",
    "agent.secretfile",
    "agent.stderr",
    "agent.tomlfile",
}
"""What every room may know."""

MAY_IMPORT = {
    "capture": {"agent.capture"},
    "compute": {"agent.compute"},
    "storage": {"agent.storage"},
    "comms": {"agent.comms"},
    "health": {"agent.health"},
    "fleet": {"agent.fleet", "agent.storage", "agent.update"},
    "update": {
        "agent.update",
        "agent.storage",
        "agent.compute",
        "agent.health",
        "agent.configfile",
        "agent.library",
        "agent.profiles",
    },
}

FORBIDDEN = {
    "capture": {"sqlite3", "paho"},
    "compute": {"sqlite3", "paho", "socket", "requests", "urllib.request", "http.client"},
    "storage": {"cv2", "ai_edge_litert", "tflite_runtime", "paho", "socket"},
    "update": {"sqlite3", "paho", "socket", "requests", "urllib.request", "http.client"},
    "fleet": {"sqlite3", "paho", "socket", "cv2", "numpy", "rich", "ansible"},
    "comms": {"cv2", "ai_edge_litert", "tflite_runtime", "sqlite3", "tempfile", "shutil"},
}

EXTRAS = {
    "amqtt",
    "picamera2",
    "tensorflow",
    "torch",
    "matplotlib",
    "scipy",
    "PIL",
    "mlperf_loadgen",
    "agent.optimise",
}
HEAVY = {
    "cv2",
    "numpy",
    "ai_edge_litert",
    "tflite_runtime",
    "sounddevice",
    "soundfile",
    "soxr",
    "paho",
    "rich",
    "msgspec",
}


def modules() -> list[Path]:
    return sorted(AGENT.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def rooms() -> list[tuple[str, Path]]:
    return [(room, path) for room in MAY_IMPORT for path in sorted((AGENT / room).rglob("*.py"))]


def test_the_rooms_are_there() -> None:
    assert {room for room, _ in rooms()} == set(MAY_IMPORT)


@pytest.mark.parametrize(("room", "path"), rooms(), ids=lambda value: str(getattr(value, "name", value)))
def test_a_room_imports_only_itself_and_what_flows(room: str, path: Path) -> None:
    wrong = [
        name
        for name in imports(path)
        if within(name, {"agent"}) and not within(name, MAY_IMPORT[room] | FLOW) and name != "agent"
    ]
    assert wrong == [], f"{path.relative_to(ROOT)} reaches into another room"


@pytest.mark.parametrize(("room", "path"), rooms(), ids=lambda value: str(getattr(value, "name", value)))
def test_a_room_keeps_to_its_trade(room: str, path: Path) -> None:
    wrong = [name for name in imports(path) if within(name, FORBIDDEN.get(room, set()))]
    assert wrong == [], f"{path.relative_to(ROOT)} does another room's work"


@pytest.mark.parametrize("room", ["compute", "comms", "capture", "update", "fleet"])
def test_only_storage_writes_files(room: str) -> None:
    for path in (AGENT / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("write_text", "write_bytes", "imwrite"), f"{path}:{node.lineno}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
                modes = [a.value for a in node.args[1:2] if isinstance(a, ast.Constant)]
                assert not any(set(str(mode)) & set("wax+") for mode in modes), f"{path}:{node.lineno}"


def loaded_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_importing_the_daemon_loads_no_extra() -> None:
    assert loaded_after("import agent.daemon") & EXTRAS == set()


def test_importing_the_daemon_loads_nothing_of_the_updates() -> None:
    loaded = loaded_after("import agent.daemon, agent.cli.run")
    assert [name for name in loaded if within(name, {"agent.update", "agent.fleet"})] == []


def test_a_board_that_is_updated_loads_nothing_of_the_fleet() -> None:
    loaded = loaded_after("import agent.update.applying, agent.cli.update")
    assert [name for name in loaded if within(name, {"agent.fleet"})] == []


def test_importing_the_daemon_loads_nothing_that_only_sound_needs() -> None:
    loaded = loaded_after("import agent.daemon, agent.capture.listener")
    assert loaded & {"sounddevice", "soundfile", "soxr"} == set()


def test_the_help_loads_nothing_heavy() -> None:
    loaded = loaded_after("from agent.cli.main import vedette\nvedette(['--help'], standalone_mode=False)")
    assert loaded & HEAVY == set()


def test_configuring_loads_no_runtime() -> None:
    assert loaded_after("import agent.configfile") & {"cv2", "ai_edge_litert", "paho", "rich"} == set()


def test_sizes_of_modules_are_reported() -> None:
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in modules()}
    large = [f"{path.relative_to(ROOT)}: {size}" for path, size in sizes.items() if size > SIZE_LIMIT]
    if large:
        warnings.warn(f"modules over {SIZE_LIMIT} lines: {', '.join(large)}", stacklevel=1)
    assert max(sizes.values()) <= SIZE_MOST


def test_models_are_opened_in_this_process_after_they_ran_in_another() -> None:
    may = {"litert", "vetting", "vetting_main", "worker_main", "profile_main"}
    users = {path.stem for path in AGENT.rglob("*.py") if "CpuBackend(" in path.read_text(encoding="utf-8")}
    assert users <= may
