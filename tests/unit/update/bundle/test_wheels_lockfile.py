"""Requirements of the lock file are selected for the board, not for the machine where the tests run."""

from __future__ import annotations

import pytest

from agent.errors import BundleError
from agent.update.bundle import Target
from agent.update.bundle.wheels import Lock, needed
from tests.support.running import ROOT

TEXT = """# made by hand
--index-url nowhere
numpy==2.0 ; python_version < '3.12' \\
    --hash=sha256:aa \\
    --hash=sha256:ab
numpy==2.5 ; python_version >= '3.12' \\
    --hash=sha256:ba
Ai.Edge-LiteRT==2.3.0 ; platform_machine != 'armv7l' \\
    --hash=sha256:ca
six==1 --hash=sha256:da
"""
OLD, NEW = Target("aarch64", "3.11"), Target("x86_64", "3.13")


def test_a_version_is_taken_for_the_boards_python() -> None:
    lock = Lock(TEXT, "lock")
    assert lock.pin("numpy", OLD) == "numpy==2.0 --hash=sha256:aa --hash=sha256:ab"
    assert lock.pin("NumPy", NEW).startswith("numpy==2.5 ")


def test_names_are_taken_in_their_normal_form() -> None:
    assert "==2.3.0 " in Lock(TEXT, "lock").pin("ai_edge_litert", OLD)


@pytest.mark.parametrize(("name", "target"), [("rich", OLD), ("ai-edge-litert", Target("armv7l", "3.11"))])
def test_what_is_not_locked_for_a_board_is_named(name: str, target: Target) -> None:
    with pytest.raises(BundleError, match=rf"lock: {name} is not locked for {target.arch}, Python 3\.11"):
        Lock(TEXT, "lock").pin(name, target)


@pytest.mark.parametrize(
    "line", ["six>=1 --hash=sha256:aa", "six==1", "six --hash=sha256:aa", "six=!1 --hash=x:y"]
)
def test_a_line_without_a_version_or_a_hash_is_refused(line: str) -> None:
    with pytest.raises(BundleError, match="lock: 'six"):
        Lock(line, "lock")


def test_markers_are_asked_about_the_board() -> None:
    said = [
        "old; python_version < '3.12'",
        "arm; platform_machine == 'aarch64'",
        "windows; sys_platform == 'win32'",
        "word[fast]; extra == 'wakeword'",
        "Both_of.them[a]",
        "both-of-them[b]",
    ]
    assert needed(said, [], OLD) == {"old": frozenset(), "arm": frozenset(), "both-of-them": frozenset("ab")}
    assert needed(said, ["wakeword"], NEW) == {"word": frozenset({"fast"}), "both-of-them": frozenset("ab")}


@pytest.mark.parametrize("python", ["3.11", "3.13"])
@pytest.mark.parametrize("arch", ["aarch64", "x86_64"])
def test_our_own_lock_has_what_vedette_needs(arch: str, python: str) -> None:
    from importlib.metadata import requires

    lock = Lock((ROOT / "requirements.lock").read_text(), "lock")
    target = Target(arch, python)  # type: ignore[arg-type]
    wanted = needed(requires("vedette") or [], ["wakeword"], target)
    found = [lock.pin(name, target).partition("==")[0] for name in wanted]
    assert {"ai-edge-litert", "numpy", "opencv-python-headless", "pymicro-features"} <= set(found)
    assert "pytest" not in found
