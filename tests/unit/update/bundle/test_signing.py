"""Only what someone trusted has signed is trusted; why not is said. With the real ssh-keygen."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.errors import TrustError
from agent.update.bundle import signing
from agent.update.bundle.signing import sign, signature_of, verify
from tests.support.tiny_bundles import Key, make_key, needs_ssh_keygen

pytestmark = needs_ssh_keygen


class Board:
    """A bundle and a board's two files."""

    def __init__(self, folder: Path) -> None:
        self.alice, self.bob = make_key(folder / "alice"), make_key(folder / "bob")
        self.bundle = folder / "x.vedette"
        self.bundle.write_bytes(b"a bundle")
        self.revoked = folder / "revoked_keys"
        self.trusted = (folder / "allowed_signers", self.revoked)
        self.allow(self.alice.allowed("alice"))

    def allow(self, *lines: str) -> None:
        self.trusted[0].write_text("".join(lines), encoding="utf-8")

    def revoke(self, *keys: Key) -> None:
        self.revoked.write_text("".join(f"{key.public}\n" for key in keys), encoding="ascii")

    def signed(self, key: Key) -> str:
        """Sign the bundle; return the signer that the check finds."""
        sign(self.bundle, key.path)
        return verify(self.bundle, *self.trusted).principal

    def refused(self, key: Key, why: str) -> None:
        sign(self.bundle, key.path)
        with pytest.raises(TrustError, match=why):
            verify(self.bundle, *self.trusted)


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def test_a_signer_is_told_by_name_and_key(board: Board) -> None:
    sign(board.bundle, board.alice.path)
    found = verify(board.bundle, *board.trusted)
    assert found.principal == "alice"
    assert found.key.startswith("SHA256:")


def test_any_of_several_signers_may_sign(board: Board) -> None:
    board.allow("# ours\n", board.alice.allowed("alice"), board.bob.allowed("bob@example.com,release"))
    assert board.signed(board.alice) == "alice"
    assert board.signed(board.bob) == "bob@example.com"


def test_signing_again_replaces_the_signature(board: Board) -> None:
    board.allow(board.bob.allowed("bob"))
    board.refused(board.alice, "is not in")
    assert board.signed(board.bob) == "bob"


def test_a_strangers_signature_is_refused(board: Board) -> None:
    board.refused(board.bob, "signed by a key that is not in .*allowed_signers")


def test_a_bundle_that_was_changed_is_refused(board: Board) -> None:
    sign(board.bundle, board.alice.path)
    board.bundle.write_bytes(b"b bundle")
    with pytest.raises(TrustError, match="is of other bytes"):
        verify(board.bundle, *board.trusted)


def test_a_bundle_without_a_signature_is_refused(board: Board) -> None:
    with pytest.raises(TrustError, match=r"no signature: .*x\.vedette\.sig is missing"):
        verify(board.bundle, *board.trusted)


@pytest.mark.parametrize("content", [b"", b"x" * 70_000, b"-----BEGIN SSH SIGNATURE-----\nAAAA", os.urandom(500)])
def test_what_is_no_signature_is_refused(board: Board, content: bytes) -> None:
    signature_of(board.bundle).write_bytes(content)
    with pytest.raises(
        TrustError, match=r"x\.vedette\.sig(?: is not a signature: copy it|: 70000 bytes: too large)"
    ):
        verify(board.bundle, *board.trusted)


def test_a_signature_that_was_made_for_something_else_is_refused(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signing, "NAMESPACE", "git")
    sign(board.bundle, board.alice.path)
    monkeypatch.undo()
    with pytest.raises(TrustError, match="namespace"):
        verify(board.bundle, *board.trusted)


def test_a_signer_who_may_sign_something_else_only_is_refused(board: Board) -> None:
    board.allow(board.alice.allowed("alice", 'namespaces="git"'))
    board.refused(board.alice, "namespace")


def test_a_revoked_key_is_refused_though_it_is_allowed(board: Board) -> None:
    board.allow(board.alice.allowed("alice"), board.bob.allowed("bob"))
    board.revoke(board.alice)
    board.refused(board.alice, r"SHA256:\S+ is revoked by .*revoked_keys")
    assert board.signed(board.bob) == "bob"


def test_a_list_of_revoked_keys_that_cannot_be_read_trusts_nobody(board: Board) -> None:
    board.revoked.write_text("garbage\n", encoding="ascii")
    board.refused(board.alice, "or that file cannot be read")


def test_a_list_of_revoked_keys_that_is_a_link_to_nothing_trusts_nobody(board: Board) -> None:
    """As where the volume that it lies on is not mounted."""
    board.revoked.symlink_to(board.revoked.with_name("away"))
    board.refused(board.alice, "or that file cannot be read")


def test_while_a_key_is_rotated_the_old_and_the_new_one_are_valid(board: Board) -> None:
    board.allow(
        board.alice.allowed("release", 'valid-before="20990101"'),
        board.bob.allowed("release", 'valid-after="20200101"'),
    )
    assert board.signed(board.alice) == board.signed(board.bob) == "release"


def test_a_key_that_has_expired_is_refused_with_the_time_of_the_clock(board: Board) -> None:
    board.allow(board.alice.allowed("release", 'valid-before="20200101"'), board.bob.allowed("release"))
    board.refused(board.alice, r"has expired.*the clock says .*battery-backed clock")
    assert board.signed(board.bob) == "release"


