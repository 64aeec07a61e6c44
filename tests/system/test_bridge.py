"""The example of a bridge, as it is shipped: a site's mosquitto that passes everything on to a central one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from agent.storage.spool.spool import Spool
from tests.support.doubles import person_model
from tests.support.forwarder import Forwarder
from tests.support.mosquitto import HOST, Mosquitto
from tests.support.publishing import EVENTS, TOPICS, device, event, events_of, in_order
from tests.support.received import Messages
from tests.support.running import Vedette, camera

EXAMPLE = Path(__file__).parent.parent.parent / "firmware_configs" / "examples" / "bridge" / "site.conf"
STATE = "vedette-sites/site-a/state"


class Site(NamedTuple):
    """Both brokers and the line between them."""

    site: Mosquitto
    central: Mosquitto
    line: Forwarder


@pytest.fixture
def bridged(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "site").mkdir()
    (tmp_path / "central").mkdir()
    high = Mosquitto(tmp_path / "central", tls=True, users={"site-a": "SECRET"}, persistence=True)
    with high as central, Forwarder(central.port) as line:
        site = Mosquitto(tmp_path / "site", users={"porch": "right"})
        (site.folder / "mosquitto.conf").write_text(adapted(site, central, line))
        with site:
            central.subscribe(STATE).wait(lambda m: m.of(STATE)[-1:] == [b"1"])
            yield Site(site, central, line)


def adapted(site: Mosquitto, central: Mosquitto, line: Forwarder) -> str:
    """The example with the names of this machine, and in a hurry."""
    text = EXAMPLE.read_text()
    changes = {
        "/var/lib/mosquitto/": f"{site.folder}/",
        "listener 1883": f"listener {site.port} {HOST}",
        "/etc/mosquitto/passwords": str(site.folder / "passwords"),
        "central.example:8883": f"{HOST}:{line.port}",
        "/etc/mosquitto/central-ca.pem": str(central.ca_file),
        "keepalive_interval 30": "keepalive_interval 5",
        "restart_timeout 1 30": "restart_timeout 1 2",
    }
    for old, new in changes.items():
        assert old in text, f"{EXAMPLE} has no {old}"
        text = text.replace(old, new)
    return f"user root\n{text}" if os.geteuid() == 0 else text


def seqs(messages: Messages) -> list[int]:
    """Numbers in the order of their first arrival, by ids."""
    return [one.seq for one in in_order(events_of(messages.of(EVENTS)))]


def test_every_event_reaches_the_central_broker_once_by_its_id_and_in_order_also_after_a_cut(
    bridged: Site, tmp_path: Path
) -> None:
    messages = bridged.central.subscribe("vedette/#", lasting=True)
    total = 0
    with device(tmp_path, bridged.site.config()) as (spool, _):
        for breaks in ("nothing", "line", "central", "site", "nothing"):
            total += put(spool, 200)
            if breaks == "line":
                bridged.line.cut()
            elif breaks == "central":
                bridged.central.stop()
            elif breaks == "site":
                bridged.site.stop()
            total += put(spool, 200)
            time.sleep(0.5)
            if breaks == "line":
                bridged.line.mend()
            elif breaks == "central":
                bridged.central.start()
            elif breaks == "site":
                bridged.site.start()
            messages.wait(lambda m: len(set(seqs(m))) == total)  # noqa: B023  # it is called here only
    assert seqs(messages) == list(range(1, total + 1))


def put(spool: Spool, count: int) -> int:
    for _ in range(count):
        spool.put(EVENTS, event())
    return count


def test_a_device_that_dies_is_offline_at_the_central_broker_too(bridged: Site, tmp_path: Path) -> None:
    messages = bridged.central.subscribe(TOPICS.status)
    vedette = Vedette(tmp_path, bridged.site, front=camera(person_model(tmp_path)))
    vedette.config["mqtt"] |= {"username": "porch", "password_file": bridged.site.config().password_file}
    with vedette:
        messages.wait(lambda m: m.of(TOPICS.status) == [b"online"])
        vedette.end(signal.SIGKILL)
        messages.wait(lambda m: m.of(TOPICS.status) == [b"online", b"offline"])
    late = bridged.central.subscribe(TOPICS.status)
    late.wait(lambda m: m.of(TOPICS.status) == [b"offline"] and m[0].retain)


def test_commands_go_in_once_and_answers_out(bridged: Site) -> None:
    command, state = "vedette/porch/front/set/threshold", "vedette/porch/front/state/threshold"
    below = bridged.site.subscribe("vedette/#")
    above = bridged.central.subscribe("vedette/#")
    above.client.publish(command, b"0.5", qos=1)
    below.wait(lambda m: m.of(command) == [b"0.5"])
    below.client.publish(state, b"0.5", qos=1, retain=True)
    below.client.publish(command, b"0.9", qos=1)  # a site's own commands stay there
    above.wait(lambda m: m.of(state) == [b"0.5"])
    time.sleep(1.0)
    assert above.of(command) == [b"0.5"], "it did not come back"
    assert below.of(command) == [b"0.5", b"0.9"]
    assert below.of(state) == [b"0.5"]


def test_that_a_site_is_cut_off_is_told_at_the_central_broker(bridged: Site) -> None:
    messages = bridged.central.subscribe(STATE)
    messages.wait(lambda m: m.of(STATE) == [b"1"])
    bridged.line.cut()
    messages.wait(lambda m: m.of(STATE) == [b"1", b"0"])
    bridged.line.mend()
    messages.wait(lambda m: m.of(STATE)[-1] == b"1")
    assert messages[0].retain
