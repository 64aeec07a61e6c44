"""Signatures of bundles, made and verified by `ssh-keygen -Y`.

Formats: "ALLOWED SIGNERS" and "KEY REVOCATION LISTS" in https://man.openbsd.org/ssh-keygen
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from msgspec import Struct

from agent.errors import TrustError
from agent.storage.files import refuse_special, write_atomic
from agent.storage.tar import open_regular
from agent.text import local_time
from agent.update.run import run

LINE = "NAME ssh-ed25519 AAAA…"
"""Format of a line in the file of allowed signers."""
NAMESPACE = "vedette-bundle"
"""A signature for another namespace, such as a git commit's, is not valid for a bundle."""
SUFFIX = ".sig"
_LARGEST = 64 << 10
_PATIENCE_S, _BYTES_PER_S = 30.0, 5e6
"""Timeout of a check, plus the time to read the bundle from the slowest SD card."""
_GOOD = re.compile(rf'^Good "{NAMESPACE}" signature for .* with \S+ key (?P<key>\S+)$', re.MULTILINE)
_NO_SIGNATURE = re.compile(r"Couldn't parse signature|sshsig_(?:armor|get_pubkey)")
_OUT_OF_TIME = re.compile(r"key (?:has expired|is not yet valid): .*")


class Signer(Struct, frozen=True):
    """Signer of a bundle.

    Attributes:
        principal: name in the allowed signers.
        key: fingerprint, `SHA256:…`.
    """

    principal: str
    key: str


def signature_of(bundle: Path) -> Path:
    """Return the path of a bundle's signature, beside it."""
    return Path(f"{bundle}{SUFFIX}")


def sign(bundle: Path, key: Path) -> Path:
    """Sign a bundle, and return the path of the signature beside it; replace an older one.

    Args:
        bundle: the file.
        key: private key, or the public half of a key in ssh-agent or on a security key. ssh-keygen may ask for a
            passphrase at the terminal.

    Raises:
        TrustError: ssh-keygen is missing or refuses the key, or the path of the signature is not a file.
        StorageError: the signature cannot be written.
    """
    check_key(key)
    signature = signature_of(bundle)
    refuse_special(signature, TrustError, follow=False)  # a link could replace another signature
    done = _ssh_keygen("sign", "-f", str(key), "-n", NAMESPACE, stdin=bundle)
    if done.returncode:
        raise TrustError(f"{bundle}: not signed with {key}: {_output(done)}")
    write_atomic(signature, done.stdout.encode())
    return signature


def check_key(key: Path) -> None:
    """Refuse a key that does not exist or is not a file; raise TrustError then."""
    refuse_special(key, TrustError)
    if not key.exists():
        raise TrustError(f"{key}: no such key; make one: ssh-keygen -t ed25519 -f {key}")


def verify(bundle: Path, signers: Path, revoked: Path | None = None) -> Signer:
    """Verify a signature and return its signer. Only the raw bytes of the bundle are read.

    Args:
        bundle: its signature lies beside it.
        signers: allowed keys, in OpenSSH's format.
        revoked: revoked keys, in OpenSSH's format, public keys or a KRL; the file may be absent.

    Raises:
        TrustError: the signature is missing or of other bytes; its key is unknown, revoked, or not valid at the
            time of the clock; no key is allowed yet; a path is not a file; ssh-keygen is missing or hangs.
    """
    signature = signature_of(bundle)
    for path in (bundle, signature, signers, *((revoked,) if revoked else ())):
        refuse_special(path, TrustError)  # ssh-keygen would block on a pipe
    _check_files(bundle, signature, signers)
    given = ("-f", str(signers), "-n", NAMESPACE, "-s", str(signature))
    found: list[str] = []
    for principal in _principals(bundle, signature, signers):
        done = _ssh_keygen("verify", *given, "-I", principal, stdin=bundle)
        if done.returncode == 0 and (good := _GOOD.search(done.stdout)):
            _check_revoked(bundle, (*given, "-I", principal), revoked, good["key"])
            return Signer(principal, good["key"])
        found.append(_output(done))
    raise TrustError(f"{bundle}: {_refusal(found[-1], signature, signers)}")


def _check_files(bundle: Path, signature: Path, signers: Path) -> None:
    if not bundle.exists():
        raise TrustError(f"{bundle}: no such file")
    if not signature.exists():
        raise TrustError(f"{bundle}: no signature: {signature} is missing; copy it too, or `vedette bundle sign`")
    if signature.stat().st_size > _LARGEST:
        raise TrustError(f"{signature}: {signature.stat().st_size} bytes: too large for a signature")
    if not signers.exists() or not signers.stat().st_size:
        raise TrustError(f"{signers}: missing or empty, so no signature is accepted; add a line `{LINE}`")


def _principals(bundle: Path, signature: Path, signers: Path) -> list[str]:
    """Return the names of the signature's key in the allowed signers that are valid now."""
    done = _ssh_keygen("find-principals", "-s", str(signature), "-f", str(signers))
    if done.returncode == 0 and (names := [name for name in done.stdout.split("\n") if name]):
        return names
    raise TrustError(f"{bundle}: {_refusal(_output(done), signature, signers)}")


def _refusal(output: str, signature: Path, signers: Path) -> str:
    """Translate an error of ssh-keygen for the operator."""
    if late := _OUT_OF_TIME.search(output):
        now = local_time(datetime.now(UTC))
        return (
            f"its key is not valid at this time: {late[0]}; the clock says {now}: if that is wrong (a board "
            f"without a battery-backed clock or network), set it; else sign with a key that {signers} allows now"
        )
    if _NO_SIGNATURE.search(output):
        return f"{signature} is not a signature: copy it again, or `vedette bundle sign`"
    if "No principal matched" in output or not output:
        said = f" ({output})" if output else ""
        return (
            f"signed by a key that is not in {signers}{said}: sign it with one of those, or add a line `{LINE}`"
        )
    if "incorrect signature" in output:
        return "its signature is of other bytes: the bundle was changed or is incomplete; copy both files again"
    return f"its signature is not accepted: {output}"


def _check_revoked(bundle: Path, given: tuple[str, ...], revoked: Path | None, key: str) -> None:
    if revoked is None or not os.path.lexists(revoked):  # a dangling link counts as a list
        return
    done = _ssh_keygen("verify", *given, "-r", str(revoked), stdin=bundle)
    if done.returncode or not _GOOD.search(done.stdout):
        raise TrustError(
            f"{bundle}: its key {key} is revoked by {revoked}, or that file cannot be read: {_output(done)}"
        )


def _ssh_keygen(action: str, *options: str, stdin: Path | None = None) -> subprocess.CompletedProcess[str]:
    command, what = ["ssh-keygen", "-Y", action, *options], f"ssh-keygen -Y {action}"
    if shutil.which("ssh-keygen") is None:
        raise TrustError("no ssh-keygen on this machine: sudo apt-get install openssh-client")
    if stdin is None:
        return run(command, what, _PATIENCE_S, TrustError)
    with open_regular(stdin) as file:
        patience_s = _PATIENCE_S + os.fstat(file.fileno()).st_size / _BYTES_PER_S
        # A person who signs may have to find a passphrase or a security key.
        return run(command, what, None if action == "sign" else patience_s, TrustError, stdin=file.fileno())


def _output(done: subprocess.CompletedProcess[str]) -> str:
    """Join the output of ssh-keygen to one line, stderr first."""
    lines = [line.strip() for line in (*done.stderr.split("\n"), *done.stdout.split("\n")) if line.strip()]
    return "; ".join(line for line in dict.fromkeys(lines) if not line.startswith("Signing data on"))
