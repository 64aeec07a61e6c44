from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from agent.cli.config import config
from agent.config.load import RULE, load, parse
from agent.config.toml import to_toml
from agent.daemon.check import warnings
from agent.daemon.overrides import FILE, Overrides, Value
from agent.errors import ConfigError
from agent.text import plain
from tests.support import tflite_builder as build
from tests.support.picture_models import classifier
from tests.support.running import ROOT
from tests.support.sizes import sizes_model
from tests.support.sound import tone_model

CONFIGS = Path(__file__).parent.parent.parent.parent / "firmware_configs" / "examples"
STREAM = '[streams.front]\nsource = "test:"\nmodel = "nanodet"\n'
CAMERA = '[streams.front]\nsource = "test:"\nmodel = "nanodet"\n'
SQUARE = "[[0.1, 0.1], [0.9, 0.1], [0.9, 0.9]]"


def call(*args: str) -> Result:
    result = CliRunner().invoke(config, args)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "vedette.toml"


def problems(file: Path, text: str) -> list[str]:
    """Return the problems that the check of a text prints, one a line; it must have failed."""
    file.write_text(text)
    result = call("check", str(file))
    assert result.exit_code == 1
    assert result.stdout == ""
    return [line for line in result.stderr.splitlines() if not line.startswith("warning: ")]


@pytest.mark.parametrize(
    ("keys", "line", "facts"),
    [
        ('listen = "0.0.0.0:9469"', 2, ("password_file",)),
        ('listen = "[::]:9469"', 2, ("password_file",)),
        ('listen = "metrics.example:9469"', 2, ("metrics.example", "IP address")),
        ('listen = "9469"', 2, ("listen", "127.0.0.1:9469")),
        ('username = "x"', 2, ("password_file",)),
        ("port = 9469", 2, ("port",)),
    ],
)
def test_metrics_that_cannot_be_served_are_told_with_their_line(
    file: Path, keys: str, line: int, facts: tuple[str, ...]
) -> None:
    (problem,) = problems(file, f"[metrics]\n{keys}\n{CAMERA}")
    assert problem.startswith(f"{file}:{line}: ")
    assert [fact for fact in facts if fact not in problem] == []


def test_a_password_of_metrics_that_others_may_learn_is_a_warning(file: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("xyz\n")
    secret.chmod(0o644)
    login = f'username = "x"\npassword_file = "{secret}"\n'
    file.write_text(f'[metrics]\nlisten = "0.0.0.0:9469"\n{login}{CAMERA}')
    told = warnings(file)
    assert [f"{file}:2" in one or str(secret) in one for one in told] == [True, True]
    secret.chmod(0o600)
    file.write_text(f"[metrics]\n{login}{CAMERA}")
    assert warnings(file) == []


def test_metrics_without_their_package_are_told_with_the_command(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    (problem,) = problems(file, f"[metrics]\n{CAMERA}")
    assert "pip install 'vedette[metrics]'" in problem


@pytest.mark.usefixtures("worker_sessions")
def test_a_sound_file_is_fine(file: Path) -> None:
    zone = f'[[streams.front.zones]]\nname = "yard"\npolygon = {SQUARE}\n'
    file.write_text(f'[streams.front]\nsource = "test:"\nmodel = "nanodet"\nvariant = "256"\n{zone}')
    result = call("check", str(file))
    assert (result.exit_code, result.output) == (0, f"{file}: fine\n")
    assert call("check", "-v", str(file)).output == f"{file}: fine\n{RULE}\n"
    assert "[storage] state_dir, [storage] clips_folder" in RULE
    told = json.loads(call("check", str(file), "--json").output)
    assert {"device.name", "storage.state_dir", "storage.durability"} < set(told["wait_for_restart"])


def test_what_was_guessed_of_a_model_and_is_doubtful_is_told(file: Path, tmp_path: Path) -> None:
    model = tmp_path / "m.tflite"
    model.write_bytes(classifier(described=False))
    model.with_suffix(".toml").write_text("[input]\nmean = [0, 0, 0]\n")
    file.write_text(f'[streams.front]\nsource = "test:"\nmodel = "{model}"\n')
    result = call("check", str(file))
    guessed, doubtful, unnamed = result.stderr.splitlines()
    assert result.exit_code == 0
    assert guessed.startswith(f"{file}:3: {model}: its manifest leaves keys out: output.decoder (guessed: ")
    assert "50% of the pixel values lie outside its range" in doubtful
    assert unnamed.startswith(f"{file}:3: {model}: [output] labels are left out")
    assert json.loads(call("check", str(file), "--json").output)["remarks"] == [guessed, doubtful, unnamed]


@pytest.mark.parametrize(
    ("text", "loads"),
    [
        ('[streams.front]\nsource = "test:"\nmodel = "nanodet"\n', True),
        ('[streams.front]\nsource = "test:"\nmodel = "/nothing/here.tflite"\n', True),  # that stream fails
        ('[streams.front]\nsource = "test:"\nmodell = "nanodet"\n', False),
        ("[streams", False),
        ("", False),
    ],
)
def test_whether_a_daemon_would_start_is_told_for_programs(file: Path, text: str, loads: bool) -> None:
    file.write_text(text)
    assert json.loads(call("check", str(file), "--json").output)["loads"] is loads


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("mels = 20", "mels = 20, window_ms = 1e9, hop_ms = 1e9"),
        ("mels = 20", "mels = 20, window_ms = inf"),
        ("mels = 20", "mels = 1000000000"),
        ("offset = 1e-6", "offset = inf"),
        ("std = 4.0", "std = 1e-310"),
        ("mean = -8.0", "mean = nan"),
        ('"low", "high"', '"low", "low"'),
    ],
)
def test_a_manifest_with_wild_values_is_one_line_that_names_it(
    file: Path, tmp_path: Path, old: str, new: str
) -> None:
    manifest = tone_model(tmp_path)
    assert old in manifest.read_text()
    manifest.write_text(manifest.read_text().replace(old, new))
    (line,) = problems(file, f'[streams.hall]\nsource = "mic:default"\nmodel = "{manifest}"\n')
    assert line.startswith(f"{file}:3: {manifest}:")


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.toml")))
def test_every_config_that_comes_along_is_fine(name: str) -> None:
    assert call("check", str(CONFIGS / name)).exit_code == 0


