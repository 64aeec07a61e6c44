"""What the README promises: its commands, its configuration, its topics and its links."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import get_args

import click
import pytest
from click.testing import CliRunner

from agent.capture.source import check_uri
from agent.cli.main import vedette
from agent.comms.commands import Verb, set_command
from agent.comms.topics import Topics
from agent.config import Config
from agent.config.load import parse
from agent.config.source_uri import SCHEMES
from tests.support.running import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
_PLAIN = {"apt-get", "git", "nano", "python3", "cd", "source", "export", "systemctl", "ssh-keygen"}
"""Programs of others, which the README only has people install with."""


def blocks(language: str) -> list[str]:
    """Contents of the fenced blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def shell_commands() -> list[str]:
    """Every command of the `sh` blocks, one by one."""
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [
        part.strip() for line in lines for part in re.split(r"&&|;|\|", line.partition(" #")[0]) if part.strip()
    ]


def inline_code() -> list[str]:
    return re.findall(r"`([^`\n]+)`", README)


def program(command: str) -> str:
    words = shlex.split(command)
    return words[1] if words[0] == "sudo" else words[0]


def ours() -> list[str]:
    """Every `vedette …` in blocks and in text, without the folder that it is in."""
    said = [command.removeprefix("sudo ") for command in (*shell_commands(), *inline_code())]
    commands = [re.sub(r"^\S*/(?=vedette\b)", "", command) for command in said]
    return sorted({command for command in commands if re.match(r"vedette\s", command)})


def resolved(command: str) -> tuple[click.Command, list[str]]:
    """The verb that a command line calls, and what is left of the line."""
    found: click.Command = vedette
    words = shlex.split(command)[1:]
    while isinstance(found, click.Group) and words and not words[0].startswith("-"):
        inner = found.get_command(click.Context(found), words[0])
        assert inner is not None, f"README: {command}: there is no verb {words[0]!r}"
        found, words = inner, words[1:]
    return found, words


def test_the_readme_has_something_to_check() -> None:
    assert len(shell_commands()) >= 4
    assert len(ours()) >= 8
    assert blocks("toml")


@pytest.mark.parametrize("command", ours())
def test_a_verb_and_its_options_exist(command: str) -> None:
    verb, words = resolved(command)
    assert not isinstance(verb, click.Group) or not words, f"{command} lacks a verb"
    known = {option for parameter in verb.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("-")} - known <= {"--help", "--version"}


@pytest.mark.parametrize("command", shell_commands())
def test_a_command_is_a_script_of_ours_a_verb_of_ours_or_plain(command: str) -> None:
    name = program(command)
    if name.startswith("./scripts/"):
        assert os.access(ROOT / name, os.X_OK)
        subprocess.run(["bash", "-n", name], cwd=ROOT, check=True)
    else:
        assert Path(name).name in {"vedette", "pip"} | _PLAIN, f"{command}: nothing here checks it"


@pytest.mark.parametrize("command", [c for c in ours() if "firmware_configs/" in c])
def test_a_configuration_that_comes_along_is_fine(command: str) -> None:
    (file,) = [word for word in shlex.split(command) if word.startswith("firmware_configs/")]
    checked = CliRunner().invoke(vedette, ["config", "check", str(ROOT / file)], catch_exceptions=False)
    assert (checked.exit_code, checked.output.splitlines()[0]) == (0, f"{ROOT / file}: fine")


@pytest.mark.parametrize("text", blocks("toml"))
def test_a_configuration_in_the_text_can_be_read(text: str) -> None:
    assert isinstance(parse(text, "README.md").config, Config)


@pytest.mark.parametrize("uri", [c for c in inline_code() if c.partition(":")[0] in SCHEMES and ":" in c])
def test_a_source_in_the_text_is_one(uri: str) -> None:
    check_uri(uri.replace("…", "camera.local/stream"))


def test_the_topics_are_those_that_are_published() -> None:
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
    }
    assert {code for code in inline_code() if code.startswith("vedette/")} == published


def test_the_commands_are_those_that_are_taken() -> None:
    told = {code for code in inline_code() if "/set/" in code or code.startswith("cmd/")}
    topics = Topics("", "")
    whats = {
        "enabled": b"on",
        "zone/<name>": b"on",
        "threshold": b"1",
        "variant": b"x",
        "snapshot": b"",
        "record": b"9",
    }
    verbs = ("set", "snapshot", "record", "status", "reload", "doctor")
    known = {*(topics.set("<stream>", what) for what in whats), *(topics.command(verb) for verb in verbs)}
    assert told - {"cmd/<verb>/answer", "cmd/…"} == {topic.removeprefix("//") for topic in known}
    for what, payload in whats.items():
        assert set_command("front", what, payload).stream == "front"
    assert set(verbs) == set(get_args(Verb))


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_a_link_leads_somewhere(link: str) -> None:
    assert link.startswith("https://") or (ROOT / link).exists()
