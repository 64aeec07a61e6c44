"""Errors of ssh and rsync, sorted into transient and permanent ones."""

from __future__ import annotations

import pytest

from agent.update.fleet.ssh import Fault, trouble

CHANGED = """@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
Host key verification failed.
"""


@pytest.mark.parametrize(
    ("code", "said", "fault", "reason"),
    [
        (255, "ssh: connect to host porch port 22: Connection timed out", "unreachable", "timed out"),
        (255, "ssh: Could not resolve hostname porch: Name or service not known", "unreachable", "not known"),
        (255, "Connection to 198.18.0.2 closed by remote host.", "unreachable", "closed by remote"),
        (255, "no answer within 60 s", "unreachable", "no answer"),
        (255, "", "unreachable", "exit code 255"),
        (30, "rsync error: timeout in data send/receive (code 30)", "unreachable", "timeout"),
        (12, "rsync: connection unexpectedly closed (0 bytes received so far)", "unreachable", "unexpectedly"),
        (255, CHANGED, "failed", "another host key than the pinned one"),
        (255, "Host key verification failed.", "failed", "vedette fleet pin"),
        (255, "No ED25519 host key is known for porch and you have requested", "failed", "is not pinned"),
        (255, "x@y: Permission denied (publickey).", "failed", "/etc/vedette/update_keys"),
        (
            255,
            "WARNING: UNPROTECTED PRIVATE KEY FILE!\nPermission denied (publickey)",
            "failed",
            "accepts none of",
        ),
        (11, "rsync: write failed: No space left on device (28)", "failed", "its disk is full"),
        (12, "rsync: No space left on device (28)\nvedette-ssh: no room: 3 MB", "failed", "no room: 3 MB"),
        (126, "vedette-ssh: not allowed: id", "failed", "not allowed: id"),
        (
            12,
            "vedette-ssh: not allowed: rsync --server\nrsync: connection closed",
            "failed",
            "not allowed: rsync",
        ),
        (1, "sudo: unable to resolve host x\nvedette: an update to 1.2 is at hand", "failed", "an update to 1.2"),
        (1, "sudo: unable to resolve host x\nsomething else", "failed", "something else"),
        (2, "", "failed", "exit code 2"),
    ],
)
def test_what_is_said_is_understood(code: int, said: str, fault: Fault, reason: str) -> None:
    found = trouble(code, said)
    assert found is not None
    assert found.fault == fault
    assert reason in found.reason


def test_success_is_no_trouble_whatever_is_said() -> None:
    assert trouble(0, "Permission denied (publickey)") is None


def test_a_board_that_says_too_much_is_cut_short() -> None:
    found = trouble(1, "vedette: " + "x" * 10_000)
    assert found is not None
    assert len(found.reason) <= 300


def test_a_warning_is_not_taken_for_the_reason() -> None:
    warning = "Warning: Identity file /nope not accessible: No such file or directory."
    found = trouble(255, f"{warning}\nssh: connect: Connection refused\n")
    assert found is not None
    assert found.reason == "ssh: connect: Connection refused"