@pytest.mark.parametrize(
    ("line", "text", "why"),
    [
        (2, 'source = "test:"', "unknown key `streams.front.sorce`; did you mean 'source'?"),
        (2, 'source = "tset:"', "found tset:"),
        (2, 'source = "test:?siez=640x480"', "found siez"),
        (3, 'model = "nanodett"', "no bundled model is called 'nanodett'; did you mean 'nanodet'?"),
        (3, 'model = "/nothing/here.tflite"', "/nothing/here.tflite"),
        (4, 'variant = "999"', "has no variant '999'; it has: "),
        (4, "threads = 65", "`streams.front.threads`: "),
        (4, "capture.stall_s = 1e-9", "`streams.front.capture.stall_s`: "),
        (4, "capture.reopen_max_s = 0.01", "`streams.front.capture.reopen_max_s`: "),
        (4, 'backend = "gpuu"', "no backend 'gpuu'; did you mean 'gpu'?"),
        (4, 'backend = "external:/no.so"', "cannot be used here: /no.so: no such file"),
    ],
)
def test_a_problem_is_named_with_its_line(file: Path, line: int, text: str, why: str) -> None:
    lines = ["[streams.front]", 'source = "test:"', 'model = "nanodet"', "threads = 1"]
    lines[line - 1] = text.replace("source", "sorce") if "sorce" in why else text
    found = problems(file, "\n".join(lines))
    assert any(said.startswith(f"{file}:{line}: ") and why in said for said in found), found


def test_every_problem_of_every_stream_is_told(file: Path) -> None:
    streams = [f'[streams.s{n}]\nsource = "tset:"\nmodel = "nobody{n}"\n' for n in range(3)]
    assert [line.split(": ")[0] for line in problems(file, "".join(streams))] == [
        f"{file}:{3 * n + row}" for n in range(3) for row in (2, 3)
    ]


@pytest.mark.parametrize("source", ["tset:", "test:?siez=640x480", "wav:?loop=2"])
def test_a_wrong_source_is_told_once_at_its_own_line(file: Path, source: str) -> None:
    (line,) = problems(file, f'[streams.front]\nsource = "{source}"\nmodel = "nanodet"\n')
    assert line.startswith(f"{file}:2: ")


def test_a_zone_needs_three_corners(file: Path) -> None:
    zones = f'[[streams.front.zones]]\nname = "yard"\npolygon = {SQUARE}\n'
    zones += '[[streams.front.zones]]\nname = "line"\npolygon = [[0.1, 0.1], [0.9, 0.9]]\n'
    (line,) = problems(file, f'[streams.front]\nsource = "test:"\nmodel = "nanodet"\n{zones}')
    assert line.startswith(f"{file}:7: ")
    assert "line" in line
    assert "corners" in line


def test_auto_for_sizes_is_refused_at_its_line(file: Path, tmp_path: Path) -> None:
    path = sizes_model(tmp_path, {"32": [], "16": []})
    (line,) = problems(file, f'[streams.front]\nsource = "test:"\nmodel = "{path}"\nvariant = "auto"\n')
    assert line.startswith(f"{file}:4: ")
    assert "name one of 32, 16" in line


