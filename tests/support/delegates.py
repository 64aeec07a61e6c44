"""A real delegate that misbehaves on demand, and the model that it is right about."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np

from tests.support import tflite_builder as build

SOURCE = Path(__file__).with_name("delegate.c")
MANIFEST = """
name = "identity"
[input]  # no sound, as which a model of so many numbers counts otherwise
[output]
decoder = "classify"
labels = ["one"]
"""


COMPILER = shutil.which("cc") or shutil.which("gcc")
NO_COMPILER = "needs a C compiler: sudo apt-get install gcc libc6-dev"


def compiled(folder: Path) -> Path:
    """The delegate's library."""
    if COMPILER is None:
        raise SystemExit(NO_COMPILER)
    library = folder / "libstub_delegate.so"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-o", library, SOURCE], check=True)
    return library


def identity_model(folder: Path, steps: int = 600, size: int = 100_000) -> Path:
    """A model that multiplies by one so many times; gives its manifest's path.

    By default long enough that to copy is faster by far than to run it, whatever else the machine does.
    """
    ones = np.ones(1, np.float32)
    tensors = [build.T(f"t{n}", (1, size)) for n in range(steps + 1)] + [build.T("one", (1,), "float32", ones)]
    operations = [build.Op("MUL", (n, steps + 1), (n + 1,)) for n in range(steps)]
    (folder / "identity.tflite").write_bytes(build.write(tensors, operations, (0,), (steps,)))
    path = folder / "identity.toml"
    path.write_text(MANIFEST)
    return path


def picture_model(folder: Path, steps: int = 1) -> Path:
    """Write a model for pictures of 4×4, whose every value is the score of a label; return its manifest."""
    ones, shape = np.ones(1, np.float32), np.array([1, 48], np.int32)
    tensors = [
        build.T("one", (1,), "float32", ones),
        build.T("shape", (2,), "int32", shape),
        build.T("scores", (1, 48)),
        build.T("image", (1, 4, 4, 3)),
        *(build.T(f"again{n}", (1, 4, 4, 3)) for n in range(steps)),
    ]
    operations = [build.Op("MUL", (n + 3, 0), (n + 4,)) for n in range(steps)]
    operations.append(build.Op("RESHAPE", (steps + 3, 1), (2,)))
    (folder / "pictures.tflite").write_bytes(build.write(tensors, operations, (3,), (2,)))
    labels = ", ".join(f'"value{number}"' for number in range(48))
    path = folder / "pictures.toml"
    path.write_text(
        f'name = "pictures"\n[input]\nstd = [255.0, 255.0, 255.0]\n[output]\ndecoder = "classify"\n'
        f"labels = [{labels}]\nscore_threshold = 0.2\n"
    )
    return path
