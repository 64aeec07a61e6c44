"""Modules that are loaded when they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

_LOADED = "print(*(name in sys.modules for name in ('email', 'http.client')))\n"
_NOTHING = "False False"


def said(code: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}"], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_paho_is_imported_without_http_and_email() -> None:
    assert said(f"import agent.comms.mqtt.connection\n{_LOADED}") == [_NOTHING]


def test_the_daemon_is_imported_without_tls_and_archives() -> None:
    found = "print(*(name in sys.modules for name in ('_ssl', '_bz2', '_lzma')))"
    assert said(f"import agent.daemon.daemon\n{found}") == ["False False False"]


@pytest.mark.parametrize(
    "statement",
    ["import urllib.request", "from urllib import request", "import urllib.request as request"],
)
def test_a_deferred_module_is_loaded_when_it_is_first_used(statement: str) -> None:
    used = "request.Request" if "request" in statement.split()[-1:] else "urllib.request.Request"
    code = f"import agent.comms\n{statement}\n{_LOADED}print({used}.__name__)\n{_LOADED}"
    assert said(code) == [_NOTHING, "Request", "True True"]


def test_a_name_that_a_deferred_module_imports_is_found() -> None:
    assert said("import agent.comms\nfrom urllib.request import getproxies\nprint(callable(getproxies))") == [
        "True"
    ]


def test_a_missing_name_is_missing_as_in_any_module() -> None:
    code = "import agent.comms, urllib.request\nprint(hasattr(urllib.request, 'nothing'), "
    assert said(f"{code}hasattr(urllib.request, '__nothing__'))") == ["False False"]


def test_looking_for_special_names_loads_nothing() -> None:
    code = "import agent.comms, urllib.request\nprint(hasattr(urllib.request, '__warningregistry__'))\n"
    assert said(f"{code}{_LOADED}") == ["False", _NOTHING]


def test_what_is_loaded_already_stays_as_it_is() -> None:
    code = "import urllib.request\nbefore = urllib.request\nimport agent.comms\n"
    assert said(f"{code}print(urllib.request is before, type(before).__name__)") == ["True module"]


def test_threads_that_use_a_module_at_once_all_find_it_whole() -> None:
    code = (
        "import threading, agent.comms, urllib.request\n"
        "found, ready = [], threading.Barrier(8)\n"
        "def use():\n"
        "    ready.wait()\n"
        "    found.append(urllib.request.build_opener)\n"
        "threads = [threading.Thread(target=use) for _ in range(8)]\n"
        "for one in threads: one.start()\n"
        "for one in threads: one.join()\n"
        "print(len(found), len(set(found)))"
    )
    assert said(code) == ["8 1"]
