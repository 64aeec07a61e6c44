"""Trained nets of `baseline` as float files, with their examples, for the benches of quantisation."""

from __future__ import annotations

import hashlib
from argparse import Namespace
from typing import Any, NamedTuple

import _nets
import numpy as np
from _cifar import BUILD, Dataset
from baseline import settings, trained
from msgspec.structs import replace

from agent.compute.manifest import InputManifest, Manifest, Model, OutputManifest
from agent.optimise.data import Examples, read_examples
from agent.optimise.evaluate import score
from agent.optimise.graph.from_torch import float_tflite
from agent.optimise.qat import train_quantised
from agent.optimise.quantise import QuantisedModel, quantise
from agent.optimise.recipe import Method, QatRecipe, QuantiseRecipe, parse_recipe
from agent.optimise.train import fit

CALIBRATION = 512


class FloatNet(NamedTuple):
    """A float file with its examples.

    Attributes:
        content: the file.
        model: the same with its manifest.
        calibration: examples for ranges and rounding.
        training: all training pictures.
        test: pictures on which accuracy is told.
    """

    content: bytes
    model: Model
    calibration: Examples
    training: Examples
    test: Examples

    def accuracy(self, content: bytes) -> float:
        """Return the share of test pictures that a file gets right, in the runtime."""
        return score(content, self.test, self.model.manifest).value

    def quantised(self, method: Method, *, everywhere: bool = False) -> QuantisedModel:
        """Quantise on the calibration pictures; INT4 spares the first and last layer unless `everywhere`."""
        whole = QuantiseRecipe(examples=CALIBRATION, method=method)
        fixed = parse_recipe('[quantise]\nlayers = [{match = "*", bits = 4}]', "").layer_bits
        return quantise(
            self.content, [self.calibration], whole, layer_bits=fixed if everywhere else None, loss=self.loss
        )

    def loss(self, content: bytes) -> float:
        """Return the loss of a file on training pictures that no range was found on."""
        few = self.training.take(np.arange(7, len(self.training), 50))
        manifest = self.model.manifest
        return score(self.content, few, manifest).value - score(content, few, manifest).value

    def trained(self, found: QuantisedModel, recipe: QatRecipe, seed: int = 0) -> QuantisedModel:
        """Train a quantised net further."""
        return train_quantised(found, self.training, recipe, seed=seed, progress=show)


def show(line: str) -> None:
    """Print every fiftieth step."""
    if "step 1 of" in line or "51 of" in line or "01 of" in line:
        print(line, flush=True)


def open_net(given: Namespace, pictures: Dataset, seed: int = 0) -> FloatNet:
    """Return the trained net that the arguments name."""
    net = trained(given.net, pictures, seed)
    return packed(net, pictures)


def brief_net(pictures: Dataset) -> FloatNet:
    """Train the smallest net for seconds."""
    net = _nets.build("tiny", pictures.pictures)
    fit(net, pictures.pictures[::4], pictures.labels[::4], replace(settings(1.0, 0), batch=256))
    _nets.cool(net)
    return packed(net.eval(), pictures, tests=1000)


def packed(net: Any, pictures: Dataset, tests: int | None = None) -> FloatNet:
    """Return a net as a float file with its examples."""
    normalisation = _nets.NORMALISATION
    content = float_tflite(net, pictures.pictures.shape[1:], mean=normalisation.mean, std=normalisation.std)
    mean, std = ((float(np.mean(value)),) * 3 for value in (normalisation.mean, normalisation.std))
    labels = tuple(str(number) for number in range(_nets.CLASSES))
    manifest = Manifest(
        name="cifar",
        input=InputManifest(mean=mean, std=std),
        output=OutputManifest(decoder="classify", labels=labels),
    )
    model = Model(content, hashlib.sha256(content).hexdigest(), manifest, "cifar.tflite")
    training = _examples("cifar_training", pictures.pictures, pictures.labels, model)
    test = _examples("cifar_test", *pictures.test, model, tests)
    chosen = np.random.default_rng(0).permutation(len(training))[:CALIBRATION]
    return FloatNet(content, model, training.take(chosen), training, test)


def _examples(name: str, pictures: Any, labels: Any, model: Model, limit: int | None = None) -> Examples:
    file = BUILD / f"{name}.npz"
    if not file.is_file():
        partial = file.with_name(f".{name}.npz")
        np.savez(partial, x=pictures, y=labels)
        partial.replace(file)
    return read_examples(file, model, limit=limit)