def test_a_label_that_the_model_does_not_know(file: Path) -> None:
    decode = '[streams.front.decode]\nlabels = ["persn"]\n'
    (line,) = problems(file, f'[streams.front]\nsource = "test:"\nmodel = "nanodet"\n{decode}')
    assert line.startswith(f"{file}:5: ")
    assert "persn" in line
    assert "person" in line


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ('labels = ["persn"]', "clips.labels: the stream never reports 'persn'"),
        ('labels = ["cat"]', "clips.labels: the stream never reports 'cat': decode.labels leaves it out"),
        ('zones = ["yard"]', "clips.zones: no zone is called 'yard'"),
        ("after_s = 61", "clips.after_s: 61 is more than max_s"),
    ],
)
def test_clips_that_would_never_be_made_are_told_at_their_table(file: Path, key: str, why: str) -> None:
    stream = '[streams.front]\nsource = "test:"\nmodel = "nanodet"\ndecode.labels = ["person"]\n'
    (line,) = problems(file, f"{stream}[streams.front.clips]\n{key}\n")
    assert line.startswith(f"{file}:5: ")
    assert why in line


def test_only_zones_without_a_zone_is_told_at_its_line(file: Path) -> None:
    zone = f'[[streams.front.zones]]\nname = "yard"\npolygon = {SQUARE}\n'
    publish = f"{CAMERA}[streams.front.publish]\nonly_zones = true\n"
    (line,) = problems(file, publish)
    assert line.startswith(f"{file}:5: ")
    assert "[[zones]]" in line
    file.write_text(f"{publish}{zone}")
    assert call("check", str(file)).exit_code == 0


def test_a_model_of_numbers_is_fine_if_its_numbers_are_published(file: Path, tmp_path: Path) -> None:
    content = build.constant_model({"reading": np.array([[42.5]], np.float32)}, (1, 8, 8, 3))
    (tmp_path / "gauge.tflite").write_bytes(content)
    manifest = '[output]\ndecoder = "raw"\n[input]\nmean = [0.0, 0.0, 0.0]\nstd = [1.0, 1.0, 1.0]\n'
    (tmp_path / "gauge.toml").write_text(manifest)
    stream = f'[streams.front]\nsource = "test:"\nmodel = "{tmp_path}/gauge.toml"\n'
    (line,) = problems(file, stream)
    assert "publish.detections" in line
    file.write_text(f"{stream}[streams.front.publish]\ndetections = true\n")
    assert call("check", str(file)).exit_code == 0


def test_sound_has_no_clips(file: Path, tmp_path: Path) -> None:
    stream = f'[streams.hall]\nsource = "mic:default"\nmodel = "{tone_model(tmp_path)}"\n'
    (line,) = problems(file, f"{stream}[streams.hall.clips]\n")
    assert line.startswith(f"{file}:4: ")
    assert "clips are of pictures" in line


def test_a_model_of_another_kind_than_its_manifest_says(file: Path, tmp_path: Path) -> None:
    from tests.support.doubles import person_model

    manifest = person_model(tmp_path)
    manifest.write_text(manifest.read_text().replace("ssd", "yolo"))
    (line,) = problems(file, f'[streams.front]\nsource = "test:"\nmodel = "{manifest}"\n')
    assert line.startswith(f"{file}:3: ")
    assert "yolo" in line


def test_a_file_without_streams_has_nothing_to_run(file: Path) -> None:
    assert problems(file, "[health]\nevery_s = 5\n") == [f"{file}: no [streams.NAME]: there is nothing to run"]


def test_what_is_no_toml_and_what_is_not_there(file: Path, tmp_path: Path) -> None:
    (line,) = problems(file, "[streams.front\n")
    assert line.startswith(f"{file}:1: not TOML: ")
    result = call("check", str(tmp_path / "gone.toml"))
    assert result.exit_code == 1
    assert "No such file" in result.stderr


def test_the_verdict_as_json(file: Path) -> None:
    file.write_text("[streams.front]\n")
    result = call("check", str(file), "--json")
    verdict = json.loads(result.stdout)
    assert (result.exit_code, verdict["ok"]) == (1, False)
    assert verdict["problems"][0].startswith(f"{file}:1: ")


def test_showing_fills_in_every_default_and_can_be_read_again(file: Path) -> None:
    file.write_text('[streams.front]\nsource = "test:"\nmodel = "nanodet"\n')
    shown = call("show", str(file)).stdout
    assert tomllib.loads(shown)["mqtt"]["host"] == "localhost"
    assert parse(shown, "shown").config == load(file).config
    as_json = json.loads(call("show", str(file), "--json").stdout)
    assert as_json["streams"]["front"]["gate"]["motion"] is True


