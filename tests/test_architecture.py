"""Rules on imports: a forbidden import fails the build."""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.cli.main import _MODULES, _VERBS
from agent.features import FEATURES
from tests.conftest import COMPAT

ROOT = Path(__file__).parent.parent
AGENT = ROOT / "agent"

LINES_WARN, LINES_MAX = 500, 800
MODULES_MAX = 20
"""In one folder. A verb of the command line is a file of its own and is not counted."""

BASE = {
    "agent.backoff",
    "agent.child",
    "agent.types",
    "agent.errors",
    "agent.health",
    "agent.html_page",
    "agent.spans",
    "agent.structs",
    "agent.text",
}
"""Modules that every package may import."""

MAY_IMPORT = {
    "board": set(),
    "config": {"agent.board"},
    "capture": {"agent.config", "agent.board"},
    "compute": {"agent.config", "agent.board"},
    "storage": {"agent.config"},
    "comms": {"agent.config"},
    "models": {"agent.capture", "agent.compute", "agent.storage", "agent.config"},
    "optimise": {
        "agent.features.fusion",
        "agent.features.screening",
        "agent.features.verification",
        "agent.models",
        "agent.capture",
        "agent.compute",
        "agent.storage",
        "agent.config",
    },
    "update": {"agent.models", "agent.compute", "agent.storage", "agent.board", "agent.config"},
    "update/fleet": {"agent.update", "agent.storage", "agent.config.toml", "agent.config.wording"},
    "daemon": {
        "agent.models",
        "agent.capture",
        "agent.compute",
        "agent.storage",
        "agent.comms",
        "agent.board",
        "agent.config",
        "agent.features.FEATURES",
    },
    "features": {
        "agent.daemon",
        "agent.models",
        "agent.capture",
        "agent.compute",
        "agent.storage",
        "agent.comms",
        "agent.board",
        "agent.config",
    },
}
"""Package → what it may import besides itself and `BASE`. The command line may import all."""

PARTS = ("capture", "compute", "storage", "comms")
"""The four that must never know of each other."""

FORBIDDEN = {
    "capture": {"sqlite3", "paho"},
    "compute": {"sqlite3", "paho", "socket", "requests", "urllib.request", "http.client"},
    "storage": {"cv2", "ai_edge_litert", "tflite_runtime", "paho", "socket"},
    "update": {"sqlite3", "paho", "socket", "requests", "urllib.request", "http.client"},
    "update/fleet": {"cv2", "numpy", "rich", "ansible"},
    "comms": {"cv2", "ai_edge_litert", "tflite_runtime", "sqlite3", "tempfile", "shutil"},
}

NAMES = {"ansible-core": "ansible"}
"""Distributions whose module has another name than theirs."""


