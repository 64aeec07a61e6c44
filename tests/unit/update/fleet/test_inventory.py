"""The inventory, which Ansible reads, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import FleetError
from agent.update.fleet import FleetBoard, parse, read_inventory
from tests.support.running import ROOT

FILE = Path("fleet.toml")
EXAMPLE = """
[boards.hosts]
porch = { ansible_host = "192.168.1.20", ansible_port = 2222 }
roof = { ansible_host = "fe80::1%eth0", ansible_user = "updater" }
"gate.example" = {}
[boards.vars]
ansible_ssh_private_key_file = "~/.ssh/fleet"
vedette_canary = ["roof"]
vedette_batches = [1, "50%"]
vedette_stop_share = 0.5
vedette_at_once = 3
"""


def test_boards_have_what_is_theirs_and_what_is_everybodys() -> None:
    found = parse(EXAMPLE, FILE)
    key = "~/.ssh/fleet"
    assert list(found.boards.values()) == [
        FleetBoard("porch", "192.168.1.20", 2222, "vedette-update", key),
        FleetBoard("roof", "fe80::1%eth0", 22, "updater", key),
        FleetBoard("gate.example", "gate.example", 22, "vedette-update", key),
    ]
    policy = found.policy
    assert (policy.canary, policy.batches, policy.stop_share, policy.at_once) == (("roof",), (1, "50%"), 0.5, 3)


def test_host_keys_lie_beside_it() -> None:
    assert parse(EXAMPLE, Path("/fleets/home/fleet.toml")).known_hosts == Path("/fleets/home/known_hosts")


def test_boards_are_chosen_by_name() -> None:
    found = parse(EXAMPLE, FILE)
    assert list(found.chosen(("roof", "porch"))) == ["porch", "roof"]
    assert len(found.chosen(())) == 3
    with pytest.raises(FleetError, match="there is no board attic"):
        found.chosen(("attic",))


def test_what_only_ansible_knows_is_left_to_it() -> None:
    assert parse(
        EXAMPLE + 'ansible_ssh_common_args = "-4"\nvedette_looks = 9\ncolour = "red"\nansible_ssh_user = "x"\n',
        FILE,
    ).boards


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "lists no board"),
        ("[boards", "Expected"),
        (f"x = {'1' * 5000}", "digits"),
        ("boards = 3", "[boards]: expected a table"),
        ("[boards]\nhosts = 3", "[boards.hosts]: expected a table"),
        ("[boards]\nvars = 3", "[boards.vars]: expected a table"),
        ("[boards.hosts]\nx = 3", "board x: expected a table, such as { ansible_host = "),
        ("[boards.hosts]\nx = { ansible_port = 0 }", "board x: expected a whole number >= 1"),
        ('[boards.hosts]\nx = { ansible_port = "22" }', "board x: expected a whole number"),
        ("[boards.hosts]\nx = { ansible_host = 7 }", "`$.ansible_host`"),
        ("[boards.hosts]\nx = {}\n[boards.vars]\nansible_port = 70000", "board x: expected"),
        ('[boards.hosts]\nx = {}\n[boards.vars]\nvedette_batches = [1, "200%"]', "`$.vedette_batches[1]`"),
        ('[boards.hosts]\nx = {}\n[boards.vars]\nvedette_canary = "x"', "`$.vedette_canary`"),
        ("[boards.hosts]\nx = {}\n[boards.vars]\nvedette_stop_share = inf", "`$.vedette_stop_share`"),
        ("[boards.hosts]\nx = {}\n[boards.vars]\nvedette_at_once = 0", "`$.vedette_at_once`"),
        ('[boards.hosts]\n"-oProxyCommand=id" = {}', "letters, digits"),
        ('[boards.hosts]\n"a b" = {}', "letters, digits"),
        ('[boards.hosts]\nx = { ansible_user = "-x" }', "user '-x'"),
        ('[boards.hosts]\nx = { ansible_host = "-oProxyCommand=id" }', "is not a host name or address"),
        ('[boards.hosts]\nx = { ansible_host = "a b" }', "is not a host name or address"),
        ("[boards.hosts]\nx = {}\n[boards.vars]\nvedette_batches = []", "vedette_batches"),
        ('[boards.hosts]\nx = {}\n[boards.vars]\nvedette_batches = ["0%"]', "vedette_batches"),
        ('[boards.hosts]\nx = {}\n[boards.vars]\nvedette_batches = ["101%"]', "vedette_batches"),
        ("[boards.hosts]\nx = {}\n[boards.vars]\nvedette_stop_share = 1.1", "vedette_stop_share"),
        ('[boards.hosts]\nx = {}\n[boards.vars]\nvedette_canary = ["y"]', "vedette_canary names y"),
        (
            '[boards.hosts]\nx = {}\n[boards.vars]\nvedette_canaries = ["x"]',
            "[boards.vars] vedette_canaries is unknown here; did you mean 'vedette_canary'?",
        ),
        ("[boards.hosts]\nx = {}\n[boards.vars]\nvedette_stop_shar = 0.1", "did you mean 'vedette_stop_share'?"),
        (
            "[boards.hosts]\nx = { vedette_lok_s = 1 }",
            "board x: vedette_lok_s is unknown here; did you mean 'vedette_look_s'?",
        ),
        (
            "[boards.hosts]\nx = { vedette_at_once = 1 }",
            "board x: vedette_at_once is unknown here",
        ),
        (
            "[boards.hosts]\nx = {}\n[boards.var]\nvedette_at_once = 1",
            "[boards.var] is unknown; did you mean 'vars'?",
        ),
    ],
)
def test_what_cannot_be_used_is_named(text: str, said: str) -> None:
    with pytest.raises(FleetError, match=r"^fleet\.toml: ") as caught:
        parse(text, FILE)
    assert said in str(caught.value)


def test_a_file_that_is_not_there_tells_where_to_begin(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match=r"or copy scripts/fleet/fleet\.toml"):
        read_inventory(tmp_path / "fleet.toml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(FleetError, match="is not UTF-8 text"):
        read_inventory(tmp_path / "binary")


def test_a_link_to_an_inventory_is_one(tmp_path: Path) -> None:
    (tmp_path / "real.toml").write_text(EXAMPLE)
    link = tmp_path / "fleet.toml"
    link.symlink_to("real.toml")
    assert read_inventory(link).path == link


def test_the_one_that_comes_along_can_be_used() -> None:
    assert read_inventory(ROOT / "scripts/fleet/fleet.toml").boards
