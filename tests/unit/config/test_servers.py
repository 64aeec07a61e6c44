"""The address of `[metrics]` and of `[page]`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config.load import dump, parse
from agent.config.servers import MetricsConfig, PageConfig, is_loopback
from agent.daemon.reload import changes
from agent.errors import ConfigError


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("127.0.0.1:9469", ("127.0.0.1", 9469)),
        ("localhost:1", ("localhost", 1)),
        ("[::1]:65535", ("::1", 65535)),
        ("0.0.0.0:9469", ("0.0.0.0", 9469)),
    ],
)
def test_an_address_has_a_host_and_a_port(listen: str, address: tuple[str, int]) -> None:
    assert MetricsConfig(listen=listen).address == address


@pytest.mark.parametrize(
    "listen", ["::1:9469", "example.com:9469", "127.0.0.1:0", "127.0.0.1:65536", "127.1:9469", ":9469", "[]:9469"]
)
def test_what_is_no_address_is_refused_with_its_key(listen: str) -> None:
    with pytest.raises(ConfigError) as refused:
        _ = MetricsConfig(listen=listen).address
    assert refused.value.keys == ("metrics", "listen")
    assert listen in str(refused.value)


@given(st.ip_addresses())
def test_only_addresses_of_the_loopback_are_this_machine_alone(address: object) -> None:
    text = str(address)
    assert is_loopback(text) is (text.startswith("127.") or text in ("::1",) or text.startswith("::ffff:7f"))


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.5", "example.com", "localhost.example", "", "::ffff:1.2.3.4"]
)
def test_all_others_are_open_to_others(host: str) -> None:
    assert not is_loopback(host)
    assert is_loopback("LOCALHOST")
    assert is_loopback("::ffff:127.0.0.1")


def test_the_table_enables_metrics_and_a_change_is_described() -> None:
    without, with_table = parse("", "a.toml").config, parse("[metrics]", "a.toml").config
    assert without.metrics is None
    assert with_table.metrics == MetricsConfig()
    assert parse(dump(with_table), "b.toml").config == with_table
    assert set(changes(without, with_table).tables) == set(changes(with_table, without).tables) == {"metrics"}
    other = parse('[metrics]\nlisten = "127.0.0.1:1"', "a.toml").config
    assert changes(with_table, other).tables == {"metrics": ["listen"]}
    assert changes(with_table, with_table).is_empty


def test_the_page_is_a_table_of_its_own() -> None:
    with_page = parse("[page]", "a.toml").config
    assert with_page.page == PageConfig()
    assert (with_page.metrics, with_page.page.address) == (None, ("127.0.0.1", 9470))
    with pytest.raises(ConfigError) as refused:
        _ = PageConfig(listen="127.0.0.1:0").address
    assert refused.value.keys == ("page", "listen")
