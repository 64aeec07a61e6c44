"""`vedette models pull`: from a real server, or a folder, to a model with its manifest."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

from agent.cli.main import vedette
from agent.errors import VedetteError
from agent.models import fetch
from agent.models.fetch import CatalogueModel
from agent.models.library import look_up
from tests.support import picture_models
from tests.support.fileserver import FileServer, file_server

MODEL = picture_models.classifier("float32", described=False)


def packed(files: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return target.getvalue()


PACKAGE = packed({"package/signs.tflite": MODEL, "package/other.tflite": MODEL})
SHA256 = hashlib.sha256(PACKAGE).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(fetch, "_WAIT_S", 0.01)
    with file_server() as made:
        made.files |= {"/signs-1.0.tgz": PACKAGE, "/m.tflite": MODEL}
        entry = CatalogueModel(
            "signs",
            "classification",
            "three signs",
            "MIT",
            f"{made.url}/signs-1.0.tgz",
            SHA256,
            len(PACKAGE),
            "package/signs.tflite",
            len(MODEL),
            "",
            "https://example.org",
            "classify",
            ("a", "b", "c"),
        )
        monkeypatch.setattr(fetch, "catalogue", lambda: (entry,))
        yield made


def called(*words: object) -> Result:
    result = CliRunner().invoke(vedette, ["models", "pull", *map(str, words)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(*words: object) -> str:
    try:
        result = called(*words)
    except VedetteError as error:
        return str(error)
    assert result.exit_code == 2, result.output
    return result.output


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_catalogue_is_listed() -> None:
    listed = json.loads(called("--json").stdout)
    assert {one["name"] for one in listed} >= {"pose-lite", "selfie-segmentation"}
    assert "Apache-2.0" in called("--task", "pose").output
    assert "there is no such task" in refused("--task", "posing")
    found = ShellComplete(vedette, {}, "vedette", "_VEDETTE_COMPLETE").get_completions(["models", "pull"], "pose")
    assert {item.value for item in found} == {"pose-lite", "pose-full"}


def test_a_model_of_the_catalogue_is_written_with_its_licence(server: FileServer, tmp_path: Path) -> None:
    assert called("signs", "--to", tmp_path, "--pixels", "unit").exit_code == 0
    manifest = look_up(str(tmp_path / "signs.tflite")).manifest
    assert (manifest.licence, manifest.output.labels, manifest.output.decoder) == (
        "MIT",
        ("a", "b", "c"),
        "classify",
    )
    assert manifest.source == f"{server.url}/signs-1.0.tgz"
    assert left(tmp_path) == {"signs.tflite", "signs.toml"}
    assert "exists; --force replaces it" in refused("signs", "--to", tmp_path, "--pixels", "unit")
    assert server.asked == [""], "what is there is told before anything is fetched"


def test_what_was_fetched_waits_for_what_is_missing(server: FileServer, tmp_path: Path) -> None:
    assert "none.txt" in refused("signs", "--to", tmp_path, "--labels", tmp_path / "none.txt")
    assert server.asked == []
    told = refused("signs", "--to", tmp_path, "--decoder", "ssd")
    assert "ssd" in told
    assert f"stays in {tmp_path}/.pull-{SHA256[:12]}.tgz for the next call" in told
    assert called("signs", "--to", tmp_path, "--pixels", "unit").exit_code == 0
    assert server.asked == [""]
    assert left(tmp_path) == {"signs.tflite", "signs.toml"}


def test_what_is_there_whole_is_not_called_fetched_nor_of_an_address_that_was_not_asked(tmp_path: Path) -> None:
    content = picture_models.classifier()
    sha256 = hashlib.sha256(content).hexdigest()
    (tmp_path / f".pull-{sha256[:12]}.tflite").write_bytes(content)
    url = "http://127.0.0.1:9/signs.tflite"
    done = called(url, "--sha256", sha256, "--to", tmp_path, "--pixels", "unit")
    assert "taken from what an earlier pull fetched" in done.output
    assert look_up(str(tmp_path / "signs.tflite")).manifest.source == ""


def test_an_interrupted_call_is_gone_on_from(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.cuts, server.cut_after = 1, 100
    server.files["/signs-1.0.tgz"] = PACKAGE
    told = []

    def fail(there: int, _total: int) -> None:
        told.append(there)
        server.fails = 9

    with monkeypatch.context() as patched:
        patched.setattr(fetch, "_TRIES", 2)
        patched.setattr(
            "agent.cli.models.importing.show_progress", lambda text: fail(0, 0) if "MB" in text else None
        )
        assert "the server answers 503" in refused("signs", "--to", tmp_path, "--pixels", "unit")
    assert told
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [100]
    server.fails = 0
    assert called("signs", "--to", tmp_path, "--pixels", "unit").exit_code == 0
    assert any(asked.startswith("bytes=") for asked in server.asked)


def test_a_url_is_fetched_with_its_hash_alone(server: FileServer, tmp_path: Path) -> None:
    url, sha256 = f"{server.url}/m.tflite", hashlib.sha256(MODEL).hexdigest()
    assert "give --sha256" in refused(url, "--to", tmp_path)
    assert "64 hexadecimal digits" in refused(url, "--to", tmp_path, "--sha256", "12")
    assert called(url, "--to", tmp_path, "--sha256", sha256.upper(), "--pixels", "raw").exit_code == 0
    assert left(tmp_path) == {"m.tflite", "m.toml"}
    asked = len(server.asked)
    assert "exists; --force" in refused(url, "--to", tmp_path, "--sha256", sha256)
    assert len(server.asked) == asked
    query = f"{server.url}/m.tflite?token=secret"
    assert called(query, "--to", tmp_path, "--sha256", sha256, "--pixels", "raw", "--force").exit_code == 0
    assert "secret" not in (tmp_path / "m.toml").read_text()
    long = f"{server.url}/{'x' * 300}.tflite"
    server.files[f"/{'x' * 300}.tflite"] = MODEL
    (tmp_path / "long").mkdir()
    assert called(long, "--to", tmp_path / "long", "--sha256", sha256, "--pixels", "raw").exit_code == 0
    assert f"{'x' * 100}.tflite" in left(tmp_path / "long")
    archive = f"{server.url}/signs-1.0.tgz"
    assert "name one by --member" in refused(archive, "--to", tmp_path, "--sha256", SHA256)
    words = ("--sha256", SHA256, "--member", "other.tflite", "--pixels", "raw", "--name", "mine")
    assert called(archive, "--to", tmp_path, *words).exit_code == 0
    assert left(tmp_path) == {"m.tflite", "m.toml", "mine.tflite", "mine.toml", "long"}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"<html>Log in</html>", "sends an HTML page"),
        (MODEL, "sends another file: its sha256 is"),
    ],
)
def test_another_file_is_never_opened(server: FileServer, tmp_path: Path, content: bytes, why: str) -> None:
    server.files["/signs-1.0.tgz"] = content
    assert why in refused("signs", "--to", tmp_path)
    assert left(tmp_path) == set()


def test_what_is_no_model_is_told_by_its_address(server: FileServer, tmp_path: Path) -> None:
    content = packed({"package/readme.md": b"x"})
    server.files["/no.tgz"] = content
    told = refused(f"{server.url}/no.tgz", "--to", tmp_path, "--sha256", hashlib.sha256(content).hexdigest())
    assert told.startswith(f"{server.url}/no.tgz: no .tflite in it")
    assert "expected a URL that ends in" in refused(f"{server.url}/page", "--sha256", SHA256)


def test_a_folder_or_a_server_is_a_mirror(server: FileServer, tmp_path: Path) -> None:
    mirror, out = tmp_path / "mirror", tmp_path / "out"
    mirror.mkdir()
    out.mkdir()
    words = ("signs", "--to", out, "--pixels", "unit", "--mirror")
    assert f"copy it from {server.url}/signs-1.0.tgz" in refused(*words, mirror)
    (mirror / "signs-1.0.tgz").write_bytes(PACKAGE + b"x")
    assert "is another file" in refused(*words, mirror)
    (mirror / "signs-1.0.tgz").write_bytes(PACKAGE)
    assert called(*words, mirror).exit_code == 0
    assert server.asked == []
    assert left(mirror) == {"signs-1.0.tgz"}
    server.files["/mirrored/signs-1.0.tgz"] = PACKAGE
    assert called(*words, f"{server.url}/mirrored/", "--force").exit_code == 0
    assert server.asked == [""]
    assert left(out) == {"signs.tflite", "signs.toml"}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("sings",), "did you mean 'signs'?"),
        (("signs", "--sha256", SHA256), "--sha256 is for a URL"),
        (("signs", "--member", "x"), "--member is for a URL"),
        (("signs", "--to", "none"), "there is no such folder"),
        (("signs", "--task", "pose"), "--task is for the list"),
        (("--mirror", "x"), "these options are for a NAME"),
        (("--force",), "these options are for a NAME"),
        (("signs", "--mirror", "nowhere"), "nowhere: there is no such folder"),
        (("signs", "--mirror", "http://x/y?z=1"), "without ? and #"),
        (("signs", "--decoder", "clasify"), "expected classify"),
        (("ftp://example.org/a.tflite",), "expected a URL such as"),
    ],
)
def test_what_cannot_be_pulled_is_told(server: FileServer, words: tuple[Any, ...], why: str) -> None:
    assert why in refused(*words)
    assert server.asked == []
