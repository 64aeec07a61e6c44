"""A small float keyword model, and examples for it whose values are all near 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.support.float_models import CLASSES, SIDE, classifier


def write_sound(folder: Path, count: int) -> Any:
    """Write a keyword model `net.tflite`, its manifest, and `data.npz` of values that are all near 0.

    Returns the module, which knows the classes.
    """
    import torch

    from agent.optimise.graph.from_torch import float_tflite

    rows, columns = np.indices((SIDE, SIDE))
    kinds = np.stack([rows % 2, columns % 2, (rows + columns) % 2, rows * 0])
    labels = np.arange(count) % CLASSES
    values = np.random.default_rng(0).normal(0.0, 0.02, (count, SIDE, SIDE, 1)).astype(np.float32)
    values += 0.08 * kinds[labels, ..., None].astype(np.float32)
    np.savez(folder / "data.npz", x=values, y=labels)
    module = classifier()
    module.stem = torch.nn.Conv2d(1, module.stem.out_channels, 3, padding=1)
    seen: list[Any] = []
    handle = module.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        module(torch.from_numpy(values).permute(0, 3, 1, 2))
        known = torch.nn.functional.pad(seen[0], (0, 1), value=1.0).double()
        wanted = 4.0 * torch.nn.functional.one_hot(torch.from_numpy(labels)).double()
        found = torch.linalg.pinv(known, rtol=1e-6) @ wanted
        module.head.weight.copy_(found[:-1].T)
        module.head.bias.copy_(found[-1])
    handle.remove()
    (folder / "net.tflite").write_bytes(float_tflite(module, (SIDE, SIDE, 1)))
    audio = f'[audio]\nrate_hz = 8000\nfrontend = "logmel"\n[audio.options]\nmels = {SIDE}\n'
    output = '[output]\ndecoder = "keyword"\nlabels = ["a", "b", "c", "unknown"]\n'
    options = "[output.options]\nlogits = true\nmean_of = 2\n"
    (folder / "net.toml").write_text(f'name = "net"\nfile = "net.tflite"\n{audio}{output}{options}')
    return module