def test_showing_tells_which_profile_was_chosen_and_what_came_from_it(file: Path) -> None:
    text = (
        '[device]\nprofile = "pi4b"\n[thermal]\nwarn_c = 60\n[streams.a]\nsource = "test:"\nmodel = "nanodet"\n'
    )
    file.write_text(text)
    shown = call("show", str(file)).stdout
    assert re.search(
        r'^profile = "pi4b"  # pi4b: Raspberry Pi 4B.* \(/.*firmware_configs/pi4b.toml\)$', shown, re.M
    )
    assert "\nmax_fps = 10.0  # from the board's profile pi4b\n" in shown
    assert "\ncandidates = [  # from the board's profile pi4b\n" in shown
    assert "\nwarn_c = 60.0\n" in shown
    file.write_text(shown)
    assert load(file).config == parse(shown, "shown").config


def test_an_unknown_profile_is_a_problem_of_its_line(file: Path) -> None:
    (line,) = problems(file, '[streams.a]\nsource = "test:"\nmodel = "nanodet"\n[device]\nprofile = "pi4"\n')
    assert line == f"{file}:5: `device.profile`: no profile 'pi4'; did you mean 'pi4b'?"


def test_showing_escapes_what_a_terminal_would_obey_or_not_show(file: Path) -> None:
    model = "/models/\x9b2J\u202e\u3164\U000e0001\u2028ü.tflite"
    file.write_text(f'[streams.front]\nsource = "test:"\nmodel = "{model}"\n')
    shown = call("show", str(file)).stdout
    assert plain(shown, keep="\n") == shown
    assert tomllib.loads(shown)["streams"]["front"]["model"] == model


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_toml_with_escapes_says_the_same(key: str, text: str) -> None:
    table = {key: text, "table": {"list": [text], f"{key}.": text}}
    shown = to_toml(table, {})
    assert plain(shown, keep="\n") == shown
    assert tomllib.loads(shown) == table


def test_showing_works_without_the_model(file: Path) -> None:
    file.write_text('[streams.front]\nsource = "test:"\nmodel = "/nothing/he\\u001bre.tflite"\n')
    result = call("show", str(file))
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert parse(result.stdout, "shown").config == load(file).config


def test_showing_a_broken_file_is_an_error(file: Path) -> None:
    file.write_text("[streams.front]\n")
    with pytest.raises(ConfigError, match=f"^{file}:1: "):
        call("show", str(file))


def test_a_candidate_that_is_none_is_refused_with_its_line(file: Path) -> None:
    text = '[selection]\nby = "energy"\ncandidates = ["gpu", "gpuu"]\n'
    text += '[streams.front]\nsource = "test:"\nmodel = "nanodet"\n'
    (line,) = problems(file, text)
    assert line.startswith(f"{file}:3: no backend 'gpuu'; did you mean 'gpu'?")
    for candidates in ('["gpu", "external:/no/such.so"]', "[]"):
        file.write_text(text.replace('["gpu", "gpuu"]', candidates))
        assert call("check", str(file)).exit_code == 0


def test_the_schema_has_every_table() -> None:
    schema = json.loads(call("schema").stdout)
    tables = {"streams", "device", "mqtt", "storage", "health", "selection", "thermal", "homeassistant"}
    tables |= {"text", "fusion", "governor", "metrics", "page"}
    assert set(schema["$defs"]["Config"]["properties"]) == tables


@pytest.mark.parametrize("value", ["inf", "1e300", "nan", "-1.0"])
@pytest.mark.parametrize("key", ["track.lost_after_s", "gate.max_idle_s", "publish.snapshot_every_s"])
def test_a_time_that_is_none_is_refused_with_its_line(file: Path, key: str, value: str) -> None:
    (line,) = problems(file, f'[streams.front]\nsource = "test:"\nmodel = "nanodet"\n{key} = {value}\n')
    assert line.startswith(f"{file}:4: `streams.front.{key}`: ")


def test_files_that_are_not_there_are_told_before_the_daemon_meets_them(file: Path) -> None:
    broker = '[mqtt]\nusername = "u"\npassword_file = "/nothing/here"\n\n'
    stream = '[streams.front]\nsource = "file:/nothing/here.mp4"\nmodel = "nanodet"\n'
    password, source = problems(file, broker + stream)
    assert password.startswith(f"{file}:3: [mqtt] password_file = /nothing/here")
    assert source.startswith(f"{file}:6: file:/nothing/here.mp4: no such file or folder")


