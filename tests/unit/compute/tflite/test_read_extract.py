from __future__ import annotations

import hashlib

import numpy as np
import pytest

from agent.compute.infer.backends import open_session
from agent.compute.infer.session import SessionOptions
from agent.compute.manifest import Manifest, Model, OutputManifest, Variant
from agent.compute.tflite.read import only_signature, read_modelfile
from agent.errors import ModelError
from agent.models.library import open_whole_model
from agent.types import Array
from tests.support.tflite_builder import Graph, Op, Signature, T, add_model, write

pytestmark = pytest.mark.numerics

NANODET, RUNGS = open_whole_model("nanodet").content, open_whole_model("nanodet").manifest.variants


def answers(content: bytes, signature: str) -> dict[str, Array]:
    """Return the outputs of a signature for a picture of noise."""
    manifest = Manifest("m", OutputManifest("classify"), variants=(Variant("only", signature),))
    session = open_session(
        Model(content, hashlib.sha256(content).hexdigest(), manifest, "m.tflite"), "cpu", SessionOptions()
    )
    shape, dtype = session.inputs[0].shape, session.inputs[0].dtype
    noise = np.random.default_rng(7).integers(0, 100, shape)
    session.input(0)[:] = noise.astype(dtype)
    session.invoke()
    return {spec.name: session.output(index).copy() for index, spec in enumerate(session.outputs)}


def two_graphs(*operations: Op) -> bytes:
    """Signatures `one` and `two`, which add 1 and 2; further operations come into the first graph."""
    tensors = [[T("x", (1, 4)), T("y", (1, 4)), T("c", (4,), data=np.full(4, n, np.float32))] for n in (1, 2)]
    add = Op("ADD", (0, 2), (1,))
    keys = [Signature(name, {"x": 0}, {"y": 1}, graph) for graph, name in enumerate(("one", "two"))]
    return write(tensors[0], [add, *operations], (0,), (1,), keys, more=[Graph(tensors[1], [add], (0,), (1,))])


@pytest.mark.parametrize("variant", RUNGS, ids=lambda variant: variant.name)
def test_the_cut_file_gives_the_same_answers(variant: Variant) -> None:
    whole, cut = NANODET, only_signature(NANODET, variant.signature)
    expected, found = answers(whole, variant.signature), answers(cut, variant.signature)
    assert expected.keys() == found.keys()
    assert all(np.array_equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("variant", RUNGS, ids=lambda variant: variant.name)
def test_the_cut_file_holds_nothing_else_and_every_weight_stays_in_its_place(variant: Variant) -> None:
    cut = only_signature(NANODET, variant.signature)
    file = read_modelfile(cut)
    assert (len(file.subgraphs), [s.name for s in file.signatures]) == (1, [variant.signature])
    assert len(cut) == len(NANODET)
    changed = np.flatnonzero(np.frombuffer(cut, np.uint8) != np.frombuffer(NANODET, np.uint8))
    assert changed.size <= 5 * 4


@pytest.mark.parametrize(("name", "added"), [("one", 1), ("two", 2)])
def test_either_of_two_graphs_can_be_kept(name: str, added: int) -> None:
    assert answers(only_signature(two_graphs(), name), name)["y"].tolist() == [
        (answers(two_graphs(), name)["y"][0]).tolist()
    ]
    ones = answers(two_graphs(), "one")["y"]
    assert np.array_equal(answers(only_signature(two_graphs(), name), name)["y"], ones + added - 1)


def test_a_file_whose_graphs_call_each_other_stays_whole() -> None:
    content = two_graphs(Op("WHILE", (0,), (1,)))
    assert only_signature(content, "two") is content


def test_a_file_with_one_graph_stays_as_it_is() -> None:
    content = add_model(signature="serve")
    assert only_signature(content, "serve") is content


def test_an_unknown_signature_is_named() -> None:
    with pytest.raises(ModelError, match="no signature 'three'"):
        only_signature(two_graphs(), "three")


def test_a_damaged_file_is_refused() -> None:
    with pytest.raises(ModelError):
        only_signature(NANODET[:5000], RUNGS[0].signature)
