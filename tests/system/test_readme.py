"""The README is short, and its commands, configurations, event, sources and links are right."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from agent.cli.guide import TOPICS
from agent.cli.main import vedette
from agent.comms.commands import VERBS, set_command
from agent.comms.messages import EventMessage
from agent.comms.topics import Topics
from agent.compute.manifest import check_manifest, read_manifest
from agent.config import Config
from agent.config.load import parse
from agent.config.source_uri import SCHEMES
from agent.config.source_uri import parse as parse_uri
from tests.support.documents import blocks, check_command_line, commands, inline_code, links, vedette_lines
from tests.support.running import ROOT

README = ROOT / "README.md"
GUIDE = ROOT / "agent" / "guide"
SCRIPTS = [
    (path, line) for path in (README, GUIDE / "start.md", GUIDE / "inspection.md") for line in vedette_lines(path)
]
_PLAIN = {"apt-get", "install", "nano", "python3", "systemctl"}
"""Programs of others, which the README only has people install with."""


def of(info: str) -> list[str]:
    return [block.text for block in blocks(README) if block.info == info]


def program(command: str) -> str:
    words = shlex.split(command)
    return words[1] if words[0] == "sudo" else words[0]


def test_a_stranger_reads_it_in_two_minutes() -> None:
    assert len(README.read_text(encoding="utf-8").split()) <= 900


def test_it_has_what_a_stranger_looks_for() -> None:
    scripts = [line for text in of("sh") for line in commands(text)]
    assert scripts[:2] == ["./scripts/demo", "./scripts/test"]
    assert len(of("toml")) == len(of("toml manifest")) == len(of("json event")) == 1
    assert (ROOT / "agent/models/zoo/walkers.jpg").name in README.read_text(encoding="utf-8")


@pytest.mark.parametrize("command", [line for text in of("sh") for line in commands(text)])
def test_a_command_is_a_script_of_ours_a_verb_of_ours_or_plain(command: str) -> None:
    name = program(command)
    if name.startswith("./scripts/"):
        assert os.access(ROOT / name, os.X_OK)
        subprocess.run(["bash", "-n", name], cwd=ROOT, check=True)
    else:
        assert Path(name).name in {"vedette"} | _PLAIN, f"{command}: nothing here checks it"


@pytest.mark.parametrize("line", vedette_lines(README))
def test_a_command_line_is_parsed(line: str) -> None:
    check_command_line(line)


@pytest.mark.parametrize("line", [line for _, line in SCRIPTS if "firmware_configs/" in line])
def test_a_configuration_that_comes_along_is_fine(line: str) -> None:
    (file,) = [word for word in shlex.split(line) if word.startswith("firmware_configs/")]
    checked = CliRunner().invoke(vedette, ["config", "check", str(ROOT / file)], catch_exceptions=False)
    assert (checked.exit_code, checked.output.splitlines()[0]) == (0, f"{ROOT / file}: fine")


def test_the_configuration_and_the_manifest_are_read() -> None:
    (config,), (manifest,) = of("toml"), of("toml manifest")
    assert isinstance(parse(config, "README.md").config, Config)
    check_manifest(read_manifest(manifest, "README.md"))


def test_the_event_is_a_message_with_every_key() -> None:
    (event,) = of("json event")
    decoded = msgspec.json.decode(event, type=EventMessage)
    assert set(msgspec.json.decode(event)) == set(EventMessage.__struct_fields__)
    assert decoded.latency_ms.total >= decoded.latency_ms.infer


def test_every_kind_of_source_is_in_it() -> None:
    uris = [code for code in inline_code(README) if code.partition(":")[0] in SCHEMES and ":" in code]
    for uri in uris:
        parse_uri(uri.replace("…", "camera.local/stream"))
    assert {uri.partition(":")[0] for uri in uris} == set(SCHEMES)


@pytest.mark.parametrize("link", links(README))
def test_a_link_leads_somewhere(link: str) -> None:
    assert link.startswith("https://") or (ROOT / link).exists()


def test_every_page_of_the_guide_is_linked() -> None:
    assert {f"agent/guide/{topic}.md" for topic in TOPICS} <= set(links(README))


def test_the_topics_in_the_guide_are_those_that_are_published() -> None:
    topics, stream = Topics("vedette", "<device>"), "<stream>"
    published = {
        topics.status,
        topics.health,
        topics.events(stream),
        topics.count(stream, "<label>"),
        topics.zone_count(stream, "<zone>", "<label>"),
        topics.snapshot(stream),
        topics.state(stream, "<what>"),
        topics.detections(stream),
        topics.clips(stream),
        topics.verdicts(stream),
        topics.value(stream, "<label>"),
        topics.line(stream, "<line>"),
        topics.inspection(stream),
        topics.condition(stream),
        topics.sensor(stream, "<state>"),
    }
    published.add(topics.text("<name>"))  # the one that others publish to
    assert {code for code in inline_code(GUIDE / "messages.md") if code.startswith("vedette/")} == published


def test_the_commands_in_the_guide_are_those_that_are_accepted() -> None:
    found = {code for code in inline_code(GUIDE / "commands.md") if "/set/" in code or code.startswith("cmd/")}
    topics = Topics("", "")
    whats = {
        "enabled": b"on",
        "zone/<name>": b"on",
        "line/<name>": b"on",
        "filter/<name>": b"on",
        "only_moving": b"on",
        "motion_masks": b"on",
        "reset": b"gate",
        "threshold": b"1",
        "variant": b"x",
        "snapshot": b"",
        "record": b"9",
        "inspect": b"A-1042",
        "accept": b"now",
        "teach": b"gate=open",
        "forget": b"gate",
    }
    verbs = (
        "set",
        "snapshot",
        "record",
        "inspect",
        "accept",
        "reset",
        "teach",
        "forget",
        "trace",
        "status",
        "reload",
        "doctor",
    )
    known = {*(topics.set("<stream>", what) for what in whats), *(topics.command(verb) for verb in verbs)}
    assert found - {"cmd/<verb>/answer"} == {topic.removeprefix("//") for topic in known}
    for what, payload in whats.items():
        assert set_command("front", what, payload).stream == "front"
    assert set(verbs) == set(VERBS)