@pytest.mark.parametrize(
    ("line", "text", "why"),
    [
        (3, 'password_file = "/nothing/here"', "password_file is set but username is not"),
        (3, 'username = "u"\npassword_file = "~nobody-of-that-name/x"', "password_file = ~nobody"),
        (3, 'ca_file = "/nothing/here"', "ca_file = /nothing/here: No such file"),
        (3, 'ca_file = "nul\\u0000"', "embedded null"),
        (3, 'cert_file = "FILE"', "cert_file = FILE: not usable as PEM"),
        (4, 'ca_file = "/etc"\nkey_file = "FILE"', "key_file is set but cert_file is not"),
        (4, 'tls = true\nhost = ""', "`mqtt.host`: expected text of length >= 1; found ''"),
        (
            3,
            'host = "mqtt://localhost:1883"',
            "write only the name or the IP address of the broker",
        ),
        (3, 'host = "localhost:1883"', "host = 'localhost:1883' is neither a host name nor an IP address; port"),
        (3, 'host = "[::1]:1883"', "host = '[::1]:1883' is neither a host name nor an IP address; port"),
        (3, 'host = "[::1]"', "is neither a host name nor an IP address"),
        (3, 'host = "a b"', "is neither a host name nor an IP address"),
        (3, 'host = "a..b"', "is neither a host name nor an IP address"),
        (3, 'host = "127.0.0.1\\u0000"', "host = '127.0.0.1\\x00' is neither a host name"),
        (2, 'username = "a\\u0000"', "`mqtt.username`: leave out control characters"),
        (3, 'prefix = "$SYS"', "`mqtt.prefix`: use one or more parts"),
        (3, 'prefix = "$share/x"', "without $ at its beginning"),
        (3, 'prefix = "a\\tb"', "control characters"),
        (3, 'prefix = "homeassistant"', "prefix = 'homeassistant' is that of [homeassistant]"),
        (3, 'prefix = "homeassistant/eyes"', "is that of [homeassistant], 'homeassistant': choose another"),
    ],
)
def test_what_is_wrong_with_the_broker_is_told_at_its_key(file: Path, line: int, text: str, why: str) -> None:
    broker = f"[mqtt]\nport = 1883\n{text}\n".replace("FILE", str(file))
    (said,) = problems(file, f'{broker}[streams.front]\nsource = "test:"\nmodel = "nanodet"\n')
    assert said.startswith(f"{file}:{line + text.count('username')}: ")
    assert why.replace("FILE", str(file)) in said


def test_a_file_whose_name_is_not_utf8_is_checked_for_programs(tmp_path: Path) -> None:
    file = tmp_path / "c\udcff.toml"
    file.write_text(STREAM + "wat = 1\n")
    told = json.loads(call("check", str(file), "--json").stdout)
    assert told["file"] == plain(str(file))
    assert told["problems"][0].startswith(f"{plain(str(file))}:4: unknown key")


def test_a_password_file_in_the_home_of_nobody_is_a_problem_and_no_crash(file: Path) -> None:
    camera = '[streams.front]\nsource = "rtsp://cam.invalid/"\nmodel = "nanodet"\n'
    login = '[streams.front.capture]\nusername = "u"\npassword_file = "~nobody-of-that-name/x"\n'
    (line,) = problems(file, camera + login)
    assert "capture.password_file = ~nobody-of-that-name/x: " in line


@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
def test_nobody_is_told_to_change_the_rights_of_what_is_no_plain_file(
    file: Path, tmp_path: Path, kind: str
) -> None:
    secret = Path("/dev/zero") if kind == "device" else tmp_path / kind
    if kind == "pipe":
        os.mkfifo(secret)
    elif kind == "folder":
        secret.mkdir()
    broker = f'[mqtt]\nusername = "u"\npassword_file = "{secret}"\n'
    camera = f'[streams.front.capture]\nusername = "u"\npassword_file = "{secret}"\n'
    source = '[streams.front]\nsource = "rtsp://cam.invalid/"\nmodel = "nanodet"\n'
    file.write_text(broker + source + camera)
    result = call("check", str(file))
    assert "chmod" not in result.stderr
    assert result.stderr.count(f"password_file = {secret}: ") == 2


@pytest.mark.parametrize(
    "host",
    [
        "mqtt://u:S3cr3t@localhost",
        "mqtts://u:S3cr3t@[::1]:8883/x",
        "wss://broker/mqtt?token=S3cr3t",
        "u:S3cr3t@h",
        "u:S3cr/3t@x@h:1883",
        "u:S3cr3t://x@",
    ],
)
def test_a_host_with_a_user_is_told_without_the_password(file: Path, host: str) -> None:
    text = f'[mqtt]\nhost = "{host}"\n[streams.front]\nsource = "test:"\nmodel = "nanodet"\n'
    (line,) = problems(file, text)
    assert line.startswith(f"{file}:2: ")
    assert "write only the name or the IP address of the broker" in line
    assert "S3cr" not in line
    assert "S3cr" not in call("show", str(file)).output


