from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from agent.errors import ModelError
from tests.support.decoding import manifest_from

OUTPUT = {"decoder": "classify"}
AUDIO = {"rate_hz": 16000, "frontend": "logmel"}


def test_a_manifest_has_one_variant_unless_it_names_several() -> None:
    manifest = manifest_from({"name": "x", "output": OUTPUT}, "x.toml")
    assert [variant.signature for variant in manifest.variants] == [""]
    assert manifest.variant("") == manifest.variants[0]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"name": "x", "output": OUTPUT, "wat": 1}, "unknown key `wat`; known: audio, description,"),
        ({"name": "x", "output": OUTPUT, "input": {"means": 1}}, "`input.means`; did you mean 'mean'?"),
        ({"name": "x", "output": OUTPUT, "variants": []}, "`variants` is empty"),
        (
            {"name": "x", "output": OUTPUT | {"score_threshold": 2}},
            "`output.score_threshold`: expected a number <= 1.0; found 2",
        ),
        (
            {"name": "x", "output": OUTPUT, "variants": [{"name": "a"}, {"name": "b"}, {"name": "a"}]},
            "`variants[2].name`: 'a' is the name of `variants[0]`, too",
        ),
        ({"name": "x", "output": OUTPUT, "input": {"std": [1.0, 1.0, 0.0]}}, "`input.std[2]`"),
        ({"name": "x", "output": OUTPUT, "input": {"mean": [math.nan, 1.0, 1.0]}}, "`input.mean[0]`"),
        ({"name": "x", "output": OUTPUT, "audio": AUDIO | {"std": 1e-310}}, "`audio.std`"),
        ({"name": "x", "output": OUTPUT, "audio": AUDIO | {"std": math.inf}}, "`audio.std`"),
        ({"name": "x", "output": OUTPUT, "audio": AUDIO | {"mean": -math.inf}}, "`audio.mean`"),
        ({"name": "x", "output": OUTPUT, "variants": [{"name": "a", "temperature": math.inf}]}, "temperature"),
        (
            {"name": "x", "output": OUTPUT, "verification": {"model": "m", "head": "h", "longest_s": 0.4}},
            "`verification.longest_s`: has no effect without `running_threshold`",
        ),
        ({"name": "x", "output": OUTPUT | {"labels": ["a", "b", "a"]}, "audio": AUDIO}, "'a' more than once"),
    ],
)
def test_a_bad_manifest_names_its_file_and_key(data: dict[str, object], expected: str) -> None:
    with pytest.raises(ModelError, match=r"^x\.toml: ") as caught:
        manifest_from(data, "x.toml")
    assert expected in str(caught.value)


def test_lists_of_what_pictures_show_may_have_gaps() -> None:
    data = {"name": "x", "output": OUTPUT | {"labels": ["crane", "???", "???", "crane"]}}
    assert len(manifest_from(data, "x.toml").output.labels) == 4


def test_an_unknown_variant_names_the_known() -> None:
    data = {"name": "x", "output": OUTPUT, "variants": [{"name": "416"}, {"name": "320"}]}
    with pytest.raises(ModelError, match="no variant '415'; it has: 416, 320"):
        manifest_from(data, "x.toml").variant("415")


def exits(variant: str, *variants: Mapping[str, object]) -> list[str]:
    manifest = manifest_from({"name": "x", "output": OUTPUT, "variants": list(variants)}, "x.toml")
    return [one.name for one in manifest.exits(variant)]


def test_calibrated_exits_are_a_cascade_and_sizes_are_not() -> None:
    deep, shallow = {"name": "12", "after": "3"}, {"name": "3", "confidence": 0.9}
    large, small = {"name": "416"}, {"name": "256", "confidence": 0.9}
    assert exits("", deep, shallow) == exits("auto", deep, shallow) == ["3", "12"]
    assert exits("", large, small) == exits("256", large, small) == exits("12", deep, shallow) == []
    assert exits("", deep, {"name": "3"}) == [], "not calibrated"
    with pytest.raises(ModelError, match=r"`vedette optimise calibrate`, or name one of 12, 3$"):
        exits("auto", deep, {"name": "3"})
    with pytest.raises(ModelError, match=r"sizes only: name one of 416, 256$"):
        exits("auto", large, small)


def test_no_variant_is_called_auto() -> None:
    with pytest.raises(ModelError, match=r"^x\.toml: `variants\[0\]\.name`: no variant can be called 'auto'"):
        exits("", {"name": "auto"})
