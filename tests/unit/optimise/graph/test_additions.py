"""An output of features: the map that is chosen, other answers as they were, and what has none."""

from __future__ import annotations

import numpy as np
import pytest

from agent.compute.infer.litert import load_runtime
from agent.compute.tflite.read import read_modelfile
from agent.errors import ModelError
from agent.models.files import load_file
from tests.support.tflite_builder import Op, T, write

if load_runtime()[0] != "litert":
    pytest.skip("the object form needs LiteRT's schema", allow_module_level=True)

from agent.optimise.graph.additions import FeatureMap, add_features


def backbone(*heights: int, channels: int = 4) -> bytes:
    """Maps of these heights, one computed from the other."""
    maps = [T(f"map{number}", (1, height, height, channels)) for number, height in enumerate(heights)]
    tensors = [T("picture", (1, 64, 64, 3)), *maps]
    return write(tensors, [Op("ABS", (n,), (n + 1,)) for n in range(len(maps))], (0,), (len(maps),))


def test_the_last_map_of_the_stage_at_a_sixteenth_is_chosen() -> None:
    found = add_features(backbone(32, 16, 8, 4, 4, 2, 4, 8))
    assert found.maps == [FeatureMap("serving_default", "map4", (1, 4, 4, 4))]
    (signature,) = read_modelfile(found.content).signatures
    assert set(signature.outputs) == {"map7", "features"}
    graph = read_modelfile(found.content).subgraphs[0]
    assert graph.tensors[signature.outputs["features"]].name == "features"


def test_a_named_map_is_taken() -> None:
    assert add_features(backbone(32, 16, 8, 4, 2), "map1").maps[0].shape == (1, 16, 16, 4)


@pytest.mark.parametrize(
    ("tensor", "why"), [("nothing", "no tensor"), ("picture", "no inner"), ("map2", "no inner")]
)
def test_a_map_that_cannot_be_an_output_is_refused(tensor: str, why: str) -> None:
    with pytest.raises(ModelError, match=why):
        add_features(backbone(32, 4, 2), tensor)


def test_a_model_without_such_a_map_or_with_features_is_refused() -> None:
    with pytest.raises(ModelError, match="--tensor"):
        add_features(backbone(32, 16))
    with pytest.raises(ModelError, match="already"):
        add_features(add_features(backbone(32, 4, 2)).content)
    words = write([T("x", (1, 4)), T("y", (1, 4))], [Op("ABS", (0,), (1,))], (0,), (1,))
    with pytest.raises(ModelError, match="takes no picture"):
        add_features(words)


def test_the_detector_answers_as_before_and_gives_a_map_for_each_size() -> None:
    content, _ = load_file("nanodet")
    file = read_modelfile(content)
    shapes = {
        one.name: file.subgraphs[one.subgraph].tensors[one.outputs["features"]].shape for one in file.signatures
    }
    assert shapes == {"s416": (1, 26, 26, 256), "s320": (1, 20, 20, 256), "s256": (1, 16, 16, 256)}
    found, _ = load_file("blood-cells")
    before, after = (runner(one) for one in (found, add_features(found).content))
    picture = np.random.default_rng(0).integers(0, 255, (1, 288, 384, 3), dtype=np.uint8)
    (name,) = before.get_input_details()
    first, second = before(**{name: picture}), after(**{name: picture})
    assert set(second) == {*first, "features"}
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key])


def runner(content: bytes):  # type: ignore[no-untyped-def]  # LiteRT's runners have no types
    interpreter = load_runtime()[1].Interpreter(model_content=content, num_threads=1)
    return interpreter.get_signature_runner("serving_default")
