"""Quantise float files that were not made for it: 26 kinds of networks by Keras, and EfficientNet-Lite0.

Each file goes through the code of `vedette optimise quantise`, by `int8`, `int4`, `dynamic` and by what the verb
chooses itself. Fidelity is 1 less the root mean square of the difference from the float outputs, as a share of
their deviation, of the worst output, on examples that nothing was calibrated with. With --quick four networks.

EfficientNet-Lite0 of PyPI gets a last layer for CIFAR-10 as in `optimise/tune`; 600 training pictures calibrate,
and 2,000 test pictures judge.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import _foreign
import numpy as np
from _cifar import BUILD, ROOT, cifar
from common import arguments, conclude, data_argument
from tune import SIDE, enlarged, stranger, write

from agent.compute.manifest import Model
from agent.compute.tflite.read import read_modelfile
from agent.errors import ModelError
from agent.models.library import open_whole_model
from agent.optimise.data import Examples, read_examples
from agent.optimise.evaluate import change, open_content, outputs_of, score
from agent.optimise.quantisation.request import QuantisedFile, QuantiseRequest, quantise_file
from agent.optimise.quantise import float_file, quantise, shapes_of
from agent.optimise.recipe import Method, QuantiseRecipe
from agent.optimise.recipe.budget import Budget
from agent.optimise.source import open_source
from agent.optimise.tune import split

FILES = BUILD / "foreign"
QUICK = ("convolutions", "vision_transformer", "two_inputs", "branches")
METHODS: tuple[Method, ...] = ("int8", "int4", "dynamic")
PIXELS = """
[input]
mean = [127.5, 127.5, 127.5]
std = [127.5, 127.5, 127.5]
"""
FAITHFUL = 0.95
SLOWER, CLOCK_MS = 1.1, 0.001
"""Share of the time that counts as slower, and what two times differ by chance, as in the reports."""
TARGETS = {
    "written": "== 1 of all files in int8, int4 and dynamic",
    "tracebacks": "== 0",
    "faithful_dynamic": ">= 0.9 of the files with a fidelity of 0.95",
    "faithful_by_itself": ">= 0.85 of the files",
    "worse_without_a_word": "== 0 results by itself that are larger or slower than the float file",
}
LITE0_TARGETS = {
    "lite0_int8_error": "<= 0.09 of the logits' deviation",
    "lite0_int4_error": "<= 0.19",
    "lite0_mixed_error": "<= 0.15",
    "lite0_mixed_size": "<= 0.39 of float16's",
    "lite0_int8_cpu_s": "<= 25",
    "lite0_int4_cpu_s": "<= 25",
    "lite0_mixed_cpu_s": "<= 90",
    "lite0_int8_gain_upper": ">= -0.005 of top-1, upper end of the paired interval",
    "lite0_int4_gain_upper": ">= -0.01",
    "lite0_mixed_gain_upper": ">= -0.005",
}


class Result(NamedTuple):
    """One file by one method; `fidelity` -inf: it was not written."""

    fidelity: float
    is_traceback: bool = False
    is_worse_without_a_word: bool = False


def build() -> None:
    """Let Keras write the files, once."""
    if not (FILES / "complete").exists():
        python = ROOT / ".venv-foreign" / "bin" / "python"
        subprocess.run([python, _foreign.__file__, FILES], check=True, stdout=subprocess.DEVNULL)


def placed(name: str, folder: Path) -> tuple[Path, Path]:
    """Lay a file and its examples as a user would; pictures of the bench are real values."""
    model, data = folder / f"{name}.tflite", folder / f"{name}.npz"
    content = (FILES / f"{name}.tflite").read_bytes()
    model.write_bytes(content)
    file = read_modelfile(content)
    with np.load(FILES / f"{name}.npz") as stored:
        arrays = [stored[one] for one in stored.files]
    stated = sorted(file.signatures[0].inputs.items())
    names = [file.subgraphs[0].tensors[index].name for _, index in stated]
    np.savez(data, **(dict(zip(names, arrays, strict=True)) if len(arrays) > 1 else {"x": arrays[0]}))
    if arrays[0].ndim == 4:
        manifest = PIXELS if arrays[0].shape[-1] == 3 else "[input]\npixels = false\n"
        model.with_suffix(".toml").write_text(manifest, encoding="utf-8")
    return model, data


def judged(found: QuantisedFile, model: Path, data: Path) -> Result:
    """Measure a result on the examples that calibrated nothing."""
    opened = open_source(str(model), lambda _: None)
    _, held_out = split(read_examples(data, opened), 0.5)
    reference = float_file(opened.content, shapes_of(opened.content, held_out))
    error = score(found.content, held_out, opened.manifest, reference=reference).details["error"]
    steps = [one for one in found.report.steps if one.kept]
    before, after = steps[0].latency_ms or 0.0, steps[-1].latency_ms or 0.0
    told = any("slower" in one or "larger" in one for one in found.report.remarks)
    is_slower = after > max(SLOWER * before, before + CLOCK_MS)
    is_worse = is_slower or len(found.content) > len(opened.content)
    size = len(found.content) / len(opened.content)
    print(f"fidelity {1 - error:6.3f}, {size:.2f} of the size, {after / before:.2f} of the time")
    if is_worse and not told:
        print(f"  not told: {found.report.remarks}")
    return Result(1 - error, is_worse_without_a_word=is_worse and not told)


def tried(name: str, method: Method | None, folder: Path) -> Result:
    model, data = placed(name, folder)
    print(f"{name:18} {method or 'by itself':10}", end=" ", flush=True)
    try:
        asked = QuantiseRequest(str(model), data, method=method, qat=False)
        return judged(quantise_file(asked, lambda _: None, lambda _: None), model, data)
    except ModelError as error:
        print(f"refused: {error}")
        return Result(-np.inf)
    except Exception:
        traceback.print_exc()
        return Result(-np.inf, is_traceback=True)


def foreign(names: tuple[str, ...]) -> dict[str, float]:
    results: dict[Method | None, list[Result]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for method in (*METHODS, None):
            results[method] = [tried(name, method, Path(folder)) for name in names]
    every = [one for found in results.values() for one in found]

    def share(method: Method | None, least: float) -> float:
        return float(np.mean([one.fidelity >= least for one in results[method]]))

    return {
        "files": float(len(names)),
        "written": min(share(method, -1e9) for method in METHODS),
        "tracebacks": float(sum(one.is_traceback for one in every)),
        "faithful_int8": share("int8", FAITHFUL),
        "faithful_int4": share("int4", FAITHFUL),
        "faithful_dynamic": share("dynamic", FAITHFUL),
        "faithful_by_itself": share(None, FAITHFUL),
        "worse_without_a_word": float(sum(one.is_worse_without_a_word for one in results[None])),
    }


def logits(content: bytes, examples: Examples, model: Model) -> Any:
    with open_content(content, model.manifest) as session:
        return np.concatenate([one for (one,) in outputs_of(session, examples)])


def lite0(data: Path) -> dict[str, float]:
    pictures, folder = cifar(data), BUILD / "foreign"
    path = folder / "lite0.tflite"
    write(stranger(pictures), SIDE, path, tuple(map(str, range(10))))
    for name, values, labels, count in (
        ("calibration", pictures.pictures, pictures.labels, 600),
        ("test", pictures.test_pictures, pictures.test_labels, 2000),
    ):
        order = np.random.default_rng(1).permutation(len(labels))[:count]
        large = np.stack([enlarged(one) for one in values[order]]).astype(np.uint8)
        np.savez(folder / f"lite0_{name}.npz", x=large, y=labels[order])
    model = open_whole_model(str(path))
    seen, test = (read_examples(folder / f"lite0_{name}.npz", model) for name in ("calibration", "test"))
    wanted, before = logits(model.content, test, model), score(model.content, test, model.manifest)
    found = {"lite0_float_top1": before.value}
    half = len(model.content) / 2
    for method, budget in (("int8", None), ("int4", None), ("mixed", Budget(size=0.39 * half))):
        cpu = time.process_time()
        content = quantise(model.content, [seen], QuantiseRecipe(method=method), budget=budget).content  # type: ignore[arg-type]
        cpu = time.process_time() - cpu
        error = float(np.sqrt(np.square(logits(content, test, model) - wanted).mean()) / wanted.std())
        after = score(content, test, model.manifest)
        gained = change(before, after)
        low, high = gained.interval or (gained.value, gained.value)
        print(
            f"Lite0 {method}: top-1 {after.value:.2%} ({low:+.2%} to {high:+.2%}), error {error:.1%}, {cpu:.0f} s"
        )
        found |= {
            f"lite0_{method}_error": error,
            f"lite0_{method}_top1": after.value,
            f"lite0_{method}_gain_upper": high,
            f"lite0_{method}_cpu_s": cpu,
            f"lite0_{method}_size": len(content) / half,
        }
    return found


def main() -> None:
    parser = arguments(__doc__ or "")
    data_argument(parser)
    given = parser.parse_args()
    build()
    figures: dict[str, float] = foreign(QUICK if given.quick else tuple(_foreign.NETWORKS))
    targets = TARGETS
    if not given.quick:
        figures, targets = figures | lite0(given.data), TARGETS | LITE0_TARGETS
    conclude("optimise/foreign", figures, targets)


if __name__ == "__main__":
    main()
