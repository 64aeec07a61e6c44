"""Workers of a search that are killed at random, on a real PostgreSQL and behind Optuna's own server."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

KILLS = 6
PAUSE_S = (3.0, 9.0)
SERVE = (
    "import optuna, sys; store = optuna.storages.RDBStorage(sys.argv[1]); "
    "optuna.storages.run_grpc_proxy_server(store, port=int(sys.argv[2]))"
)


@contextmanager
def postgresql() -> Iterator[str]:
    """A PostgreSQL of our own on a loopback port; the address of an empty database."""
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
    if programs is None:
        raise SystemExit("--kill needs PostgreSQL: apt-get install postgresql")
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name, "data"), free_port()
        Path(name).chmod(0o777)  # the server has a user of its own
        quiet: dict[str, Any] = {"cwd": name, "check": True, "stdout": subprocess.DEVNULL}
        subprocess.run([*user, programs / "initdb", "-D", folder, "-U", "vedette", "-A", "trust"], **quiet)
        started = [
            *user,
            str(programs / "postgres"),
            "-D",
            str(folder),
            "-p",
            str(port),
            "-k",
            name,
            "-h",
            "127.0.0.1",
        ]
        with subprocess.Popen(started, cwd=name, stderr=subprocess.DEVNULL) as server:
            try:
                wait_for(port)
                time.sleep(2.0)
                admin = ["-h", "127.0.0.1", "-p", str(port), "-U", "vedette"]
                subprocess.run([programs / "createdb", *admin, "studies"], **quiet)
                yield f"postgresql://vedette@127.0.0.1:{port}/studies"
            finally:
                server.send_signal(signal.SIGINT)


@contextmanager
def grpc() -> Iterator[str]:
    """Optuna's server in a process of its own, before a database in a file."""
    with tempfile.TemporaryDirectory() as name:
        port = free_port()
        command = [sys.executable, "-c", SERVE, f"sqlite:///{name}/study.db", str(port)]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
            try:
                wait_for(port)
                yield f"grpc://127.0.0.1:{port}"
            finally:
                server.terminate()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for(port: int) -> None:
    for _ in range(600):
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise SystemExit("a server has not started within a minute")


def until_the_end(begin: Callable[[], subprocess.Popen[str]], workers: int) -> int:
    """Run workers, kill some and begin as many anew, until all have ended; return how many were killed."""
    chance, running, killed = random.Random(0), [begin() for _ in range(workers)], 0
    while running:
        time.sleep(chance.uniform(*PAUSE_S))
        running = [one for one in running if one.poll() is None]
        if running and killed < KILLS:
            victim = running.pop(chance.randrange(len(running)))
            victim.kill()
            victim.wait()
            running.append(begin())
            killed += 1
    return killed
