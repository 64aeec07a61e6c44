"""Logging in to a camera on the network: a user name and a password that do not stand in its URI."""

from __future__ import annotations

from functools import partial
from urllib.parse import quote, unquote, urlsplit

from msgspec.structs import replace

from agent import secretfile
from agent.capture.uri import Address
from agent.config import CaptureConfig
from agent.errors import SourceError


def with_login(address: Address, config: CaptureConfig) -> Address:
    """Return the address with the configured user name and password in its target, which is never to be shown.

    The password is read from its file now: it may have been changed since the last time.

    Raises:
        SourceError: the file cannot be read, or the URI and the configuration do not go together.
    """
    if not (config.username or config.password_file):
        return address
    wrong = partial(_wrong, address)
    if not address.on_network:
        raise wrong("username", "and password_file are for rtsp:, rtsps:, http: and https:")
    parts = urlsplit(address.target, allow_fragments=False)
    if parts.password:
        raise wrong(
            "username", "or password_file is set, and the URI has a password, too: take it out of the URI"
        )
    if config.username and parts.username:
        raise wrong("username", "is set, and the URI names a user, too: take it out of the URI")
    user = config.username or unquote(parts.username or "")
    if not user:
        raise wrong("password_file", "is set but username is not")
    account = quote(user, safe="")
    if config.password_file:
        account += ":" + quote(_password(address, config.password_file), safe="")
    host = parts.netloc.rpartition("@")[2]
    return replace(address, target=parts._replace(netloc=f"{account}@{host}").geturl())


def _password(address: Address, name: str) -> str:
    wrong = partial(_wrong, address, "password_file")
    return secretfile.read_password(secretfile.expand(name, wrong), wrong)


def _wrong(address: Address, key: str, what: str) -> SourceError:
    return SourceError(f"{address.shown}: capture.{key} {what}")
