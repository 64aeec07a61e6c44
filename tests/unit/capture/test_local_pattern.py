from __future__ import annotations

import numpy as np

from agent.capture.source import open_source


def test_the_pattern_is_always_the_same() -> None:
    first, second = (open_source("test:?size=160x120&frames=5", stall_s=1) for _ in range(2))
    for _ in range(5):
        one, other = first.read(None), second.read(None)
        assert one is not None
        assert other is not None
        np.testing.assert_array_equal(one, other)
        assert one.shape == (120, 160, 3)
    assert first.read(None) is None
    first.close()


def test_the_pattern_moves() -> None:
    source = open_source("test:?size=160x120", stall_s=1)
    one, other = source.read(None), source.read(None)
    assert one is not None
    assert other is not None
    assert (one != other).any()


def test_the_pattern_goes_on_in_pictures_of_any_size() -> None:
    source = open_source("test:?size=16x64", stall_s=1)
    for _ in range(500):
        picture = source.read(None)
        assert picture is not None
        assert (picture == (64, 224, 255)).all(axis=2).sum() == 16


def test_memory_is_reused_where_it_fits() -> None:
    source = open_source("test:?size=160x120&fps=20", stall_s=1)
    image = source.read(None)
    assert source.read(image) is image
    assert source.read(np.zeros((1, 1, 3), np.uint8)) is not image


def test_the_pace_is_that_of_the_uri() -> None:
    paced, fast = open_source("test:?fps=20", stall_s=1), open_source("test:?fps=20&pace=fast", stall_s=1)
    assert (paced.pace_s, fast.pace_s) == (0.05, 0.0)
    assert paced.period_s == fast.period_s == 0.05
    assert paced.description == "640x480 at 20 fps"
    assert not paced.live
