"""What there is to say about a bundle, for people and programs."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from agent.errors import BundleError
from agent.plaintext import plain
from agent.storage.regular import what_is
from agent.update import archive, trust
from agent.update.description import BundleFile, Description


class Inspection(Struct, frozen=True):
    """A bundle, looked into.

    Attributes:
        path: of the file.
        file: hash and size of the whole; None: it cannot be read.
        description: None: it has none that can be used, or nobody trusted has signed it and so it was not read.
        signature: whether there is one beside it.
        signer: who signed it, of those who may; None: that was not asked, or nobody has.
        asked: whether it was.
        error: why a board would refuse it; empty: nothing is known against it.
    """

    path: str
    file: BundleFile | None = None
    description: Description | None = None
    signature: bool = False
    signer: trust.Signer | None = None
    error: str = ""
    asked: bool = False

    def summary(self) -> dict[str, str]:
        """In words, by what they are about."""
        told = {"bundle": self.path}
        if self.file is not None:
            told |= {"size": f"{self.file.size / 1e6:.1f} MB", "sha256": self.file.sha256}
        if self.description is not None:
            told |= _about(self.description)
        if self.signer is not None:
            return told | {"signed by": f"{self.signer.principal}, {self.signer.key}"}
        if self.asked:
            return told | {"signed": "by nobody who may" if self.signature else "no"}
        return told | {"signed": "yes, by whom was not asked: --signers FILE" if self.signature else "no"}


def inspection(path: Path, signers: Path | None = None, revoked: Path | None = None) -> Inspection:
    """Look into a bundle, and at each of its files.

    Args:
        path: of the bundle.
        signers: those who may sign; None: whoever it was. Nothing is read of a bundle that none of them signed.
        revoked: keys that may not.
    """
    signature, signer, description = trust.signature_of(path), None, None
    file, error = None, ""
    try:
        file = archive.listed(path)
        if signers is not None:
            signer = trust.verify(path, signature, trust.Trusted(signers, revoked))
        description = archive.read_description(path)
        archive.check(path, description)
    except BundleError as refused:
        error = str(refused)
    signed = what_is(signature) == "a file"
    return Inspection(plain(str(path)), file, description, signed, signer, error, signers is not None)


def _about(description: Description) -> dict[str, str]:
    target, health = description.target, description.health
    boards = ", ".join(target.boards) if target else ""
    told = {
        "version": f"{description.name} {description.version}, counter {description.counter}, {description.kind}",
        "for": f"{target.arch}, Python {target.python}, glibc {target.glibc}" if target else "any board",
        "boards": boards or "any",
        "models": ", ".join(description.models) or "none",
        "health": f"steady for {health.steady_s:g} s within {health.within_s:g} s, p95 at most "
        f"{health.p95_factor:g} times, {health.memory_mb:g} MB",
    }
    if (shadow := description.shadow) is not None:
        told["shadow"] = f"agrees by {shadow.agreement:g} in {shadow.compared} answers of each stream, every "
        told["shadow"] += f"{shadow.every}, within {shadow.within_s:g} s"
    if description.migrations:
        changes = (f"{one.op} {one.key} {one.to}".rstrip() for one in description.migrations)
        told["migrations"] = ", ".join(changes)
    return told
