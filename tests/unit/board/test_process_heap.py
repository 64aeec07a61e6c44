"""The heap is asked in processes of their own: what one has set cannot be taken back."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc"
)

_HOLES = """
import os
from agent.board.process import trim_heap
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
pieces = [bytes(bytearray(b"x" * 60_000)) for _ in range(1000)]
last = bytes(60_000)
del pieces
before = resident()
trim_heap()
print((before - resident()) // 2**20)
"""

_ARENAS = """
import threading
from agent.board.process import limit_malloc_arenas
print(limit_malloc_arenas())
barrier = threading.Barrier(6)
def allocate():
    kept = [bytes(5000) for _ in range(50)]
    barrier.wait()
threads = [threading.Thread(target=allocate) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
import ctypes
ctypes.CDLL(None).malloc_stats()
"""


_LARGE = """
import os
from agent.board.process import return_large_blocks
print(return_large_blocks())
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
def picture():
    return bytearray(b"x") * 6_000_000
for _ in range(5):
    picture()
pictures = [picture() for _ in range(8)]
small = bytearray(b"x") * 60_000
before = resident()
del pictures[::2]
print((before - resident()) // 2**20)
"""


def said(program: str, **more: str) -> str:
    env = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env={**env, **more}, check=True)
    return done.stdout + done.stderr


def test_what_is_free_below_what_is_used_goes_back_to_the_system() -> None:
    # Without mmap for large pieces, as glibc does by itself once it has seen some of them freed.
    given_back = int(said(_HOLES, MALLOC_MMAP_THRESHOLD_="33554432", MALLOC_TRIM_THRESHOLD_="1073741824"))
    assert given_back > 40


def test_six_threads_share_two_arenas() -> None:
    stats = said(_ARENAS)
    assert stats.startswith("True")
    assert stats.count("Arena ") == 2


def test_the_environment_may_say_how_many_arenas_there_are() -> None:
    stats = said(_ARENAS, MALLOC_ARENA_MAX="4")
    assert stats.startswith("False")
    assert stats.count("Arena ") == 4


def test_large_blocks_go_back_to_the_system_although_others_lie_between() -> None:
    worked, given_back = said(_LARGE).split()
    assert worked == "True"
    assert int(given_back) > 20


def test_the_environment_may_say_which_blocks_are_large() -> None:
    assert said(_LARGE, GLIBC_TUNABLES="glibc.malloc.mmap_threshold=33554432").startswith("False")
    assert said(_LARGE, MALLOC_MMAP_THRESHOLD_="33554432").startswith("False")
