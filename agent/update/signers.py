"""The file of allowed signers, where a key is not found in it: whether that is the file's own fault."""

from __future__ import annotations

import re
from pathlib import Path

from agent.errors import StorageError
from agent.storage.regular import read_regular

LINE = "NAME ssh-ed25519 AAAA…"
"""How a line of it looks."""
_LARGEST = 1 << 20
_WRONG = re.compile(r":(?P<line>[0-9]+): (?P<why>invalid key|missing key|bad options: [^;]*)")
"""What ssh-keygen says of a line that it cannot use."""
_PUBLIC = re.compile(rb"(?:ssh|ecdsa|sk)-[a-z0-9@.-]+\s+AAAA")


def fault(signers: Path, told: str) -> str:
    """What is wrong with a file of allowed signers.

    Args:
        signers: the file.
        told: what ssh-keygen has said, which did not find a key in it.

    Returns:
        what, in words, or nothing.
    """
    try:
        content = read_regular(signers.resolve(), _LARGEST)
    except (OSError, StorageError):
        return ""
    if b"PRIVATE KEY-----" in content:
        return f"{signers} is a private key, which belongs to nobody but its owner: lines `{LINE}` are expected"
    lines = content.split(b"\n")
    used = [line for line in lines if line.strip() and not line.strip().startswith(b"#")]
    if not used:
        return f"{signers} has no line but remarks: nobody may sign yet; put a line `{LINE}` in"
    wrong = {int(found["line"]): found["why"] for found in _WRONG.finditer(told)}
    if not wrong:
        return ""
    number, why = next(iter(wrong.items()))
    if number <= len(lines) and _PUBLIC.match(lines[number - 1].strip()):
        why = "the NAME in front is missing"
    some = "" if len(wrong) >= len(used) else f"signed by a key that no other line of {signers} names; "
    return f"{some}{signers}:{number}: {why}: a line is `{LINE}`"
