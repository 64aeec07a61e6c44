"""`vedette guide`: the verb, and every code block, command line, topic and link of its pages."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from agent.cli.bundle import read_migrations
from agent.cli.guide import FOLDER, TOPICS, find, guide, page, summary
from agent.cli.main import vedette
from agent.comms.commands import request_command
from agent.comms.messages import (
    ClipMessage,
    ConditionMessage,
    DetectionsMessage,
    EventMessage,
    InspectionMessage,
    LineMessage,
    SensorMessage,
    VerdictMessage,
)
from agent.compute import decode
from agent.compute.infer import audio_input
from agent.compute.manifest import AudioManifest, check_manifest, read_manifest
from agent.config.load import parse
from agent.config.source_uri import SCHEMES
from agent.config.source_uri import parse as parse_uri
from agent.health import HealthMessage
from agent.optimise.recipe import parse_recipe
from agent.update.fleet import parse as parse_inventory
from tests.support.documents import Block, blocks, check_command_line, inline_code, links, vedette_lines

PAGES = [FOLDER / f"{topic}.md" for topic in TOPICS]
BLOCKS = [block for path in PAGES for block in blocks(path)]
MESSAGES = {"event": EventMessage, "clip": ClipMessage, "detections": DetectionsMessage, "health": HealthMessage}
MESSAGES |= {"verdict": VerdictMessage, "inspection": InspectionMessage, "sensor": SensorMessage}
MESSAGES |= {"condition": ConditionMessage, "line": LineMessage}


def of(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.info.split()[:1] == [language]]


def where(block: Block) -> str:
    return block.where


def call(*args: str) -> Any:
    return CliRunner().invoke(guide, args)


def test_without_a_topic_it_lists_all_with_a_line_each() -> None:
    lines = call().output.splitlines()
    assert [line.split()[0] for line in lines[: len(TOPICS)]] == list(TOPICS)
    assert all(len(line) < 100 for line in lines)
    listed = json.loads(call("--json").output)
    assert listed == [{"topic": topic, "summary": summary(topic)} for topic in TOPICS]
    assert all(row["summary"] for row in listed)


def test_a_pipe_gets_the_markdown() -> None:
    assert call("sources").output == page("sources")


def test_an_unknown_topic_names_the_nearest() -> None:
    shown = call("mesages")
    assert shown.exit_code == 2
    assert "'mesages'" in shown.output
    assert "did you mean messages?" in shown.output


def test_a_word_is_found_with_its_heading_and_line() -> None:
    (hit, *_) = json.loads(call("--find", "YAMNET", "--json").output)
    assert (hit["topic"], hit["heading"]) == ("models", "Decoder `classify`")
    assert "YAMNet" in page("models").splitlines()[hit["line"] - 1]
    assert f"models:{hit['line']}: Decoder `classify`: " in call("--find", "yamnet").output
    assert {hit.topic for hit in find("yamnet", ("sources",))} == set()


def test_a_comment_in_code_is_no_heading() -> None:
    assert not any("label file begins" in hit.heading for hit in find("decoder"))


def test_nothing_found_is_exit_code_1() -> None:
    assert call("--find", "no such word").exit_code == 1
    shown = call("--find", "no such word", "--json")
    assert (shown.exit_code, json.loads(shown.stdout)) == (1, [])


def test_a_terminal_gets_formatted_pages() -> None:
    line = ["script", "-qec", f"{shlex.quote(sys.executable)} -m agent guide glossary", "/dev/null"]
    environment = {**os.environ, "TERM": "xterm", "PAGER": "cat"}
    done = subprocess.run(line, cwd=FOLDER.parent.parent, capture_output=True, env=environment, check=True)
    assert b"\x1b[" in done.stdout
    assert b"# Glossary" not in done.stdout


def test_every_page_is_a_topic_and_begins_with_a_summary() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {path.name for path in PAGES}
    for topic in TOPICS:
        assert re.match(r"# [A-Z][A-Za-z ]+: \w", page(topic)), topic


def test_every_block_says_what_it_is() -> None:
    assert {block.info.split()[0] if block.info else "" for block in BLOCKS} == {"sh", "toml", "json", "python"}


@pytest.mark.parametrize("block", of("toml"), ids=where)
def test_a_toml_block_is_read_by_its_loader(block: Block, tmp_path: Path) -> None:
    kind = block.info.removeprefix("toml").strip()
    if kind == "":
        parse(block.text, block.where)
    elif kind == "manifest":
        check_example_manifest(block)
    elif kind == "recipe":
        parse_recipe(block.text, block.where)
    elif kind == "migrations":
        (tmp_path / "m.toml").write_text(block.text)
        assert read_migrations(tmp_path / "m.toml")
    else:
        assert kind == "inventory", block
        assert parse_inventory(block.text, Path(block.where)).boards


def check_example_manifest(block: Block) -> None:
    manifest = read_manifest(block.text, block.where)
    output, audio = manifest.data["output"], manifest.data.get("audio")
    if isinstance(output.get("labels"), str):
        output["labels"] = ["one", "two"]
    check_manifest(manifest)
    msgspec.convert(output.get("options", {}), decode.options_kind(output["decoder"]))
    if audio is not None:
        audio_input.options(msgspec.convert(audio, AudioManifest), audio_input.BUILDERS[audio["frontend"]][0])


def test_every_decoder_and_every_front_end_has_an_example() -> None:
    manifests = [tomllib.loads(block.text) for block in of("toml") if block.info == "toml manifest"]
    assert {one["output"]["decoder"] for one in manifests} == set(decode.DECODERS)
    assert set(re.findall(r"^## Decoder `(\w+)`$", page("models"), re.MULTILINE)) == set(decode.DECODERS)
    assert set(re.findall(r"^\| `(\w+)` \|", page("models").partition("## Sound")[2], re.MULTILINE)) >= set(
        audio_input.BUILDERS
    )


@pytest.mark.parametrize("block", of("python"), ids=where)
def test_a_python_block_is_a_network_that_can_be_imported(block: Block, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="importing modules needs the extra [optimise]")
    from agent.optimise.factory import load_factory
    from agent.optimise.graph.from_torch import export

    file = tmp_path / f"guide_net_{block.where.rpartition(':')[2]}.py"
    file.write_text(block.text)
    assert export(load_factory(f"{file}:build"), (96, 96, 3), mean=128, std=64).outputs == {"logits": (1, 10)}


@pytest.mark.parametrize("block", of("json"), ids=where)
def test_a_json_block_is_a_message(block: Block) -> None:
    _, kind, *more = block.info.split()
    if kind == "request":
        command, number = request_command(more[0], block.text.encode())
        assert command.verb == more[0]
        assert number
    elif kind == "answer":
        assert set(json.loads(block.text)) == {"ok", "reason", "id"}
    else:
        struct = MESSAGES[kind]
        msgspec.json.decode(block.text, type=struct, strict=True)
        assert set(json.loads(block.text)) <= set(struct.__struct_encode_fields__)


@pytest.mark.parametrize("block", of("sh"), ids=where)
def test_a_shell_block_is_well_formed(block: Block) -> None:
    subprocess.run(["bash", "-n"], input=block.text.encode(), check=True)


@pytest.mark.parametrize("line", sorted({line for path in PAGES for line in vedette_lines(path)}))
def test_a_command_line_is_parsed(line: str) -> None:
    check_command_line(line)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_source_in_the_text_is_one(path: Path) -> None:
    for code in inline_code(path):
        if code.partition(":")[0] in SCHEMES and ":" in code:
            parse_uri(code.replace("…", "camera.local/stream"))


def test_every_kind_of_source_is_in_the_table() -> None:
    assert {code.partition(":")[0] for code in inline_code(FOLDER / "sources.md") if ":" in code} >= set(SCHEMES)


def config_schema() -> dict[str, Any]:
    tables: dict[str, Any] = json.loads(CliRunner().invoke(vedette, ["config", "schema"]).output)["$defs"]
    return tables


def named_keys() -> set[str]:
    """Keys in `key`, `table.key`, `key = value` and `[table]` of the text, and those that TOML blocks set."""
    code = (one.partition(" = ")[0].strip("[]") for path in PAGES for one in inline_code(path))
    in_text = {part for one in code if re.fullmatch(r"[\w.]+", one) for part in one.split(".")}
    toml = (block.text for block in BLOCKS if block.info == "toml")
    return in_text | {key for text in toml for key in re.findall(r"^(\w+) = ", text, re.MULTILINE)}


def test_every_key_of_the_configuration_is_on_a_page() -> None:
    known = named_keys()
    keys = {f"{table}.{key}" for table, one in config_schema().items() for key in one.get("properties", ())}
    assert len(keys) > 80
    assert {key for key in keys if key.rpartition(".")[2] not in known} == set()


def test_every_table_of_the_configuration_is_explained() -> None:
    text = page("configuration")
    schema = config_schema()
    tables = set(schema["Config"]["properties"]) - {"streams"}
    assert {table for table in tables if f"`[{table}]`" not in text} == set()
    parts = {key for key in schema["StreamConfig"]["properties"] if f"`[streams.NAME.{key}]`" in text}
    assert parts >= {"capture", "gate", "decode", "track", "publish", "clips", "cascade"}


@pytest.mark.parametrize(
    ("path", "link"), [(path, link) for path in PAGES for link in links(path)], ids=lambda value: Path(value).name
)
def test_a_link_leads_to_another_page(path: Path, link: str) -> None:
    assert link.startswith("https://") or FOLDER / link in PAGES, f"{path.name}: {link}"
