"""Keys of earlier versions: refused with their new name, accepted by a daemon, rewritten in a file."""

from __future__ import annotations

import logging
import tomllib
from pathlib import Path

import pytest

from agent.compute.manifest import read_manifest
from agent.config import renames
from agent.config.load import Rereadable, load
from agent.config.renames import migrations, rewrite
from agent.config.toml import lines_of
from agent.errors import ConfigError
from agent.update.bundle.description import Migration
from agent.update.install.stage import migrate

OLD = """# The porch.
[storage]
folder = "/data"  # a stick

[streams.front]
source = "test:"
rung = "small"
model = "nanodet"

[streams.front.ladder]  # climbs
budget_ms = 50

[streams.rung]
source = "test:"
model = "nanodet"
ladder.budget_ms = 70
"""
NEW = """# The porch.
[storage]
state_dir = "/data"  # a stick

[streams.front]
source = "test:"
variant = "small"
model = "nanodet"

[streams.front.cascade]  # climbs
budget_ms = 50

[streams.rung]
source = "test:"
model = "nanodet"
cascade.budget_ms = 70
"""


def rewritten(text: str) -> str:
    return rewrite(text, dict(lines_of(text)))[0]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "v.toml"
    path.write_text(OLD)
    return path


def test_an_old_key_is_refused_at_its_line_with_its_new_name(file: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load(file)
    lines = str(refused.value).splitlines()
    assert [line.split(":")[1] for line in lines] == ["3", "7", "10", "16"]
    for line, name in zip(lines, ["`state_dir`", "`variant`", "`cascade`", "`cascade`"], strict=True):
        assert name in line
        assert "vedette config migrate" in line


def test_a_daemon_runs_on_old_keys_and_warns_once_of_all(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        reader = Rereadable(file)
        config = reader.read()
    assert config.storage.state_dir == "/data"
    assert config.streams["front"].variant == "small"
    assert [stream.cascade.budget_ms for stream in config.streams.values()] == [50, 70]
    (record,) = caplog.records
    for word in ("storage.folder", "streams.front.rung", "streams.rung.ladder", f"config migrate {file}"):
        assert word in record.getMessage()
    assert reader.where("streams", "front", "variant") == f"{file}:7"


def test_of_a_key_that_is_set_under_both_names_the_new_one_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = '[storage]\nfolder = "/a"\nstate_dir = "/b"\n[streams.front]\nsource = "test:"\nmodel = "nanodet"\n'
    path = tmp_path / "v.toml"
    path.write_text(text)
    with pytest.raises(
        ConfigError, match=r"v.toml:2: .*`state_dir` now, which is set, too: delete `storage.folder`"
    ):
        load(path)
    assert Rereadable(path).read().storage.state_dir == "/b"
    assert "`storage.folder` (line 2) is called `state_dir` now, which is set, too, and counts" in caplog.text
    assert rewritten(text) == text.replace('folder = "/a"\n', "", 1)


def test_a_table_that_is_empty_without_an_old_value_may_go() -> None:
    assert rewritten('[storage.durability]\nupdates = "batch"\n[health]\n') == "[health]\n"


def test_old_keys_of_a_profile_are_read_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    profile, path = tmp_path / "own.toml", tmp_path / "v.toml"
    profile.write_text('[board]\ntitle = "mine"\n[stream.ladder]\nbudget_ms = 20.0\n')
    path.write_text(f'[device]\nprofile = "{profile}"\n[streams.front]\nsource = "test:"\nmodel = "nanodet"\n')
    assert Rereadable(path).read().streams["front"].cascade.budget_ms == 20.0
    assert f"{profile}: keys of an earlier version: `stream.ladder`" in caplog.text
    assert load(path).config.streams["front"].cascade.budget_ms == 20.0


def test_a_file_is_rewritten_with_its_comments_and_order() -> None:
    assert rewritten(OLD) == NEW
    assert rewritten(NEW) == NEW
    assert rewritten(OLD.replace("\n", "\r\n")) == NEW.replace("\n", "\r\n")


@pytest.mark.parametrize(
    ("storage", "durability"),
    [
        ('durability = "batch"', "batch"),
        ('durability = "memory"', "event"),
        ('durability = {updates = "batch"}', "event"),
        ('[storage.durability]\nevents = "batch"\ndetections = "event"', "event"),
    ],
)
def test_a_daemon_reads_a_durability_of_an_earlier_version(tmp_path: Path, storage: str, durability: str) -> None:
    file = tmp_path / "v.toml"
    file.write_text(f'[storage]\n{storage}\n[streams.front]\nsource = "test:"\nmodel = "nanodet"\n')
    assert Rereadable(file).read().storage.durability == durability
    assert load(file).config.storage.durability == durability


def test_a_manifest_of_an_earlier_version_is_read_and_rewritten() -> None:
    text = '[[rungs]]\nname = "a"\n\n[[rungs]]  # small\nname = "b"\n'
    manifest = read_manifest(text, "m.toml")
    assert [one["name"] for one in manifest.data["variants"]] == ["a", "b"]
    assert manifest.old_keys == ("`rungs` (line 1) is read as `variants`",)
    assert manifest.where("variants", 1, "name") == "m.toml:5"
    assert rewritten(text) == text.replace("rungs", "variants")


@pytest.mark.parametrize(
    "text",
    [
        'streams.front = { source = "test:", rung = "a" }\n',
        '[streams.a]\nx = """\nrung = 1\n"""\n"r\\u0075ng" = "a"\n',
    ],
)
def test_what_cannot_be_rewritten_line_by_line_is_refused(text: str) -> None:
    assert "rung" in tomllib.loads(text)["streams"].popitem()[1]
    with pytest.raises(ConfigError, match="rung"):
        rewritten(text)


def test_a_text_that_looks_like_an_old_key_stays() -> None:
    text = '[streams.a]\nsource = """\nrung = 1\n"""\n'
    assert rewritten(text) == text


def test_a_removed_key_is_refused_with_what_to_do_and_leaves_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renames, "REMOVED", {"mqtt.window": "the broker's limit counts"})
    path = tmp_path / "v.toml"
    path.write_text('[mqtt]\nhost = "h"\nwindow = [\n  1,  # one\n  2,\n]\n\n# Next.\n[device]\nname = "d"\n')
    with pytest.raises(ConfigError, match=r"v.toml:3: `mqtt.window` was removed: the broker's limit counts"):
        load(path)
    assert Rereadable(path).read().mqtt.host == "h"
    assert rewritten(path.read_text()) == '[mqtt]\nhost = "h"\n\n# Next.\n[device]\nname = "d"\n'
    assert ("remove", "mqtt.window", "") in list(migrations())


def test_a_bundle_migrates_a_configuration_to_the_same() -> None:
    rules = [Migration(*rule) for rule in migrations()]
    assert tomllib.loads(migrate(OLD, rules)) == tomllib.loads(NEW)
    assert migrate(NEW, rules) == NEW
