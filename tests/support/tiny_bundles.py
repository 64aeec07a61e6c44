"""Small bundles that are real in every part: tar, signature of a throwaway key, a model and its answers."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Struct

from agent.update import bundle
from agent.update.bundle import BundleFile, Description, Target, signing
from agent.update.bundle.build import gather

MODEL = "small-speech"
"""Bundled, 150 kB."""
HERE = msgspec.convert({"arch": platform.machine(), "python": "{}.{}".format(*sys.version_info)}, Target)
needs_ssh_keygen = pytest.mark.skipif(
    shutil.which("ssh-keygen") is None, reason="no ssh-keygen: apt-get install openssh-client"
)


class Key(Struct, frozen=True):
    """A key pair without a passphrase.

    Attributes:
        path: of the private key.
        public: `TYPE BASE64`, as in the allowed signers.
    """

    path: Path
    public: str

    def allowed(self, principal: str, options: str = "") -> str:
        """A line of the allowed signers.

        Args:
            principal: its name.
            options: such as `valid-before="20300101"`.
        """
        return f"{principal} {f'{options} ' if options else ''}{self.public}\n"


def make_key(path: Path) -> Key:
    """Write a key pair: one and the same for each file name in a test session.

    Args:
        path: of the private key, which is not there yet.
    """
    private, public = _key_pair(path.name)
    path.touch(mode=0o600, exist_ok=False)
    path.write_bytes(private)
    path.with_name(f"{path.name}.pub").write_bytes(public)
    return Key(path, public.decode("ascii").strip())


@functools.cache
def _key_pair(name: str) -> tuple[bytes, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)], check=True)
        return path.read_bytes(), path.with_name(f"{name}.pub").read_bytes()


@functools.cache
def model_files(name: str = MODEL) -> Mapping[str, bytes]:
    """Return the files of a model in a bundle, by path; golden answers are computed once in a process."""
    return dict(gather(name))


def tiny_wheel(
    name: str = "vedette",
    version: str = "1.0",
    files: Mapping[str, str] | None = None,
    *,
    requires: Sequence[str] = (),
    extras: Sequence[str] = (),
    python: str = ">=3.11",
) -> bytes:
    """A wheel that pip installs.

    Args:
        name, version: of the distribution.
        files: by path in site-packages; `entry_points.txt` becomes that of the distribution.
        requires: what it needs, lines as of `Requires-Dist`.
        extras: that it has.
        python: that it needs.
    """
    info = f"{name}-{version}.dist-info"
    content = {f"{name}.py": ""} if files is None else dict(files)
    if "entry_points.txt" in content:
        content[f"{info}/entry_points.txt"] = content.pop("entry_points.txt")
    needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
    needs += "".join(f"Provides-Extra: {one}\n" for one in extras)
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Python: {python}\n{needs}"
    content[f"{info}/METADATA"] = about
    content[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = f"{info}/RECORD"
    content[record] = (
        "".join(f"{path},{_hash(text)},{len(text)}\n" for path, text in content.items()) + f"{record},,\n"
    )
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as wheel:
            for path, text in content.items():
                wheel.writestr(zipfile.ZipInfo(path), text)
        return file.getvalue()


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256={base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


def full_files(version: str = "1.0", more: Mapping[str, bytes] | None = None) -> dict[str, bytes]:
    """Return the files of a full bundle: a wheel, a model, a configuration, and more."""
    return {
        f"wheels/vedette-{version}-py3-none-any.whl": tiny_wheel(version=version),
        **model_files(),
        "config/vedette.toml": b'[mqtt]\nhost = "broker.example"\n',
        **(more or {}),
    }


def describe(files: Mapping[str, bytes], version: str = "1.0", counter: int = 1, **other: Any) -> Description:
    """The description of a full bundle for this machine.

    Args:
        files: content by path.
        version, counter: see `Description`.
        other: its other fields.
    """
    listed = {
        path: BundleFile(hashlib.sha256(content).hexdigest(), len(content)) for path, content in files.items()
    }
    fields = {"name": "vedette", "kind": "full", "target": HERE, **other}
    return Description(schema=1, version=version, counter=counter, files=listed, **fields)


def write_bundle(
    path: Path, description: Description, files: Mapping[str, bytes], key: Key | None = None
) -> Path:
    """Write a bundle, signed if there is a key.

    Args:
        path: of the bundle.
        description: of these files.
        files: content by path.
        key: that signs.
    """
    sources = path.parent / f".{path.name}.files"
    for name, content in files.items():
        (sources / name).parent.mkdir(parents=True, exist_ok=True)
        (sources / name).write_bytes(content)
    bundle.write(path, description, {name: sources / name for name in files})
    shutil.rmtree(sources)
    if key is not None:
        signing.sign(path, key.path)
    return path


def tiny_bundle(path: Path, key: Key | None = None, version: str = "1.0", counter: int = 1, **other: Any) -> Path:
    """A full bundle with one empty wheel.

    Args:
        path: of the bundle.
        key: that signs; None: it is not signed.
        version, counter: see `Description`.
        other: other fields of the description.
    """
    files = full_files(version)
    return write_bundle(path, describe(files, version, counter, **other), files, key)


def models_bundle(path: Path, key: Key | None = None, counter: int = 1, **other: Any) -> Path:
    """A bundle of one model.

    Args:
        path, key, counter, other: see `tiny_bundle`.
    """
    files = model_files()
    described = describe(files, str(counter), counter, **{"kind": "models", "target": None, **other})
    return write_bundle(path, described, files, key)