@pytest.mark.parametrize(
    "text",
    [
        STREAM.replace("nanodet", "URI"),
        STREAM.replace("nanodet", "URI/x.tflite"),
        STREAM.replace("test:", "mic:admin:S3cr3t@cam"),
        STREAM + 'backend = "URI"\n',
        STREAM.replace("front", '"URI"'),
        STREAM + '"URI" = 1\n',
        f'{STREAM}[device]\nname = "URI"\n',
        f'{STREAM}[device]\nname = "{"x" * 30}URI"\n'.replace("S3cr3t", "S3cr3t" * 9),
        f'{STREAM}[selection]\ncandidates = ["URI"]\n',
    ],
)
def test_a_password_at_the_wrong_place_is_not_told(file: Path, text: str) -> None:
    found = problems(file, text.replace("URI", "rtsp://admin:S3cr3t PW@cam"))
    assert found
    assert "S3cr3t" not in "\n".join(found)
    try:
        shown = call("show", str(file)).output
    except ConfigError as error:
        shown = str(error)
    assert "S3cr3t" not in shown


@pytest.mark.parametrize(
    "host", ["localhost", "10.0.0.1", "::1", "fe80::1%eth0", "my_broker.lan.", "bröker.example"]
)
def test_a_host_may_be_a_name_or_an_address(file: Path, host: str) -> None:
    file.write_text(f'[mqtt]\nhost = "{host}"\n[streams.front]\nsource = "test:"\nmodel = "nanodet"\n')
    assert call("check", str(file)).exit_code == 0


def test_home_assistants_prefix_may_not_be_the_brokers_either(file: Path) -> None:
    own = '[homeassistant]\nprefix = "$SYS"\n[streams.front]\nsource = "test:"\nmodel = "nanodet"\n'
    (said,) = problems(file, own)
    assert said.startswith(f"{file}:2: `homeassistant.prefix`: use one or more parts")


def test_password_and_certificates_are_both_told(file: Path) -> None:
    broker = '[mqtt]\nca_file = "/nothing/ca"\nusername = "u"\npassword_file = "/nothing/password"\n'
    found = problems(file, f'{broker}[streams.front]\nsource = "test:"\nmodel = "nanodet"\n')
    assert [said.split(": ")[0] for said in found] == [f"{file}:4", f"{file}:2"]


@pytest.mark.parametrize("json", [[], ["--json"]])
def test_passwords_and_keys_in_sources_are_shown_only_when_asked_for(file: Path, json: list[str]) -> None:
    front = '[streams.front]\nsource = "rtsp://user:hush1@cam/path"\nmodel = "nanodet"\n'
    back = '[streams.back]\nsource = "http://cam/video?key=hush2&size=1"\nmodel = "nanodet"\n'
    file.write_text(front + back)
    shown = call("show", *json, str(file)).stdout
    assert "hush" not in shown
    assert '"rtsp://cam"' in shown
    assert '"http://cam"' in shown
    assert ("--secrets" in shown) is not bool(json)
    plain = call("show", *json, "--secrets", str(file)).stdout
    assert "rtsp://user:hush1@cam/path" in plain
    assert "key=hush2" in plain


def test_a_stream_cannot_be_called_as_the_commands_are(file: Path) -> None:
    text = '[streams.cmd]\nsource = "test:"\nmodel = "nanodet"\n'
    assert problems(file, text) == [
        f"{file}:1: no stream can be called 'cmd': the topic of commands; choose another name"
    ]


def test_what_commands_have_set_is_shown_with_a_remark(file: Path, tmp_path: Path) -> None:
    zone = f'[[streams.front.zones]]\nname = "yard"\npolygon = {SQUARE}\n'
    state = tmp_path / "state"
    file.write_text(
        f'[storage]\nstate_dir = "{state}"\n[streams.front]\nsource = "test:"\nmodel = "nanodet"\n{zone}'
    )
    assert "set by a command" not in call("show", str(file)).stdout
    overrides = Overrides()
    said = load(file).config
    values: dict[str, Value] = {"enabled": False, "threshold": 0.7, "variant": "256", "zone/yard": False}
    for what, value in values.items():
        overrides = overrides.set(said, "front", what, value)
    state.mkdir()
    (state / FILE).write_bytes(overrides.encode())
    shown = call("show", str(file)).stdout
    front = tomllib.loads(shown)["streams"]["front"]
    assert (front["enabled"], front["variant"], front["decode"]["score_threshold"]) == (False, "256", 0.7)
    assert front["zones"][0]["enabled"] is False
    remarks = [line.split("#")[1].strip() for line in shown.splitlines() if "set by a command" in line]
    assert sorted(remarks) == [
        f"set by a command ({what}), not by the file" for what in ("enabled", "threshold", "variant", "zone/yard")
    ]
    (state / FILE).write_bytes(b"{")
    result = call("show", str(file))
    assert result.exit_code == 0
    assert "settings made by commands are not shown" in result.stderr
    assert tomllib.loads(result.stdout)["streams"]["front"]["enabled"] is True


