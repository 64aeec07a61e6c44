"""Golden answers: made by the CPU, the same each time, and another model does not pass for the first."""

from __future__ import annotations

import io
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from agent.compute.manifest import GoldenManifest, Manifest, Variant
from agent.config import StreamConfig
from agent.errors import BundleError, GoldenError
from agent.features.chains.models import open_secondary
from agent.models.library import open_whole_model
from agent.types import Array
from agent.update.bundle.build import gather
from agent.update.bundle.golden import compare, make
from tests.support.chains import chained_model, tint_model
from tests.support.running import ROOT
from tests.support.tflite_builder import fully_connected_model
from tests.support.tiny_bundles import MODEL, model_files

GOLDEN = f"golden/{MODEL}.npz"
ANOTHER = ROOT / "tests" / "golden" / "small-speech.npz"
"""By `make` on an x86-64."""


@pytest.fixture(scope="module")
def content() -> bytes:
    return model_files()[f"models/{MODEL}.tflite"]


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return open_whole_model(MODEL).manifest


def test_the_models_that_a_manifest_names_are_gathered_with_it(tmp_path: Path) -> None:
    tint_model(tmp_path, "third")
    tint_model(tmp_path, "second", '[[secondary]]\nname = "then"\nmodel = "third.toml"\n')
    path = chained_model(tmp_path, '[[secondary]]\nname = "two"\nmodel = "second.toml"\n')
    files = dict(gather(str(path)))
    assert {f"models/{name}.tflite" for name in ("person", "second", "third")} <= files.keys()
    assert b'model = "second.toml"' in files["models/person.toml"]
    board = tmp_path / "board"
    (board / "models").mkdir(parents=True)
    for name, body in files.items():
        if name.startswith("models/"):
            (board / name).write_bytes(body)
    config = StreamConfig("test:", str(board / "models" / "person.toml"))
    opened = open_secondary("front", config, open_whole_model(config.model))
    assert [each.config.name for one in opened for each in one.chain()] == ["two", "then"]


def test_a_circle_of_manifests_is_not_gathered(tmp_path: Path) -> None:
    tint_model(tmp_path, "tint", '[[secondary]]\nname = "again"\nmodel = "tint.toml"\n')
    with pytest.raises(BundleError, match="circle"):
        dict(gather(str(chained_model(tmp_path))))


def arrays() -> dict[str, Array]:
    with np.load(io.BytesIO(model_files()[GOLDEN])) as file:
        return {name: file[name] for name in file.files}


def packed(given: dict[str, Array]) -> bytes:
    with io.BytesIO() as file:
        np.savez(file, allow_pickle=False, **given)
        return file.getvalue()


def test_a_model_answers_as_it_did(content: bytes, manifest: Manifest) -> None:
    compare(content, manifest, model_files()[GOLDEN])


@pytest.mark.numerics
def test_what_another_processor_answered_is_within_the_tolerance(content: bytes, manifest: Manifest) -> None:
    compare(content, manifest, ANOTHER.read_bytes())


def test_they_are_the_same_bytes_each_time(content: bytes, manifest: Manifest) -> None:
    time.sleep(2.1)  # a zip file's times have a resolution of 2 s
    assert make(content, manifest) == model_files()[GOLDEN]


def test_they_are_named_by_number(manifest: Manifest) -> None:
    assert sorted(arrays()) == ["in0", "out0"]
    assert arrays()["out0"].shape[-1] == len(manifest.output.labels)


def test_a_wrong_answer_is_told_by_model_output_and_difference(content: bytes, manifest: Manifest) -> None:
    wrong = {**arrays(), "out0": arrays()["out0"][:, ::-1]}
    with pytest.raises(GoldenError, match=r"model small-speech: output 0 \(.+\): answers wrongly: error [\d.]+%"):
        compare(content, manifest, packed(wrong))


def test_the_manifest_says_how_far_off_an_answer_may_be(content: bytes, manifest: Manifest) -> None:
    off = {**arrays(), "out0": arrays()["out0"] + np.float32(0.05) * arrays()["out0"].std()}
    compare(content, replace(manifest, golden=GoldenManifest(tolerance=0.2)), packed(off))
    with pytest.raises(GoldenError, match=r"allowed 1\.0%"):
        compare(content, replace(manifest, golden=GoldenManifest(tolerance=0.01)), packed(off))


def test_those_of_another_model_are_refused(manifest: Manifest) -> None:
    with pytest.raises(GoldenError, match="input 0: golden input of another shape"):
        compare(fully_connected_model(), replace(manifest, variants=(Variant("full"),)), model_files()[GOLDEN])


def test_a_model_whose_answers_are_not_finite_has_no_golden_ones(manifest: Manifest) -> None:
    endless = fully_connected_model(np.full((2, 4), np.inf, np.float32))
    with pytest.raises(GoldenError, match="model small-speech: output y is not finite"):
        make(endless, replace(manifest, variants=(Variant("full"),)))


@pytest.mark.parametrize("name", ["in0", "out0"])
def test_one_that_is_missing_or_too_much_is_refused(content: bytes, manifest: Manifest, name: str) -> None:
    with pytest.raises(GoldenError, match="another shape"):
        compare(content, manifest, packed({key: one for key, one in arrays().items() if key != name}))
    with pytest.raises(GoldenError, match="more golden answers than outputs"):
        compare(content, manifest, packed({**arrays(), "out9": np.zeros(1, np.float32)}))


def test_not_finite_is_refused(content: bytes, manifest: Manifest) -> None:
    with pytest.raises(GoldenError, match="are not finite"):
        compare(content, manifest, packed({**arrays(), "out0": np.full_like(arrays()["out0"], np.inf)}))


def bomb() -> bytes:
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
            made.writestr("in0.npy", bytes(50_000_000))
        return file.getvalue()


def pickled() -> bytes:
    with io.BytesIO() as file:
        np.savez(file, in0=np.array([{"evil": 1}], dtype=object))
        return file.getvalue()


@pytest.mark.parametrize("golden", [b"", b"PK\x03\x04", bomb(), pickled(), packed({})[:-4]])
def test_what_is_no_golden_answer_is_refused_without_running_it(
    content: bytes, manifest: Manifest, golden: bytes
) -> None:
    with pytest.raises(GoldenError, match="the golden answers "):
        compare(content, manifest, golden)


def test_a_bundle_has_what_a_manifest_names(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("models")
    for path, data in gather("nanodet"):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(data)
    opened = open_whole_model(str(folder / "models" / "nanodet.toml"))
    assert opened.manifest.output.labels == open_whole_model("nanodet").manifest.output.labels
    assert (folder / "models" / opened.manifest.golden.files[0]).is_file()
    compare(opened.content, opened.manifest, (folder / "golden" / "nanodet.npz").read_bytes())
