"""Certificates made by openssl: a CA, a server, a client, and a stranger of another CA."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def make_certificates(folder: Path) -> None:
    """`ca.pem`, and `server`, `client` and `stranger` as `.pem` and `.key`; the last is of another CA."""
    for authority in ("ca", "other-ca"):
        _openssl(
            folder, "req", "-x509", *_key(authority), "-out", f"{authority}.pem", "-subj", f"/CN={authority}"
        )
    for name, authority in (("server", "ca"), ("client", "ca"), ("stranger", "other-ca")):
        (folder / f"{name}.ext").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        _openssl(folder, "req", *_key(name), "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signer = ("-CA", f"{authority}.pem", "-CAkey", f"{authority}.key", "-CAcreateserial")
        _openssl(
            folder,
            "x509",
            "-req",
            "-in",
            f"{name}.csr",
            *signer,
            "-out",
            f"{name}.pem",
            "-extfile",
            f"{name}.ext",
        )


def _key(name: str) -> tuple[str, ...]:
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key")


def _openssl(folder: Path, *arguments: str) -> None:
    run("openssl", *arguments, cwd=folder)


def run(command: str, *arguments: str, cwd: Path | None = None) -> None:
    """Run a tool to its end; skips the test where it is absent."""
    if not shutil.which(command):
        import pytest  # here only: the benches use this too, and their environment has no pytest

        pytest.skip(f"{command} is not installed")
    subprocess.run([command, *arguments], cwd=cwd, check=True, capture_output=True)