def test_a_key_that_is_not_yet_valid_points_at_the_clock(board: Board) -> None:
    board.allow(board.alice.allowed("release", 'valid-after="20990101"'))
    board.refused(board.alice, r"not yet valid.*the clock says .*set it")


@pytest.mark.parametrize("content", [None, ""])
def test_a_board_that_trusts_nobody_says_how_to_begin(board: Board, content: str | None) -> None:
    board.trusted[0].unlink()
    if content is not None:
        board.trusted[0].write_text(content)
    board.refused(board.alice, "no signature is accepted")


def test_a_principal_that_looks_like_an_option_is_a_name(board: Board) -> None:
    board.allow(board.alice.allowed("-oyes"))
    assert board.signed(board.alice) == "-oyes"


@pytest.mark.parametrize("name", ['""', ","])
def test_a_principal_without_a_letter_is_nobody(board: Board, name: str) -> None:
    board.trusted[0].write_text(f"{name} {board.alice.public}\n")
    board.refused(board.alice, "is not in|the NAME|invalid")


ANY_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI"


@pytest.mark.parametrize(
    "content",
    ["# ours\n\n  # theirs\n", f"{ANY_KEY}\n", f"release {ANY_KEY}\n", "release\n", "\x01\x02\x03\n"],
)
def test_signers_of_which_none_can_be_used_are_refused_with_the_format(board: Board, content: str) -> None:
    board.trusted[0].write_text(content)
    board.refused(board.alice, "is not in .*allowed_signers.* add a line `NAME ssh-ed25519")


def test_a_line_that_is_wrong_is_told_by_its_number(board: Board) -> None:
    board.allow("release\n")
    board.refused(board.alice, r"allowed_signers:1: (?:missing|invalid) key")
    board.allow(board.alice.allowed("alice", "colour=red"))
    board.refused(board.alice, r"allowed_signers:1: bad options")


def test_what_may_not_be_read_is_told_as_such(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    sign(board.bundle, board.alice.path)
    told = "Couldn't read signature file: Permission denied"  # root reads everything
    failed = subprocess.CompletedProcess([], 255, "No principal matched.\n", f"{told}\n")
    monkeypatch.setattr(signing, "run", lambda *_, **__: failed)
    with pytest.raises(TrustError, match=told):
        verify(board.bundle, *board.trusted)


def test_a_wrong_line_beside_right_ones_is_told_with_the_key_that_is_missing(board: Board) -> None:
    board.allow("release\n", board.alice.allowed("alice"))
    board.refused(board.bob, r"allowed_signers:1: \w+ key")
    assert board.signed(board.alice) == "alice"


SPECIAL = [
    (os.mkfifo, "a pipe"),
    (Path.mkdir, "a folder"),
    (lambda path: path.symlink_to("/dev/zero"), "a device"),
]


@pytest.mark.timeout(10)
@pytest.mark.parametrize(("make", "kind"), SPECIAL)
@pytest.mark.parametrize("name", ["x.vedette", "x.vedette.sig", "allowed_signers", "revoked_keys"])
def test_what_is_no_file_is_named_and_not_waited_for(
    board: Board, name: str, make: Callable[[Path], object], kind: str
) -> None:
    sign(board.bundle, board.alice.path)
    path = board.bundle.with_name(name)
    path.unlink(missing_ok=True)
    make(path)
    with pytest.raises(TrustError, match=rf"{name}: is {kind} where a file is expected"):
        verify(board.bundle, *board.trusted)


@pytest.mark.parametrize(("make", "kind"), SPECIAL)
def test_what_is_no_key_signs_nothing(board: Board, make: Callable[[Path], object], kind: str) -> None:
    path = board.bundle.with_name("key")
    make(path)
    with pytest.raises(TrustError, match=f"key: is {kind} where a file is expected"):
        sign(board.bundle, path)


def test_a_signature_is_not_written_through_a_link(board: Board) -> None:
    other = board.bundle.with_name("other.sig")
    other.write_text("of another")
    signature_of(board.bundle).symlink_to(other)
    with pytest.raises(TrustError, match=r"x\.vedette\.sig: is a link where a file is expected"):
        sign(board.bundle, board.alice.path)
    assert other.read_text() == "of another"


def test_an_ssh_keygen_that_comes_to_no_end_trusts_nobody(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    sign(board.bundle, board.alice.path)
    slow = board.bundle.with_name("ssh-keygen")
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{board.bundle.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(signing, "_PATIENCE_S", 0.1)
    with pytest.raises(TrustError, match="ssh-keygen -Y find-principals: ssh-keygen did not end within 0 s"):
        verify(board.bundle, *board.trusted)


def test_without_ssh_keygen_it_says_what_to_install(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    sign(board.bundle, board.alice.path)
    monkeypatch.setenv("PATH", str(board.bundle.parent))
    with pytest.raises(TrustError, match="install openssh-client"):
        verify(board.bundle, *board.trusted)


def test_a_key_that_is_missing_or_none_signs_nothing(board: Board, tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="ssh-keygen -t ed25519"):
        sign(board.bundle, tmp_path / "nobody")
    shutil.copy(board.bundle, tmp_path / "key")
    with pytest.raises(TrustError, match="not signed with"):
        sign(board.bundle, tmp_path / "key")
    assert not signature_of(board.bundle).exists()
