"""`vedette models pull` of text vectors: from a real server to one file, and what is told beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from msgspec.structs import replace

from agent.cli.main import vedette
from agent.errors import ModelError
from agent.models import catalogue as catalogue_module
from agent.models.text_vectors import open_text_vectors
from tests.support.fileserver import FileServer, file_server
from tests.unit.compute.text_vectors import small
from tests.unit.models.test_text_vectors import ENTRY, table_file, wheel


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileServer]:
    path = tmp_path_factory.mktemp("package") / "w.whl"
    tokenizer = json.dumps(small.tokenizer()).encode()
    content = wheel(path, table_safetensors=table_file(), tokenizer_json=tokenizer).read_bytes()
    with file_server() as made:
        made.files["/w.whl"] = content
        entry = replace(
            ENTRY, url=f"{made.url}/w.whl", sha256=hashlib.sha256(content).hexdigest(), fetched_bytes=len(content)
        )
        monkeypatch.setattr(catalogue_module, "vectors_catalogue", lambda: (entry,))
        yield made


def called(*words: object) -> Result:
    result = CliRunner().invoke(vedette, ["models", "pull", *map(str, words)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_one_file_is_written_that_a_text_can_name(server: FileServer, tmp_path: Path) -> None:
    shown = called("text-vectors", "--to", tmp_path)
    path = tmp_path / "text-vectors.safetensors"
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    assert f'vectors = "{path}"' in shown.output
    assert open_text_vectors(path).dimensions == small.DIMENSIONS
    with pytest.raises(ModelError, match="exists; --force replaces it"):
        called("text-vectors", "--to", tmp_path)
    assert server.asked == [""], "what is there is told before anything is fetched"
    found = json.loads(called("text-vectors", "--to", tmp_path, "--force", "--json").stdout)
    assert found["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (found["dimensions"], found["metadata"]["licence"]) == (small.DIMENSIONS, "MIT")
    called("text-vectors", "--to", tmp_path, "--name", "other")
    assert (tmp_path / "other.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("options", [("--decoder", "ssd"), ("--pixels", "unit"), ("--member", "x")])
def test_options_for_models_are_refused(server: FileServer, tmp_path: Path, options: tuple[str, str]) -> None:
    with pytest.raises(ModelError, match="text-vectors"):
        called("text-vectors", "--to", tmp_path, *options)
    assert server.asked == []


def test_a_package_that_is_another_one_is_told_and_kept(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (entry,) = catalogue_module.vectors_catalogue()
    monkeypatch.setattr(catalogue_module, "vectors_catalogue", lambda: (replace(entry, member="w/none"),))
    with pytest.raises(ModelError, match=r"stays in .* for the next call"):
        called("text-vectors", "--to", tmp_path)
    assert [one.suffix for one in tmp_path.iterdir()] == [".whl"]


def test_the_catalogue_lists_them_beside_the_models() -> None:
    assert "text-vectors" in called().output
    assert "MIT" in called("--task", "text vectors").output
    assert [one["name"] for one in json.loads(called("--task", "text vectors", "--json").stdout)] == [
        "text-vectors"
    ]


def test_their_name_is_completed() -> None:
    complete = ShellComplete(vedette, {}, "vedette", "_VEDETTE_COMPLETE").get_completions
    assert [one.value for one in complete(["models", "pull"], "text")] == ["text-vectors"]
