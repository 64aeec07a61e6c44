"""The example of a consumer against a real broker and real databases: each event once, whoever is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.killed import process
from tests.support.mosquitto import HOST, Mosquitto, free_port
from tests.support.publishing import EVENTS, device, event, wait_for

PROGRAM = Path(__file__).parent.parent.parent / "scripts" / "consumer" / "consume.py"

Count = Callable[[str], int]


class Consumer:
    """A process of it, killed at the end; what it says goes to a file."""

    def __init__(self, broker: Mosquitto, folder: Path, store: str, *args: str) -> None:
        self.log = folder / "consume.log"
        where = ["--host", HOST, "--port", str(broker.port), "--store", store, "--patience", "1"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([sys.executable, str(PROGRAM), *where, *args], stderr=log)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def wait_said(self, words: str) -> None:
        wait_for(lambda: words in self.log.read_text())


@contextmanager
def consumer(broker: Mosquitto, folder: Path, store: str, *args: str) -> Iterator[Consumer]:
    log = broker.folder / "mosquitto.log"
    subscriptions = log.read_text().count("Received SUBSCRIBE")
    running = Consumer(broker, folder, store, *args)
    try:
        running.wait_said("connected")
        wait_for(lambda: log.read_text().count("Received SUBSCRIBE") > subscriptions)
        yield running
    finally:
        running.kill()


def sqlite_count(file: Path) -> Count:
    def count(sql: str) -> int:
        with closing(sqlite3.connect(file, timeout=10.0)) as connection:
            return int(connection.execute(sql).fetchone()[0])

    return count


ALL = "SELECT count(*) FROM events"
DISTINCT = "SELECT count(DISTINCT seq) FROM events"


def test_every_event_is_a_row_once_and_what_is_none_is_set_aside(tmp_path: Path, broker: Mosquitto) -> None:
    file = tmp_path / "events.db"
    count = sqlite_count(file)
    with consumer(broker, tmp_path, f"sqlite:{file}") as running:
        with device(tmp_path, broker.config()) as (spool, _):
            for _ in range(1000):
                spool.put(EVENTS, event())
            wait_for(lambda: count(ALL) == 1000)
        stranger = broker.subscribe("nothing").client
        for body in (b"junk", b"[" * 50_000, event()):  # the last has no number
            stranger.publish(EVENTS, body, qos=1)
        wait_for(lambda: count("SELECT count(*) FROM rejected") == 3)
        assert running.end() == 0
    assert count(DISTINCT) == 1000
    assert count("SELECT max(seq) FROM events") == 1000


def test_a_forged_number_ends_no_search_for_gaps(tmp_path: Path, broker: Mosquitto) -> None:
    file = tmp_path / "events.db"
    count = sqlite_count(file)
    stranger = broker.subscribe("nothing").client
    with consumer(broker, tmp_path, f"sqlite:{file}"):
        for seq in (1, 2, 2**63 - 1, 2**52, 4):
            body = json.dumps(json.loads(event()) | {"seq": seq}).encode()
            stranger.publish(EVENTS, body, qos=1)
        wait_for(lambda: count("SELECT count(*) FROM gaps WHERE first = 3 AND last = 3") == 1)
    assert count("SELECT count(*) FROM rejected") == 2


def test_a_broker_that_wants_a_client_certificate(tmp_path: Path) -> None:
    file = tmp_path / "events.db"
    with Mosquitto(tmp_path, client_certificates=True) as broker:
        files = {"ca": broker.ca_file, "cert": broker.cert_file, "key": broker.key_file}
        said = [word for name, path in files.items() for word in (f"--{name}-file", str(path))]
        with (
            consumer(broker, tmp_path, f"sqlite:{file}", *said, "--alpn", "mqtt"),
            device(tmp_path, broker.config()) as (spool, _),
        ):
            spool.put(EVENTS, event())
            wait_for(lambda: sqlite_count(file)(ALL) == 1)


def test_a_broker_behind_a_websocket(tmp_path: Path) -> None:
    file, port = tmp_path / "events.db", free_port()
    lines = (f"listener {port} {HOST}", "protocol websockets")
    with (
        Mosquitto(tmp_path, lines=lines) as web,
        consumer(web, tmp_path, f"sqlite:{file}", "--port", str(port), "--transport", "websockets"),
        device(tmp_path, web.config()) as (spool, _),
    ):
        spool.put(EVENTS, event())
        wait_for(lambda: sqlite_count(file)(ALL) == 1)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (("--store", "foo:/x"), "unknown store 'foo:/x': write sqlite:FILE or postgresql://"),
        (("--store", "sqlite:x", "--password-file", "nofile"), "--password-file: nofile: No such file"),
        (("--store", "sqlite:x", "--ca-file", "nofile"), "--ca-file: nofile: [Errno 2] No such file"),
        (("--store", "sqlite:x", "--cert-file", "nofile"), "--cert-file: nofile: [Errno 2] No such file"),
        (("--store", "sqlite:x", "--key-file", "nofile"), "--key-file needs --cert-file"),
        (("--store", "sqlite:x", "--alpn", "mqtt"), "add --tls"),
    ],
)
def test_what_cannot_be_used_is_a_mistake_in_usage(tmp_path: Path, said: tuple[str, ...], why: str) -> None:
    done = subprocess.run([sys.executable, str(PROGRAM), *said], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert why in done.stderr.splitlines()[-1]


def test_a_device_that_was_killed_with_numbers_in_memory_is_no_loss_and_a_message_that_was_dropped_is(
    tmp_path: Path, broker: Mosquitto
) -> None:
    file, state = tmp_path / "events.db", tmp_path / "state"
    state.mkdir()
    count = sqlite_count(file)
    with consumer(broker, tmp_path, f"sqlite:{file}") as running:
        for _ in range(3):
            with process(state, broker.port, count=10_000, pause_s=0.02, durability="batch") as vedette:
                assert vedette.stdout is not None
                for _ in range(60):
                    vedette.stdout.readline()
        wait_for(lambda: count("SELECT count(*) FROM jumps") == 2)
        with device(state, broker.config()) as (spool, _):
            spool.put(EVENTS, b"{}")  # cannot be sent
            spool.put(EVENTS, event())
            wait_for(lambda: spool.stats().waiting == 0)
        wait_for(lambda: count("SELECT count(*) FROM jumps") == 3)
        wait_for(lambda: count("SELECT sum(last - first + 1) FROM gaps") == 1)
        running.wait_said("have not come")
        assert running.log.read_text().count("began anew behind them") == 3
    assert count("SELECT sum(last - first + 1) FROM jumps") > 10_000


def test_a_consumer_killed_in_mid_stream_goes_on_where_it_was(tmp_path: Path) -> None:
    file = tmp_path / "events.db"
    count = sqlite_count(file)
    with Mosquitto(tmp_path, persistence=True) as broker, device(tmp_path, broker.config()) as (spool, _):
        for turn in range(1, 5):
            with consumer(broker, tmp_path, f"sqlite:{file}") as running:
                for _ in range(700):
                    spool.put(EVENTS, event())
                wait_for(lambda turn=turn: count(ALL) > 700 * (turn - 1) + 50)
                running.kill()
                for _ in range(300):
                    spool.put(EVENTS, event())
                if turn == 2:
                    wait_for(lambda: spool.stats().waiting == 0)
                    broker.stop()
                    broker.start()
        with consumer(broker, tmp_path, f"sqlite:{file}") as running:
            wait_for(lambda: count(ALL) == 4000)
            assert running.end() == 0
    assert count(DISTINCT) == count("SELECT max(seq) FROM events") == 4000
    assert count("SELECT count(*) FROM gaps") == 0


def test_a_number_that_does_not_come_is_noticed(tmp_path: Path, broker: Mosquitto) -> None:
    file = tmp_path / "events.db"
    with consumer(broker, tmp_path, f"sqlite:{file}") as running, device(tmp_path, broker.config()) as (spool, _):
        spool.put(EVENTS, event())
        spool.put("elsewhere", event())
        spool.put(EVENTS, event())
        running.wait_said("porch: 2 to 2 have not come")


def test_a_database_that_is_locked_loses_nothing(tmp_path: Path, broker: Mosquitto) -> None:
    file = tmp_path / "events.db"
    with consumer(broker, tmp_path, f"sqlite:{file}"), device(tmp_path, broker.config()) as (spool, _):
        spool.put(EVENTS, event())
        wait_for(lambda: file.exists() and sqlite_count(file)(ALL) == 1)
        with closing(sqlite3.connect(file)) as other:
            other.execute("BEGIN IMMEDIATE")
            for _ in range(100):
                spool.put(EVENTS, event())
            time.sleep(1.0)
            other.rollback()
        wait_for(lambda: sqlite_count(file)(ALL) == 101)


def test_consumers_that_share_divide_the_events_and_nobody_gets_one_twice(
    tmp_path: Path, broker: Mosquitto
) -> None:
    files = [tmp_path / f"{name}.db" for name in ("a", "b")]
    with ExitStack() as stack:
        for file in files:
            (tmp_path / file.stem).mkdir()
            options = ("--share", "night", "--client-id", file.stem)
            stack.enter_context(consumer(broker, tmp_path / file.stem, f"sqlite:{file}", *options))
        with device(tmp_path, broker.config()) as (spool, _):
            for _ in range(600):
                spool.put(EVENTS, event())
            counts = [sqlite_count(file) for file in files]
            wait_for(lambda: all(file.exists() for file in files) and sum(count(ALL) for count in counts) >= 600)
            time.sleep(0.5)
    seen = [numbers(file) for file in files]
    assert all(len(numbers) > 50 for numbers in seen), "both have work"
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(range(1, 601))


def numbers(file: Path) -> set[int]:
    with closing(sqlite3.connect(file)) as connection:
        return {seq for (seq,) in connection.execute("SELECT seq FROM events")}


def test_consumers_that_share_one_database_see_no_gap(tmp_path: Path, broker: Mosquitto) -> None:
    file = tmp_path / "events.db"
    with ExitStack() as stack:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            options = ("--share", "night", "--client-id", name)
            stack.enter_context(consumer(broker, tmp_path / name, f"sqlite:{file}", *options))
        with device(tmp_path, broker.config()) as (spool, _):
            for _ in range(600):
                spool.put(EVENTS, event())
            wait_for(lambda: file.exists() and sqlite_count(file)(ALL) == 600)
        wait_for(lambda: sqlite_count(file)("SELECT max(seq) FROM marks") == 600)
    assert sqlite_count(file)("SELECT count(*) FROM gaps") == 0


@pytest.fixture
def postgres() -> Iterator[str]:
    """A PostgreSQL of its own, reached by a socket in its folder; gives where it is."""
    pytest.importorskip("psycopg", reason="the package psycopg is not installed")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if Path("/usr/lib/postgresql").is_dir() else []
    binaries = found[-1] if found else Path(shutil.which("initdb") or "/nonexistent").parent
    if not (binaries / "initdb").exists():
        pytest.skip("PostgreSQL's server is not installed (apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="vedette-postgres-"))
    become: list[str] = []
    if os.geteuid() == 0:  # it refuses to be root
        shutil.chown(folder, "postgres")
        become = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    try:
        data = folder / "data"
        made = [*become, str(binaries / "initdb"), "-D", str(data), "-A", "trust", "-U", "postgres", "--no-sync"]
        subprocess.run(made, check=True, capture_output=True, cwd=folder)
        command = [*become, str(binaries / "postgres"), "-D", str(data), "-k", str(folder), "-h", "", "-F"]
        server = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            where = f"postgresql:///postgres?user=postgres&host={folder}"
            wait_for(lambda: answers(where))
            yield where
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def answers(where: str) -> bool:
    import psycopg

    try:
        psycopg.connect(where, connect_timeout=2).close()
    except psycopg.Error:
        return False
    return True


def test_postgresql_keeps_each_event_once_also_when_its_connections_are_ended(
    tmp_path: Path, postgres: str
) -> None:
    import psycopg

    def ask(sql: str) -> Any:
        with psycopg.connect(postgres, autocommit=True) as connection:
            return connection.execute(sql).fetchone()

    end_others = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
    with Mosquitto(tmp_path) as broker, consumer(broker, tmp_path, postgres) as running:
        with device(tmp_path, broker.config()) as (spool, _):
            for turn in range(1, 4):
                for _ in range(400):
                    spool.put(EVENTS, event())
                wait_for(lambda turn=turn: table_is_there(ask) and ask(ALL)[0] > 400 * (turn - 1) + 20)
                ask(f"{end_others} AND backend_type = 'client backend'")
            wait_for(lambda: ask(ALL)[0] == 1200)
        assert ask(DISTINCT) == (1200,)
        running.kill()
        with consumer(broker, tmp_path, postgres) as again, device(tmp_path, broker.config()) as (spool, _):
            spool.put(EVENTS, event())
            wait_for(lambda: ask(ALL)[0] == 1201)
            assert again.end() == 0
        assert ask("SELECT count(*) FROM gaps") == (0,)


def table_is_there(ask: Callable[[str], Any]) -> bool:
    return bool(ask("SELECT to_regclass('events')")[0])
