"""The brokers that a configuration names, each with all that it needs; what is wrong with them or unwise."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import structs

from agent.comms.address import check_host, check_prefix, check_username, shown_host
from agent.comms.credentials import open_to_all, read_certificates, read_password
from agent.config import FallbackConfig, MqttConfig
from agent.errors import ConfigError

OPEN = "every user of this machine may read or change it"
_CHECKS = (check_host, check_username, read_password, read_certificates)


def brokers_of(config: MqttConfig) -> list[MqttConfig]:
    """The configuration of each, in their order: what a fallback leaves out is as in the first."""
    return [config, *(structs.replace(config, **_said(one)) for one in config.fallback)]


def _said(fallback: FallbackConfig) -> dict[str, object]:
    return {key: value for key, value in structs.asdict(fallback).items() if value is not None}


def problems(config: MqttConfig) -> Iterator[ConfigError]:
    """What is wrong with files and keys of each broker, with the keys' places."""
    for number, one in enumerate(brokers_of(config)):
        for check in _CHECKS if number else (*_CHECKS, check_prefix):
            try:
                check(one)
            except ConfigError as error:
                yield _placed(error, number - 1, shown_host(one.host)) if number else error


def _placed(error: ConfigError, number: int, host: str) -> ConfigError:
    text = str(error).removeprefix("[mqtt] ")
    return ConfigError(f"[[mqtt.fallback]] {host}: {text}", keys=("mqtt", "fallback", number, *error.keys[1:]))


def remarks(config: MqttConfig) -> list[str]:
    """What is unwise, a line each."""
    paths = {path: None for one in brokers_of(config) for path in open_to_all(one)}
    return [f"{path}: {OPEN}; chmod o= {path}" for path in paths]