@pytest.mark.parametrize(("mode", "warned"), [(0o644, True), (0o640, False)])
def test_a_password_that_every_user_may_read_is_warned_of(file: Path, mode: int, warned: bool) -> None:
    file.write_text('[streams.front]\nsource = "rtsp://ann:Zx9@cam/"\nmodel = "nanodet"\n')
    file.chmod(mode)
    result = call("check", str(file))
    assert result.exit_code == 0
    assert ("warning: " + f"{file}:2: holds a password" in result.stderr) is warned
    assert "Zx9" not in result.output
    told = json.loads(call("check", "--json", str(file)).stdout)
    assert bool(told["warnings"]) is warned
    assert told["ok"]


def test_a_password_of_the_source_that_is_recorded_is_warned_of(file: Path) -> None:
    head = '[streams.front]\nsource = "rtsp://cam/"\nmodel = "nanodet"\n[streams.front.clips]\n'
    file.write_text(f'{head}record_source = "rtsp://ann:Zx9@cam/main"\n')
    file.chmod(0o644)
    result = call("check", str(file))
    assert result.exit_code == 0
    assert f"warning: {file}:5: holds a password" in result.stderr
    assert "Zx9" not in result.output


def test_a_source_that_cannot_be_recorded_is_told_with_its_line(file: Path) -> None:
    head = '[streams.front]\nsource = "rtsp://cam/"\nmodel = "nanodet"\n[streams.front.clips]\n'
    (wrong,) = problems(file, f'{head}record_source = "v4l2:/dev/video7"\n')
    assert wrong.startswith(f"{file}:5: streams.front.clips.record_source: expected a camera on the network")


def test_a_password_file_of_a_camera_is_checked(file: Path) -> None:
    secret = file.parent / "password"
    head = '[streams.front]\nsource = "rtsp://ann@cam/"\nmodel = "nanodet"\n[streams.front.capture]\n'
    (wrong,) = problems(file, f'{head}password_file = "{secret}"\n')
    assert wrong == f"{file}:4: rtsp://cam: capture.password_file = {secret}: No such file or directory"
    secret.write_text("Zx9")
    secret.chmod(0o644)
    result = call("check", str(file))
    assert result.exit_code == 0
    assert f"warning: {secret}: every user" in result.stderr


@pytest.fixture
def node() -> Iterator[Path]:
    """Another path of /dev/null, as /dev/v4l/by-id has one of a camera."""
    link = Path(f"/dev/shm/vedette-test-{os.getpid()}")
    link.symlink_to("/dev/null")
    yield link
    link.unlink()


def test_two_streams_on_one_camera_are_refused_by_whatever_path(file: Path, node: Path) -> None:
    text = (
        '[streams.a]\nsource = "v4l2:/dev/null?fps=5"\nmodel = "nanodet"\n'
        '[streams.b]\nenabled = false\nsource = "v4l2:/dev/null"\nmodel = "nanodet"\n'
        f'[streams.c]\nsource = "v4l2:{node}"\nmodel = "nanodet"\n'
    )
    (wrong,) = problems(file, text)
    assert wrong.startswith(f"{file}:9: v4l2:{node} is the camera of stream a, too")


@pytest.mark.parametrize("made", ["file", "below", "clips"])
def test_a_state_folder_that_cannot_be_used_is_refused_as_by_run(file: Path, tmp_path: Path, made: str) -> None:
    (tmp_path / "taken").touch()
    folder = {"file": tmp_path / "taken", "below": tmp_path / "taken/state"}.get(made, "state")
    more = 'clips_folder = "$STATE_DIRECTORY/clips"\n' if made == "clips" else ""
    stream = '[streams.front]\nsource = "test:"\nmodel = "nanodet"\n'
    (said,) = problems(file, f'[storage]\nstate_dir = "{tmp_path / folder}"\n{more}{stream}')
    assert said.startswith(f"{file}:{3 if more else 2}: ")
    command = [sys.executable, "-m", "agent", "run", "-c", str(file)]
    environment = {key: value for key, value in os.environ.items() if key != "STATE_DIRECTORY"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment)
    assert done.returncode == 1
    assert said.partition(": ")[2] in done.stderr


