"""Networks out of a user's file."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="loading modules needs the extra [optimise]")

from agent.errors import ModelError
from agent.optimise.factory import build_classifier, learned_of, load_factory, save_module

NET = """
from torch import nn
from own_widths import WIDTH

def small():
    return nn.Sequential(nn.Conv2d(3, WIDTH, 1), nn.ReLU())

def prints():
    print("from the factory")
    return small()

def fails():
    raise ValueError("no such width\\nsecond line")

def leaves():
    raise SystemExit(3)

def wrong():
    return 7

VALUE = 3
"""


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "own_net.py"
    path.write_text(NET)
    (tmp_path / "own_widths.py").write_text("WIDTH = 4\n")
    yield path
    for name in ("own_net", "own_widths"):
        sys.modules.pop(name, None)


def test_a_function_of_a_file_and_of_its_neighbours_gives_a_module(net: Path) -> None:
    before = list(sys.path)
    module = load_factory(f"{net}:small")
    assert module[0].weight.shape == (4, 3, 1, 1)
    assert sys.path == before
    assert load_factory(f"{net}:small") is not module


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("fails", "line 13: ValueError: no such width"),
        ("leaves", "SystemExit: 3"),
        ("wrong", "returned int"),
        ("smal", "did you mean 'small'"),
        ("VALUE", "there are"),
    ],
)
def test_what_is_wrong_with_a_factory_is_told(net: Path, name: str, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        load_factory(f"{net}:{name}")


@pytest.mark.parametrize("source", ["net.py", "net:small", "net.py:", "net.py:a b", ""])
def test_a_source_names_a_file_and_a_function(source: str) -> None:
    with pytest.raises(ModelError, match=r"path\.py:factory"):
        load_factory(source)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        load_factory(f"{tmp_path / 'none.py'}:small")


@pytest.mark.parametrize("content", ["1 +", "import nothing_like_this", "raise SystemExit(3)", "x = 1 / 0"])
def test_a_file_that_fails_is_told_and_not_kept(tmp_path: Path, content: str) -> None:
    path = tmp_path / "own_broken.py"
    path.write_text(content)
    with pytest.raises(ModelError, match=r"own_broken\.py: cannot be imported"):
        load_factory(f"{path}:small")
    assert "own_broken" not in sys.modules


def test_a_file_called_like_a_module_in_use_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "json.py"
    path.write_text("def small(): pass")
    import json

    with pytest.raises(ModelError, match="another name"):
        load_factory(f"{path}:small")
    assert sys.modules["json"] is json


def renamed(state: dict[str, Any]) -> dict[str, Any]:
    return {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}


@pytest.mark.parametrize("change", [dict, renamed, lambda state: {"model": state}])
def test_weights_are_loaded(net: Path, tmp_path: Path, change: Any) -> None:
    module, file = load_factory(f"{net}:small"), tmp_path / "weights.pt"
    torch.save(change(module.state_dict()), file)
    loaded = load_factory(f"{net}:small", file)
    assert all(torch.equal(one, loaded.state_dict()[name]) for name, one in module.state_dict().items())


@pytest.mark.parametrize(
    ("stored", "told"),
    [
        ({"0.weight": torch.zeros(4, 3, 1, 1)}, "0.bias is missing"),
        ({"0.weight": torch.zeros(5, 3, 1, 1), "0.bias": torch.zeros(4)}, r"\[5, 3, 1, 1\], not \[4, 3, 1, 1\]"),
        ({"0.weight": torch.zeros(4, 3, 1, 1), "0.bias": 3}, "no tensor"),
        ([1, 2], "expected a state dict"),
    ],
)
def test_weights_that_do_not_fit_are_refused(net: Path, tmp_path: Path, stored: Any, told: str) -> None:
    file = tmp_path / "weights.pt"
    torch.save(stored, file)
    with pytest.raises(ModelError, match=told):
        load_factory(f"{net}:small", file)


def test_files_that_are_no_weights_are_refused(net: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    with pytest.raises(ModelError, match="no such file"):
        load_factory(f"{net}:small", file)
    file.write_bytes(b"nothing of torch")
    with pytest.raises(ModelError, match="no weights"):
        load_factory(f"{net}:small", file)


def test_what_a_file_prints_goes_to_stderr(tmp_path: Path, net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net.write_text(f"print('from the file')\n{NET}")
    load_factory(f"{net}:prints")
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines() == ["from the file", "from the factory"]


@pytest.mark.parametrize("content", [b"cat\ndog\n", pickle.dumps(sys.exit), b"PK\x03\x04" + b"\n\x1b[1m" * 500])
def test_the_text_of_torch_is_not_passed_on(net: Path, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "weights.pt"
    file.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load_factory(f"{net}:small", file)
    told = str(caught.value).removeprefix(f"{file}: ")
    assert "no weights" in told
    assert "weights_only" not in told
    assert told.isprintable()
    assert len(told) < 280


CLASSES = """
from torch import nn

def head(classes, width=2):
    return nn.Sequential(nn.Linear(width, classes))

def fixed():
    return nn.Sequential(nn.Linear(2, 3))
"""


def test_a_function_that_takes_the_classes_is_told_them_again_by_its_weights(tmp_path: Path) -> None:
    (tmp_path / "own_head.py").write_text(CLASSES)
    for name, parameters in (("head", {"classes": 3}), ("fixed", {})):
        source = f"{tmp_path / 'own_head.py'}:{name}"
        module, found = build_classifier(source, 3)
        assert found == parameters
        (tmp_path / "net.pt").write_bytes(save_module(module, source, found))
        loaded = load_factory(source, tmp_path / "net.pt")
        assert torch.equal(loaded[0].weight, module[0].weight)
        if parameters:
            told = (
                r"own_head.py:fixed: TypeError: .*; .*net.pt was written for .*own_head.py:head with classes = 3"
            )
            with pytest.raises(ModelError, match=told):
                load_factory(f"{tmp_path / 'own_head.py'}:fixed", tmp_path / "net.pt")
    sys.modules.pop("own_head", None)


def test_weights_keep_what_they_were_trained_on(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 3)
    (tmp_path / "net.pt").write_bytes(save_module(module, "net.py:build", {}, ("ab", "cd")))
    assert learned_of(tmp_path / "net.pt") == ("ab", "cd")
    torch.save({"state_dict": module.state_dict(), "learned": ["of others"]}, tmp_path / "own.pt")
    assert learned_of(tmp_path / "own.pt") == learned_of(None) == ()


@pytest.mark.parametrize("parameters", [{"lr": 0.1}, {1: 2}, {"source": "x"}, [3], None])
def test_parameters_in_weights_of_others_are_no_arguments(tmp_path: Path, parameters: Any) -> None:
    (tmp_path / "own_head.py").write_text(CLASSES)
    source = f"{tmp_path / 'own_head.py'}:fixed"
    module = load_factory(source)
    torch.save({"state_dict": module.state_dict(), "parameters": parameters}, tmp_path / "net.pt")
    assert torch.equal(load_factory(source, tmp_path / "net.pt")[0].weight, module[0].weight)
    (tmp_path / "own.pt").write_bytes(save_module(module, source, {"depth": 3}))
    with pytest.raises(ModelError, match="'depth'"):
        load_factory(source, tmp_path / "own.pt")
    sys.modules.pop("own_head", None)
