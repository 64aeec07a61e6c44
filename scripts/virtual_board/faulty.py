"""Faulty bundles, each made from a real one: what is in it is unpacked, one thing spoiled, and signed again."""

from __future__ import annotations

import base64
import hashlib
import io
import shutil
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from goods import SEEN_FROM, Goods
from msgspec.structs import replace

from agent.update import bundle
from agent.update.bundle import Description, HealthGate, Migration, ShadowGate, Target, build, signing
from tests.support.colours import EDGES, colour_model
from tests.support.tiny_bundles import Key

Change = Callable[[Path, Description], Description]
"""Changes the unpacked files of a bundle and returns the description; its list of files is renewed afterwards."""
SLOW_SIDE = 960
"""Pixels of the slow model's input, either way: it computes 200,000 times as much."""


class Spoiler:
    """Makes faulty bundles from a good one.

    Attributes:
        goods: whose keys sign.
        good: the bundle that they are made from.
    """

    def __init__(self, goods: Goods, good: Path) -> None:
        """Create from a good bundle.

        Args:
            goods: whose keys sign.
            good: bundle to make them from.
        """
        self.goods, self.good = goods, good
        self.folder = goods.folder / "faulty"
        self.folder.mkdir(exist_ok=True)

    def make(
        self, name: str, change: Change, *, key: Key | None = None, health: HealthGate | None = None
    ) -> Path:
        """Make a bundle with a change.

        Args:
            name: of its file.
            change: see there.
            key: that signs; None: that of the goods.
            health: gate of its trial; None: as in the good one.
        """
        path, files = self.folder / f"{name}.vedette", self.folder / f"{name}.files"
        shutil.rmtree(files, ignore_errors=True)
        described = bundle.read_description(self.good)
        bundle.unpack(self.good, described, files)
        described = change(files, replace(described, health=health or described.health))
        sources = {
            str(one.relative_to(files)): one for one in files.rglob("*") if one.is_file() and one.parent != files
        }
        described = replace(described, files={name: bundle.listed(one) for name, one in sources.items()})
        bundle.write(path, described, sources)
        signing.sign(path, (key or self.goods.key).path)
        shutil.rmtree(files)
        return path

    def copy(self, name: str) -> Path:
        """Copy the good bundle and its signature, to be changed as bytes."""
        path = self.folder / f"{name}.vedette"
        shutil.copy(self.good, path)
        shutil.copy(signing.signature_of(self.good), signing.signature_of(path))
        return path


def nothing(_: Path, described: Description) -> Description:
    """Change nothing."""
    return described


def described_as(**fields: Any) -> Change:
    """Change fields of the description."""
    return lambda _, described: replace(described, **fields)


def aimed_at(**fields: Any) -> Change:
    """Change the target."""

    def change(_: Path, described: Description) -> Description:
        assert isinstance(described.target, Target)
        return replace(described, target=replace(described.target, **fields))

    return change


def without_wheel(name: str) -> Change:
    """Remove a required wheel."""

    def change(files: Path, described: Description) -> Description:
        (found,) = (files / "wheels").glob(f"{name}-*.whl")
        found.unlink()
        return described

    return change


def migrating(*rules: Migration) -> Change:
    """Add migrations of the configuration."""
    return described_as(migrations=list(rules))


def coded(module: str, code: str) -> Change:
    """Insert code into a module of Vedette, after its imports from `__future__`."""

    def change(files: Path, described: Description) -> Description:
        (wheel,) = (files / "wheels").glob("vedette-*.whl")
        wheel.write_bytes(_rewritten(wheel.read_bytes(), module, code))
        return described

    return change


def wrong_golden(name: str) -> Change:
    """Change the golden answers of a model."""

    def change(files: Path, described: Description) -> Description:
        path = files / f"golden/{name}.npz"
        arrays = _arrays(path)
        first = next(key for key in arrays if key.startswith("out"))
        arrays[first] = arrays[first] + np.ones_like(arrays[first]) * 50
        np.savez(path, **arrays)  # type: ignore[arg-type]  # of its own option
        return described

    return change


def _arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file}


def slow_model(files: Path, described: Description) -> Description:
    """Replace the model by one with a far larger input.

    Its golden answer is to a black picture: to any other each processor adds a million numbers in its own order.
    """
    made = files.with_suffix(".slow")
    made.mkdir()
    manifest = colour_model(made, threshold=SEEN_FROM, side=SLOW_SIDE)
    for name, content in build.gather(str(manifest)):
        (files / name).write_bytes(content)
    shutil.rmtree(made)
    golden = files / "golden/colour.npz"
    arrays = _arrays(golden)
    arrays["in0"][:], arrays["out2"][:] = 0, 0.0
    arrays["out0"][:] = EDGES
    np.savez(golden, **arrays)  # type: ignore[arg-type]  # of its own option
    return described


def disagreeing(files: Path, described: Description) -> Description:
    """Bring only a model that detects nothing, with a shadow."""
    for folder in ("wheels", "config"):
        shutil.rmtree(files / folder, ignore_errors=True)
    manifest = files / "models/colour.toml"
    table = tomllib.loads(manifest.read_text())
    table["output"]["score_threshold"] = 1.0
    manifest.write_text(tomli_w.dumps(table))
    shadow = ShadowGate(compared=10, every=1, within_s=300.0)
    return replace(described, kind="models", target=None, migrations=[], shadow=shadow)


def _rewritten(wheel: bytes, module: str, code: str) -> bytes:
    """Write a wheel with code in one of its modules, and a correct RECORD."""
    with zipfile.ZipFile(io.BytesIO(wheel)) as old, io.BytesIO() as file:
        content = {one.filename: old.read(one) for one in old.infolist()}
        content[module] = _begun(content[module].decode(), code).encode()
        (record,) = (name for name in content if name.endswith(".dist-info/RECORD"))
        content[record] = _record(content, record).encode()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
            for name, data in content.items():
                new.writestr(zipfile.ZipInfo(name), data)
        return file.getvalue()


def _begun(text: str, code: str) -> str:
    first = "from __future__ import annotations\n"
    assert first in text
    return text.replace(first, f"{first}\n{code}\n", 1)


def _record(content: dict[str, bytes], record: str) -> str:
    lines = []
    for name, data in content.items():
        if name != record:
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            lines.append(f"{name},sha256={digest},{len(data)}\n")
    return "".join(lines) + f"{record},,\n"
