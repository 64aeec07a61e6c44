"""How a person's tool gets to a broker: what it is told on its command line, in place of a configuration file."""

from __future__ import annotations

import re

from msgspec import Struct, structs

from agent.comms import credentials, reasons
from agent.comms.address import shown_host
from agent.config import MqttConfig
from agent.deviceconfig import Transport

KEYS = (
    "host",
    "port",
    "transport",
    "ws_path",
    "username",
    "password_file",
    "tls",
    "ca_file",
    "cert_file",
    "key_file",
    "alpn",
)
"""Keys of `[mqtt]` that are options here, as `--ws-path`."""
_WITHOUT_TLS = "if it speaks no TLS there, leave out --tls, --ca-file and --cert-file"


class Access(Struct, frozen=True):
    """How to reach a broker; see `MqttConfig` for the fields, which are the same but for the password itself."""

    host: str = "localhost"
    port: int = 0
    username: str = ""
    password: str = ""
    ca_file: str = ""
    tls: bool = False
    cert_file: str = ""
    key_file: str = ""
    transport: Transport = "tcp"
    ws_path: str = "/mqtt"
    alpn: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Access({self.where})"  # no password in a log or a traceback

    @property
    def config(self) -> MqttConfig:
        """The same as a configuration, without the password."""
        said = {key: value for key, value in structs.asdict(self).items() if key != "password"}
        return MqttConfig(**said)

    @property
    def where(self) -> str:
        """`host:port`."""
        return f"{shown_host(self.host)}:{credentials.port(self.config)}"

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return credentials.uses_tls(self.config)

    @property
    def user(self) -> str:
        """Who we are there, for messages."""
        return repr(self.username) if self.username else "a client without a user name"


def as_options(text: str) -> str:
    """What is said to one who has a configuration file, for one who has a command line: its keys are options."""
    text = text.replace(reasons.WITHOUT_TLS, _WITHOUT_TLS).replace(
        "are keys of their own", "are options of their own"
    )
    text = re.sub(r"(?<=write )host = ('[^']*')(?: and port = (\d+))?", _as_host, text)
    return re.sub(r"\[mqtt\] (\w+(?: and \w+)*)", _as_options, text)


def _as_host(found: re.Match[str]) -> str:
    return f"--host {found[1]}" + (f" --port {found[2]}" if found[2] else "")


def _as_options(found: re.Match[str]) -> str:
    keys = found[1].split(" and ")
    if not set(keys) <= set(KEYS):
        return found[0]
    return " and ".join("--" + key.replace("_", "-") for key in keys)