def extras() -> set[str]:
    """Modules of the optional dependencies in `pyproject.toml` that are none of the daemon's own."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    own = {_module(line) for line in project["dependencies"]} | {"numpy", "tflite_runtime"}
    optional = {_module(line) for lines in project["optional-dependencies"].values() for line in lines}
    return optional - own | {"agent.optimise", "torch", "tensorflow", "picamera2", "PIL", "scipy"}


def _module(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name, requirement
    return NAMES.get(name[0].lower(), name[0].lower().replace("-", "_"))


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
SOUND = ", ".join(
    (
        "agent.cli.run",
        "agent.daemon.daemon",
        "agent.daemon.streams.pipeline",
        "agent.capture.streams",
        "agent.compute.hearing",
    )
)
"""Modules that run on a board with microphones only."""


def modules() -> list[Path]:
    return sorted(AGENT.rglob("*.py"))


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    """Return the syntax tree of a module, its root first."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def dotted(node: ast.expr) -> str:
    """Return a name as `a.b.c`; of what a call or another expression gives, the names after it."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def imports(path: Path) -> Iterator[str]:
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def ours(name: str) -> bool:
    """Return True for a module of the agent, or a name in one: `agent.__version__` is neither."""
    return name.startswith("agent.") and not name.startswith("agent.__")


def packages() -> list[tuple[str, Path]]:
    return [(package, path) for package in MAY_IMPORT for path in sorted((AGENT / package).rglob("*.py"))]


def test_the_packages_exist() -> None:
    assert {package for package, _ in packages()} == set(MAY_IMPORT)
    top = {path.name for path in AGENT.iterdir() if (path / "__init__.py").exists()}
    assert top == {package for package in MAY_IMPORT if "/" not in package} | {"cli"}


@pytest.mark.parametrize(("package", "path"), packages(), ids=lambda value: str(getattr(value, "name", value)))
def test_a_package_imports_only_what_it_may(package: str, path: Path) -> None:
    may = MAY_IMPORT[package] | BASE | {f"agent.{package.replace('/', '.')}"}
    wrong = [name for name in imports(path) if ours(name) and not within(name, may)]
    assert wrong == [], f"{path.relative_to(ROOT)} imports from another package"


@pytest.mark.parametrize("part", PARTS)
def test_capture_compute_storage_and_comms_know_nothing_of_each_other(part: str) -> None:
    others = {f"agent.{other}" for other in PARTS if other != part}
    for path in (AGENT / part).rglob("*.py"):
        wrong = [name for name in imports(path) if within(name, others)]
        assert wrong == [], f"{path.relative_to(ROOT)} imports from another package"


TABLE = AGENT / "features" / "__init__.py"
"""Rows of the features: strings and conditions, which the core may read."""


def test_there_is_no_circle_between_packages() -> None:
    arrows: dict[str, set[str]] = {}
    for path in modules():
        package = path.relative_to(AGENT).parts[0].removesuffix(".py")
        if not package.startswith("__") and path != TABLE:
            to = {
                name.split(".")[1] for name in imports(path) if ours(name) and name != "agent.features.FEATURES"
            }
            arrows.setdefault(package, set()).update(to)
    done: list[str] = []
    while len(done) < len(arrows):
        free = [one for one in arrows if one not in done and arrows[one] <= {one, *done}]
        assert free, f"a circle between {sorted(set(arrows) - set(done))}"
        done += free


def test_there_is_no_circle_of_files() -> None:
    """Late imports, and those for types alone, count too."""
    command = [sys.executable, str(ROOT / "scripts" / "structure"), "--json"]
    told = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert told["circles_of_files"] == []


def test_a_feature_knows_no_other_and_the_table_knows_none() -> None:
    for path in (AGENT / "features").rglob("*.py"):
        own = path.parent.name if path != TABLE else "-"
        features = {name for name in imports(path) if within(name, {"agent.features"})}
        wrong = [name for name in features if not within(name, {f"agent.features.{own}"})]
        assert wrong == [], f"{path.relative_to(ROOT)} imports from another feature"


def test_each_folder_of_a_feature_has_a_row() -> None:
    folders = {path.name for path in (AGENT / "features").iterdir() if (path / "__init__.py").exists()}
    assert {feature.name for feature in FEATURES} == folders


@pytest.mark.parametrize(("package", "path"), packages(), ids=lambda value: str(getattr(value, "name", value)))
def test_a_package_imports_no_library_of_another(package: str, path: Path) -> None:
    wrong = [name for name in imports(path) if within(name, FORBIDDEN.get(package, set()))]
    assert wrong == [], f"{path.relative_to(ROOT)} imports a library of another package"


WRITERS = {
    "__main__.py": "/dev/null in place of a closed stdin, stdout or stderr",
    "board/process.py": "copies of stderr, and the names of threads in /proc",
    "capture/devices.py": "a V4L2 device, which takes its settings",
    "capture/media.py": "a container in memory, for its header",
    "child.py": "a setting of the process in /proc",
    "cli/main.py": "/dev/null in place of a closed stdout",
    "cli/update.py": "/dev/null in place of a closed stdout",
    "compute/av_encoding.py": "a container in memory, for its header",
    "compute/infer/unprivileged.py": "a pipe to the parent",
}
"""Modules that open something for writing that is not a file."""


def writes(path: Path) -> Iterator[int]:
    """Lines that open something for writing."""
    for node in nodes(path):
        if isinstance(node, ast.Attribute) and node.attr in ("write_text", "write_bytes", "imwrite", "tofile"):
            yield node.lineno
        if isinstance(node, ast.Call) and dotted(node.func).rpartition(".")[2] in ("open", "fdopen"):
            words = [arg.value for arg in ast.walk(node) if isinstance(arg, ast.Constant)]
            modes = [word for word in words if isinstance(word, str) and re.fullmatch("[rwaxbt+]{1,3}", word)]
            if any(set(mode) & set("wax+") for mode in modes) or re.search("O_(WRONLY|RDWR)", ast.unparse(node)):
                yield node.lineno


def test_only_storage_opens_files_for_writing() -> None:
    outside = [path for path in modules() if not path.is_relative_to(AGENT / "storage")]
    lines = {str(path.relative_to(AGENT)): list(writes(path)) for path in outside}
    assert {path: found for path, found in lines.items() if found and path not in WRITERS} == {}
    assert [path for path in WRITERS if not lines.get(path)] == []


def loaded_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_importing_the_daemon_loads_no_extra() -> None:
    assert loaded_after("import agent.daemon.daemon") & extras() == set()


def test_importing_the_daemon_loads_nothing_of_the_updates() -> None:
    loaded = loaded_after("import agent.daemon.daemon, agent.cli.run")
    assert [name for name in loaded if within(name, {"agent.update"})] == []


def test_importing_the_daemon_loads_nothing_that_measures_or_runs_models_elsewhere() -> None:
    loaded = loaded_after("import agent.daemon.daemon, agent.cli.run")
    infer = "agent.compute.infer"
    lazy = {f"{infer}.benchmark", f"{infer}.failover", f"{infer}.worker"}
    assert [name for name in loaded if within(name, lazy)] == []


def test_a_board_that_is_updated_loads_nothing_of_the_fleet() -> None:
    loaded = loaded_after("import agent.update.install.updater, agent.cli.update")
    assert [name for name in loaded if within(name, {"agent.update.fleet"})] == []


def test_importing_the_daemon_loads_nothing_that_only_sound_needs() -> None:
    loaded = loaded_after("import agent.daemon.daemon, agent.capture.streams")
    assert loaded & {"sounddevice", "soundfile", "soxr"} == set()


def test_a_board_of_microphones_loads_neither_opencv_nor_av() -> None:
    assert loaded_after(f"import {SOUND}") & {"cv2", "av"} == set()


def test_checking_a_configuration_of_sound_loads_neither_opencv_nor_av(tmp_path: Path) -> None:
    file = tmp_path / "sound.toml"
    sound = AGENT / "models" / "zoo" / "spoken.flac"
    file.write_text(f'[streams.ear]\nsource = "wav:{sound}"\nmodel = "small-speech"\n')
    code = f"import os\nos.geteuid = lambda: 1000\nfrom pathlib import Path\nimport {SOUND}\n"
    code += "from agent.daemon.check import problems\n"  # root would check in a fork that loads all
    assert loaded_after(f"{code}assert problems(Path({str(file)!r})) == []") & {"cv2", "av"} == set()


def test_the_help_loads_nothing_heavy() -> None:
    loaded = loaded_after("from agent.cli.main import vedette\nvedette(['--help'], standalone_mode=False)")
    assert loaded & HEAVY == set()


@pytest.mark.parametrize("verb", sorted(_VERBS))
def test_a_verb_loads_nothing_heavy_before_it_is_called(verb: str) -> None:
    assert loaded_after(f"import agent.cli.{_MODULES.get(verb, verb)}") & HEAVY == set()


def test_configuring_loads_no_runtime() -> None:
    assert loaded_after("import agent.config.load") & {"cv2", "ai_edge_litert", "paho", "rich"} == set()


def test_no_module_is_too_long() -> None:
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in modules()}
    long = [f"{path.relative_to(ROOT)}: {size}" for path, size in sizes.items() if size > LINES_WARN]
    if long:
        warnings.warn(f"modules over {LINES_WARN} lines: {', '.join(long)}", stacklevel=1)
    assert [f"{path.relative_to(ROOT)}: {size}" for path, size in sizes.items() if size > LINES_MAX] == []


def test_no_folder_has_too_many_modules() -> None:
    verbs = {AGENT / "cli" / f"{verb}.py" for verb in _VERBS}
    counts: dict[str, int] = {}
    for path in modules():
        if path.name != "__init__.py" and path not in verbs:
            folder = str(path.parent.relative_to(ROOT))
            counts[folder] = counts.get(folder, 0) + 1
    assert {folder: count for folder, count in counts.items() if count > MODULES_MAX} == {}


def test_models_are_opened_in_this_process_after_they_ran_in_another() -> None:
    may = {"litert.py", "vetting.py", "vetting_process.py", "worker_main.py"}
    users = {path for path in AGENT.rglob("*.py") if "CpuBackend(" in path.read_text(encoding="utf-8")}
    profiler = AGENT / "optimise" / "profile_worker.py"
    assert users <= {AGENT / "compute" / "infer" / name for name in may} | {profiler}


def test_types_are_prepared_by_one_thread_at_a_time() -> None:
    wrong = []
    for path in modules():
        for node in nodes(path):
            if path != AGENT / "structs.py" and isinstance(node, ast.Call):
                called = dotted(node.func)
                typed = called.endswith("Decoder") or any(word.arg == "type" for word in node.keywords)
                if called == "msgspec.convert" or (called.startswith("msgspec.") and typed):
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {called}")
    assert wrong == [], "agent.structs does that"


def test_no_class_name_is_defined_twice() -> None:
    places: dict[str, list[str]] = {}
    for path in modules():
        (module,) = (node for node in nodes(path) if isinstance(node, ast.Module))
        for node in module.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_each_entry_of_the_compat_list_selects_a_test() -> None:
    here = Path(__file__).parent
    files = [path.relative_to(here).as_posix() for path in here.rglob("test_*.py")]
    assert [entry for entry in COMPAT if not any(file.startswith(entry) for file in files)] == []


def test_only_models_and_the_gate_are_shown_pictures_without_masks() -> None:
    """What stores, sends or shows pictures takes `Frame.image`, which is always masked."""
    masked_here = {"agent/types.py", "agent/capture/camera.py", "agent/capture/streams.py"}
    perceives = {"agent/compute/vision.py"}
    perceives |= {"agent/features/inspection/part.py", "agent/features/shadow/part.py"}
    words = re.compile(r"\b(unmasked|model_image)\b")
    found = {
        str(path.relative_to(ROOT)) for path in (ROOT / "agent").rglob("*.py") if words.search(path.read_text())
    }
    assert found == masked_here | perceives


def test_only_the_gate_is_shown_a_decoders_memory() -> None:
    """`Frame.pixels` may be a picture that is not masked yet only while `agent/capture` has it."""
    words = re.compile(r"frame\.luma\b|\bframe\.pixels\b|\bleft\.pixels\b|\breplaced\.pixels\b")
    found = {
        str(path.relative_to(ROOT)) for path in (ROOT / "agent").rglob("*.py") if words.search(path.read_text())
    }
    assert found == {"agent/capture/streams.py", "agent/compute/vision.py"}
