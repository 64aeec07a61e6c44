"""`vedette bundle`, on a workstation: with a bundle of models, which takes neither pip nor network."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agent.cli.main import vedette
from agent.errors import BundleError, ConfigError, ModelError, TrustError, VedetteError
from agent.models.files import ZOO
from agent.update import bundle
from agent.update.bundle import HealthGate, Migration, ShadowGate
from tests.support.tiny_bundles import Key, make_key, needs_ssh_keygen, tiny_bundle

MODELS = ("build", "--models-only", "--counter", "1")


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(vedette, ["bundle", *map(str, words)])


def refused(kind: type[VedetteError], why: str, *words: str | Path) -> None:
    shown = run(*words)
    assert isinstance(shown.exception, kind), shown.output
    assert re.search(why, str(shown.exception)), str(shown.exception)


@pytest.fixture
def key(tmp_path: Path) -> Key:
    return make_key(tmp_path / "key")


def test_models_are_built_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        shown = run(
            "build", "--models-only", "--model", "small-speech", "--counter", "3", "--out", tmp_path / name
        )
        assert shown.exit_code == 0, shown.output
        assert "golden answers of small-speech" in shown.stderr
        assert f"{tmp_path / name}; not signed yet" in shown.stdout
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    described = bundle.read_description(tmp_path / "a")
    assert (described.kind, described.counter, described.models) == ("models", 3, ["small-speech"])


@needs_ssh_keygen
def test_a_bundle_is_signed_and_looked_into(tmp_path: Path, key: Key) -> None:
    path = tiny_bundle(tmp_path / "x.vedette", counter=7)
    signers = tmp_path / "allowed_signers"
    signers.write_text(key.allowed("release"))
    assert run("sign", path, "--key", key.path).stdout == f"{path}.sig\n"
    shown = run("inspect", path, "--signers", signers, "--json")
    assert shown.exit_code == 0, shown.output
    told = json.loads(shown.stdout)
    assert told["error"] == ""
    assert told["signer"]["principal"] == "release"
    assert told["description"]["counter"] == 7
    assert (
        told["description"]["files"]["models/small-speech.tflite"]["size"]
        == (ZOO / "small-speech.tflite").stat().st_size
    )
    text = run("inspect", path, "--signers", signers).stdout
    assert "\ncounter = 7\n" in text
    assert f"release, {told['signer']['key']}" in text


@needs_ssh_keygen
def test_a_bundle_is_signed_as_it_is_built_and_building_anew_takes_the_old_signature_away(
    tmp_path: Path, key: Key
) -> None:
    words = (*MODELS, "--model", "small-speech", "--out", tmp_path / "x.vedette")
    assert run(*words, "--sign", key.path).stdout == f"{tmp_path / 'x.vedette'}\n"
    assert (tmp_path / "x.vedette.sig").is_file()
    assert run(*words).exit_code == 0
    assert not (tmp_path / "x.vedette.sig").exists()
    refused(TrustError, "no such key", *words, "--sign", tmp_path / "none")


@needs_ssh_keygen
def test_nothing_is_read_of_a_bundle_that_nobody_trusted_has_signed(tmp_path: Path, key: Key) -> None:
    path = tiny_bundle(tmp_path / "x.vedette", make_key(tmp_path / "stranger"))
    (tmp_path / "allowed_signers").write_text(key.allowed("release"))
    shown = run("inspect", path, "--signers", tmp_path / "allowed_signers", "--json")
    assert shown.exit_code == 1
    told = json.loads(shown.stdout)
    assert "is not in" in told["error"]
    assert told["description"] is None


@needs_ssh_keygen
def test_a_revoked_key_is_told(tmp_path: Path, key: Key) -> None:
    path = tiny_bundle(tmp_path / "x.vedette", key)
    (tmp_path / "allowed").write_text(key.allowed("release"))
    (tmp_path / "revoked").write_text(f"{key.public}\n")
    shown = run("inspect", path, "--signers", tmp_path / "allowed", "--revoked", tmp_path / "revoked")
    assert shown.exit_code == 1
    assert "is revoked by" in shown.stderr
    assert run("inspect", path, "--revoked", tmp_path / "revoked").exit_code == 2


@needs_ssh_keygen
def test_a_name_that_is_no_utf8_is_told_as_json_takes_it(tmp_path: Path, key: Key) -> None:
    path = tiny_bundle(tmp_path / os.fsdecode(b"b\xffd.vedette"))
    assert run("sign", path, "--key", key.path).stdout == f"{tmp_path}/b\\xffd.vedette.sig\n"
    assert json.loads(run("inspect", path, "--json").stdout)["path"] == f"{tmp_path}/b\\xffd.vedette"
    path.unlink()
    assert "b\\xffd.vedette: cannot be read" in json.loads(run("inspect", path, "--json").stdout)["error"]


def test_a_damaged_bundle_is_told_and_not_signed(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path / "x.vedette")
    path.write_bytes(path.read_bytes()[:-2000])
    shown = run("inspect", path)
    assert shown.exit_code == 1
    assert "cut off" in shown.stderr
    refused(BundleError, "cut off", "sign", path, "--key", tmp_path / "none")


def test_a_key_that_is_missing_is_told_how_to_make(tmp_path: Path) -> None:
    refused(TrustError, "no such key; make one", "sign", tiny_bundle(tmp_path / "x"), "--key", tmp_path / "none")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("build", "--models-only"), "--counter is missing"),
        (MODELS, "a bundle of models has models"),
        ((*MODELS, "--config", "x.toml"), "--config cannot be combined"),
        ((*MODELS, "--extra", "wakeword"), "--extra cannot be combined"),
        ((*MODELS, "--lock", "x"), "--lock cannot be combined"),
        (
            ("build", "--counter", "1", "--extra", "nosuch"),
            "--extra nosuch: no such extra of Vedette; there are: demo",
        ),
        (
            ("build", "--counter", "1", "--config", "we ird.toml"),
            r"we ird\.toml: .* a name of up to 100 letters",
        ),
        ((*MODELS, "--board", "pi4b"), "--board cannot be combined"),
        (("build", "--counter", "1", "--config", "x.json"), r"x\.json: a configuration is a \.toml file"),
        (("build", "--counter", "1", "--board", "pi4"), "--board pi4: no such profile; did you mean 'pi4b'"),
        (
            ("build", "--counter", "1", "--python", "2.7"),
            r"--python 2\.7: expected the version of .* such as 3\.11",
        ),
        (("build", "--counter", "1", "--glibc", "2.1"), r"--glibc 2\.1: wheels are made for"),
        (("build", "--counter", "1", "--glibc", "x"), r"--glibc x: expected the oldest .* such as 2\.34"),
        (("build", "--counter", "1", "--health", "steady=1"), r"--health steady=1: .*did you mean 'steady_s'"),
        ((*MODELS, "--model", "nanodet", "--shadow", "agree=1"), r"--shadow agree=1: .*did you mean 'agreement'"),
        (
            (*MODELS, "--model", "nanodet", "--shadow", "agreement=2", "--shadow", "every=2"),
            "--shadow: expected a number <= 1.*agreement",
        ),
        ((*MODELS, "--model", "nanodet", "--shadow", "every=x"), "--shadow: expected a whole number.*every"),
        (("build", "--counter", "1", "--shadow", "every=2"), "--shadow needs --models-only"),
        (("build", "--counter", "1", "--health", "steady_s=fast"), "--health: expected a number.*steady_s"),
        (
            ("build", "--counter", "1", "--health", "memory_mb=0"),
            "--health: expected a number .*memory_mb",
        ),
        (("build", "--counter", "1", "--wheel", "none.whl"), r"none\.whl: not a wheel: No such file"),
    ],
)
def test_what_cannot_be_built_is_said_before_anything_takes_long(
    tmp_path: Path, words: tuple[str, ...], why: str
) -> None:
    refused(BundleError, why, *words, "--out", tmp_path / "x.vedette")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    refused(BundleError, "there is no folder", *MODELS, "--model", "nanodet", "--out", tmp_path / "no" / "x")


@pytest.mark.parametrize(
    ("make", "kind"),
    [(os.mkfifo, "a pipe"), (Path.mkdir, "a folder"), (lambda path: path.symlink_to("/dev/null"), "a link")],
)
@pytest.mark.parametrize("name", ["x", "x.sig"])
def test_only_a_plain_file_is_replaced(
    tmp_path: Path, name: str, make: Callable[[Path], object], kind: str
) -> None:
    make(tmp_path / name)
    why = rf"{name}: is {kind} where a file is expected"
    refused(BundleError, why, *MODELS, "--model", "small-speech", "--out", tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_model_without_a_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.tflite").write_bytes((ZOO / "small-speech.tflite").read_bytes())
    why = r"mine\.tflite: has no manifest mine\.toml beside it"
    refused(BundleError, why, *MODELS, "--model", tmp_path / "mine.tflite", "--out", tmp_path / "x")
    refused(ModelError, "no bundled model", *MODELS, "--model", "nano", "--out", tmp_path / "x")


@needs_ssh_keygen
@pytest.mark.timeout(60)
@pytest.mark.parametrize("option", ["--signers", "--revoked"])
def test_a_pipe_in_place_of_keys_is_not_waited_for(tmp_path: Path, key: Key, option: str) -> None:
    path = tiny_bundle(tmp_path / "x.vedette", key)
    (tmp_path / "signers").write_text(key.allowed("release"))
    os.mkfifo(pipe := tmp_path / "pipe")
    shown = run("inspect", path, "--signers", tmp_path / "signers", option, pipe)
    assert shown.exit_code == 1
    assert "pipe: is a pipe where a file is expected" in shown.stderr


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    text = (ZOO / "small-speech.toml").read_text().replace("score_threshold = 0.6", "score_threshold = 0.7")
    (tmp_path / "small-speech.toml").write_text(text)
    for name in ("small-speech.tflite", "small-speech-head.npz"):
        (tmp_path / name).write_bytes((ZOO / name).read_bytes())
    both = ("--model", "small-speech", "--model", tmp_path / "small-speech.toml")
    refused(BundleError, "another model of this bundle has a file", *MODELS, *both, "--out", tmp_path / "x")


def test_a_head_with_the_name_of_golden_answers_is_refused(tmp_path: Path) -> None:
    text = (ZOO / "small-speech.toml").read_text().replace("small-speech-head.npz", "small-speech.npz")
    (tmp_path / "small-speech.toml").write_text(text)
    (tmp_path / "small-speech.tflite").write_bytes((ZOO / "small-speech.tflite").read_bytes())
    (tmp_path / "small-speech.npz").write_bytes((ZOO / "small-speech-head.npz").read_bytes())
    why = "is the name of golden answers and of a head"
    refused(BundleError, why, *MODELS, "--model", tmp_path / "small-speech.toml", "--out", tmp_path / "x")


@needs_ssh_keygen
def test_looking_into_one_says_whether_who_may_sign_was_asked(tmp_path: Path, key: Key) -> None:
    path = tiny_bundle(tmp_path / "x.vedette", key, counter=7)
    signers = tmp_path / "signers"
    signers.write_text(make_key(tmp_path / "other").allowed("somebody"))
    assert re.search(r"signed +not by an allowed signer", run("inspect", path, "--signers", signers).stdout)
    assert "signer not checked" in run("inspect", path).stdout


@pytest.mark.parametrize("option", ["--signers", "--revoked"])
def test_a_file_of_keys_that_is_named_has_to_be_there(tmp_path: Path, option: str) -> None:
    path = tiny_bundle(tmp_path / "x.vedette")
    for place in (tmp_path / "none", tmp_path):
        shown = run("inspect", path, option, place)
        assert shown.exit_code == 2, shown.output
        assert str(place) in shown.output


@pytest.mark.parametrize("place", [".", "", "/"])
def test_a_folder_is_no_bundle(place: str) -> None:
    shown = run("inspect", place)
    assert shown.exit_code == 1, shown.exception
    assert "cannot be read: Is a directory" in shown.output


def test_a_health_gate_and_migrations_are_read(tmp_path: Path) -> None:
    from agent.cli.bundle import read_gate, read_migrations

    assert read_gate("", ["agreement=0.8", "every=3"], ShadowGate) == ShadowGate(agreement=0.8, every=3)
    assert read_gate("", ["steady_s=5", "memory_mb=90.5"], HealthGate) == HealthGate(steady_s=5.0, memory_mb=90.5)
    path = tmp_path / "migrations.toml"
    path.write_text('[[migrations]]\nop = "set"\nkey = "device.name"\nvalue = true\n')
    assert read_migrations(path) == [Migration("set", "device.name", value=True)]
    path.write_text('[[migrations]]\nop = "drop"\nkey = "device.name"\n')
    refused(BundleError, r"migrations\.toml: .*drop", "build", "--counter", "1", "--migrations", path)
    refused(ConfigError, "cannot read", "build", "--counter", "1", "--migrations", tmp_path / "none")
