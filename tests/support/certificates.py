"""Certificates made by openssl: a CA, a server, a client, and a stranger of another CA."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

HERE = "IP:127.0.0.1,DNS:localhost"


def make_certificates(folder: Path) -> None:
    """Write `ca.pem`, `other-ca.pem`, and `server`, `client` and `stranger` as `.pem` and `.key`.

    `other-ca` has signed `stranger`, and `ca` the others. They are the same in every folder of a test session.
    """
    for name, content in _certificates().items():
        path = folder / name
        path.touch(mode=0o600 if path.suffix == ".key" else 0o644)
        path.write_bytes(content)


@functools.cache
def _certificates() -> Mapping[str, bytes]:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for authority in ("ca", "other-ca"):
            whole = ("req", "-x509", *_key(authority), "-out", f"{authority}.pem", *_name(authority))
            run("openssl", *whole, cwd=folder)
        for name, authority in (("server", "ca"), ("client", "ca"), ("stranger", "other-ca")):
            make_certificate(folder, name, authority)
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def make_certificate(
    folder: Path,
    name: str,
    authority: str = "ca",
    *,
    names: str = HERE,
    begins: datetime | None = None,
    ends: datetime | None = None,
) -> None:
    """`name.pem` and `name.key`. Skips the test where openssl is too old to set times.

    Args:
        folder: of the authority's, and for these.
        name: whose.
        authority: that signs.
        names: subjectAltName.
        begins, ends: when it is valid; default: for a month from now on.
    """
    (folder / f"{name}.ext").write_text(f"subjectAltName={names}\n")
    run("openssl", "req", *_key(name), "-out", f"{name}.csr", *_name(name), cwd=folder)
    signer = ("-CA", f"{authority}.pem", "-CAkey", f"{authority}.key", "-CAcreateserial")
    times: tuple[str, ...] = ()
    if begins or ends:
        begins = begins or datetime.now(UTC) - timedelta(days=1)
        ends = ends or datetime.now(UTC) + timedelta(days=30)
        times = ("-not_before", f"{begins:%Y%m%d%H%M%SZ}", "-not_after", f"{ends:%Y%m%d%H%M%SZ}")
    command = ("openssl", "x509", "-req", "-in", f"{name}.csr", *signer, "-out", f"{name}.pem")
    try:
        run(*command, "-extfile", f"{name}.ext", *times, cwd=folder)
    except subprocess.CalledProcessError as error:
        if b"not_before" not in error.stderr:
            raise
        import pytest  # as below

        pytest.skip("this openssl cannot set when a certificate begins; 3.4 can")


def _key(name: str) -> tuple[str, ...]:
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key")


def _name(name: str) -> tuple[str, ...]:
    return ("-subj", f"/CN={name}")


def run(command: str, *arguments: str, cwd: Path | None = None) -> None:
    """Run a tool to its end; skips the test where it is absent."""
    if not shutil.which(command):
        import pytest  # here only: the benches use this too, and their environment has no pytest

        pytest.skip(f"{command} is not installed")
    subprocess.run([command, *arguments], cwd=cwd, check=True, capture_output=True)