def test_a_sound_file_leaves_no_state_folder_behind(file: Path, tmp_path: Path) -> None:
    state = tmp_path / "deep/state"
    file.write_text(f'[storage]\nstate_dir = "{state}"\n[streams.front]\nsource = "test:"\nmodel = "nanodet"\n')
    assert call("check", str(file)).exit_code == 0
    assert not state.parent.exists()


def test_what_only_the_user_of_the_unit_may_see_is_no_problem_and_is_said(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    file.write_text(
        '[mqtt]\nusername = "u"\npassword_file = "$CREDENTIALS_DIRECTORY/mqtt"\n'
        '[streams.front]\nsource = "test:"\nmodel = "nanodet"\n'
    )
    assert call("check", str(file)).exit_code == 1  # where no unit is installed, run would refuse it
    monkeypatch.setattr("agent.daemon.check.service_user", os.getuid)
    result = call("check", str(file))
    assert result.exit_code == 0
    assert f"warning: {file}:3: not checked, since this user may not see it" in result.stderr


OF_SOURCE = '[streams.a]\nsource = "SOURCE"\nmodel = "nanodet"\n'


def test_a_file_of_another_kind_and_an_empty_folder_are_no_sources(file: Path, tmp_path: Path) -> None:
    page, empty = tmp_path / "page.html", tmp_path / "empty"
    page.write_text("<html></html>")
    empty.mkdir()
    (line,) = problems(file, OF_SOURCE.replace("SOURCE", f"file:{page}"))
    assert line.startswith(f"{file}:2: file:{page}: expected a video file; found 13 bytes")
    (line,) = problems(file, OF_SOURCE.replace("SOURCE", f"dir:{empty}"))
    assert line == f"{file}:2: dir:{empty}: expected jpg, png or bmp files in {empty}; found none"
    sound = f'[streams.a]\nsource = "wav:{page}"\nmodel = "small-speech"\n'
    (line,) = problems(file, sound)
    assert line.startswith(f"{file}:2: wav:{page}: expected a sound file; it cannot be read")


def test_a_pipe_is_not_opened_as_a_source(file: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    file.write_text(OF_SOURCE.replace("SOURCE", f"file:{tmp_path}/pipe.mp4"))
    command = [sys.executable, "-m", "agent", "config", "check", str(file)]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("scheme", ["file", "dir", "wav"])
def test_a_name_that_is_too_long_is_one_line(file: Path, scheme: str) -> None:
    model = "small-speech" if scheme == "wav" else "nanodet"
    text = OF_SOURCE.replace("SOURCE", f"{scheme}:/tmp/{'x' * 300}").replace("nanodet", model)
    (line,) = problems(file, text)
    assert line == f"{file}:2: {scheme}:/tmp/{'x' * 300}: cannot be read: File name too long"


@pytest.mark.parametrize("key", ["state_dir", "clips_folder"])
@pytest.mark.parametrize(
    ("folder", "why"),
    [
        ("a\\u0000b", "holds a NUL character; use a path without it"),
        ("/dev/null", "something that is no folder is in its place; set [storage]"),
    ],
)
def test_a_folder_that_cannot_be_made_is_one_line(file: Path, key: str, folder: str, why: str) -> None:
    test = OF_SOURCE.replace("SOURCE", "test:")
    (line,) = problems(file, f'[storage]\n{key} = "{folder}"\n{test}')
    assert line.startswith(f"{file}:2: ")
    assert why in line


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("zones", 'name = "a"\npolygon = [[0, 0], [1, 0], [1, 1]]\n'),
        ("lines", 'name = "a"\npoints = [[0, 0], [1, 1]]\n'),
        ("filters", ""),
    ],
)
def test_a_label_that_is_left_out_is_told_at_its_table(file: Path, key: str, place: str) -> None:
    stream = '[streams.front]\nsource = "test:"\nmodel = "nanodet"\ndecode.labels = ["person"]\n'
    (line,) = problems(file, f'{stream}[[streams.front.{key}]]\n{place}labels = ["car"]\n')
    assert line.startswith(f"{file}:5: ")
    assert f"{key}.labels: the stream never reports 'car': decode.labels leaves it out" in line


def test_clips_whose_place_depends_on_the_working_directory_are_refused(file: Path) -> None:
    test = OF_SOURCE.replace("SOURCE", "test:")
    (line,) = problems(file, f'[storage]\nclips_folder = "x/y"\n{test}')
    assert line.startswith(f"{file}:2: ")
    assert "expected a full path" in line


@pytest.mark.parametrize("verb", ["config check", "run -c", "doctor -c"])
def test_a_pipe_is_no_configuration(verb: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.toml")
    command = [sys.executable, "-m", "agent", *verb.split(), str(tmp_path / "p.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    said = " ".join((done.stdout + done.stderr).split())
    assert "cannot read the configuration: expected a plain file; found a pipe or a device" in said
