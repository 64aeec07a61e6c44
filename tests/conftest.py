"""Marks the tests that `scripts/test` selects, and sets how many examples hypothesis tries."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Threads of one library wait for each other by spinning, which costs the tests beside this one: a search for the
# nearest of 20,000 rows took 4 s of processor time instead of 0.2 s. Read when they are loaded.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"):
    os.environ.setdefault(_name, "1")

# How long an example takes says nothing on a machine that does other things, too; pytest has the time limits.
settings.register_profile("default", deadline=None, max_examples=25)
settings.register_profile("all", deadline=None, max_examples=200)
settings.load_profile("default")

_HERE = Path(__file__).parent
COMPAT = (
    "unit/board/test_process",
    "unit/capture/test_streams",
    "unit/capture/test_supervisor",
    "unit/cli/test_main",
    "unit/cli/test_run",
    "unit/comms/mqtt/test_connection",
    "unit/comms/mqtt/test_endpoint",
    "unit/comms/mqtt/test_link",
    "unit/comms/test_messages",
    "unit/compute/infer/test_litert",
    "unit/compute/infer/test_unprivileged",
    "unit/compute/infer/test_vetting",
    "unit/compute/infer/test_worker",
    "unit/config/test_load",
    "unit/daemon/test_daemon",
    "unit/daemon/test_reload",
    "unit/daemon/test_systemd",
    "unit/storage/spool",
    "unit/storage/test_files",
    "unit/storage/test_state",
    "unit/storage/test_tar",
    "unit/update/bundle/test_archive",
    "unit/update/bundle/test_wheels",
    "unit/update/install/test_service",
)
"""Depend on Python's version: processes, signals, sockets, threads, structs, sqlite3, tarfile, tomllib."""


_MARKERS = (
    "board: updates, full disks, boards in containers, a GPU; scripts/test runs these when their code changed",
    "compat: depends on the version of Python; scripts/test repeats these with the other one",
)


def pytest_configure(config: pytest.Config) -> None:
    for marker in _MARKERS:
        config.addinivalue_line("markers", marker)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the files in which nothing is to be repeated: importing them all takes long."""
    if config.option.markexpr != "numerics or compat" or not collection_path.name.startswith("test_"):
        return None
    is_compat = collection_path.relative_to(_HERE).as_posix().startswith(COMPAT)
    return None if is_compat or b"mark.numerics" in collection_path.read_bytes() else True


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(_HERE).as_posix().startswith(COMPAT):
            item.add_marker(pytest.mark.compat)
    # xdist gives each worker a run of neighbours at first: let each run have system tests, which mostly wait.
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    files = {path: number for number, path in enumerate(dict.fromkeys(item.path for item in items))}
    items.sort(key=lambda item: (files[item.path] % workers, files[item.path]))
