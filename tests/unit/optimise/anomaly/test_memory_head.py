from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="models are written with ai-edge-litert")

from agent.compute.manifest import InputManifest, Manifest, Model, OutputManifest
from agent.errors import ModelError
from agent.models.library import open_whole_model
from agent.optimise.anomaly.memory import OUTPUT, Floats, add_memory, features_of, learn
from agent.optimise.data import read_examples
from agent.optimise.evaluate import open_content, outputs_of
from tests.support import tflite_builder as build


def backbone(*shape: int, kind: str = "float32") -> bytes:
    """A model that hands its input on."""
    tensors = [
        build.T("image", shape, kind),
        build.T("zero", shape[-1:], kind, np.zeros(shape[-1:], kind)),
        build.T("features", shape, kind),
    ]
    return build.write(tensors, [build.Op("ADD", (0, 1), (2,))], inputs=(0,), outputs=(2,))


def outputs(content: bytes, manifest: Manifest, folder: Path) -> Floats:
    """What a file gives for the pictures of a folder."""
    examples = read_examples(folder, Model(content, "", manifest, "m"))
    with open_content(content, manifest) as session:
        return np.stack([one[0][0] for one in outputs_of(session, examples)])


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for number in range(8):
        cv2.imwrite(str(tmp_path / f"{number}.png"), random.integers(0, 255, (40, 40, 3), np.uint8))
    return tmp_path


@pytest.mark.parametrize("name", ["float", "int8"])
def test_the_file_gives_the_distances_to_the_memory(name: str, pictures: Path) -> None:
    bundled = open_whole_model("inspection")
    content, manifest = bundled.content, bundled.manifest
    if name == "float":
        content = backbone(1, 16, 16, 3)
        manifest = Manifest("m", input=InputManifest(std=(255.0,) * 3), output=OutputManifest("features"))
    features = outputs(content, manifest, pictures)
    memory = learn(features[:4].reshape(-1, features.shape[-1]), 50)
    found = outputs(add_memory(content, memory), manifest, pictures)
    assert found.shape == (8, *features.shape[1:3], 1)
    np.testing.assert_allclose(found[..., 0], memory.distances(features), rtol=2e-3, atol=2e-3)


def test_the_output_is_called_anomaly() -> None:
    memory = learn(np.random.default_rng(0).random((20, 3)).astype(np.float32), 4)
    content = add_memory(backbone(1, 16, 16, 3), memory)
    with open_content(content, Manifest("m")) as session:
        (spec,) = session.outputs
    assert (spec.name, spec.shape, spec.dtype) == (OUTPUT, (1, 16, 16, 1), "float32")


def test_what_is_no_backbone_is_refused() -> None:
    assert features_of(backbone(1, 8, 4, 3)) == (8, 4, 3)
    for content, expected in (
        (backbone(1, 10), r"output 'features' is \[1, 10\]: expected features of places"),
        (backbone(1, 1, 1, 30), r"is \[1, 1, 1, 30\]: expected features of places"),
        (backbone(1, 8, 8, 3, kind="int32"), "neither float32 nor 8 bits"),
        (open_whole_model("nanodet").content, "the model has 3 graphs"),
    ):
        with pytest.raises(ModelError, match=expected):
            features_of(content)
