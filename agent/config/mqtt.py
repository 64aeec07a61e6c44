"""`[mqtt]`: the brokers, and how they are reached."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from agent.config.toml import Seconds

Host = Annotated[str, Meta(min_length=1)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Transport = Literal["tcp", "websockets"]
MqttVersion = Literal["auto", "5", "3.1.1"]
_PREFIX = {
    "use": "use one or more parts with / between them, none of them empty, without +, # and control characters, "
    "the first of them without $ at its beginning"
}
_USERNAME = {"use": "leave out control characters"}
_WS_PATH = {"use": "begin with /, and use printable ASCII characters without spaces"}
_ALPN = {"use": "use 1 to 255 printable ASCII characters without spaces"}
WsPath = Annotated[str, Meta(pattern=r"^/[!-~]*$", extra=_WS_PATH)]
Alpn = tuple[Annotated[str, Meta(pattern=r"^[!-~]{1,255}$", extra=_ALPN)], ...]
# Brokers end a connection that sends a control character in a name: MQTT 5.0, section 1.5.4.
_LEVEL = r"[^+#/\x00-\x1f\x7f-\x9f]+"
Prefix = Annotated[str, Meta(pattern=rf"^(?!\$){_LEVEL}(/{_LEVEL})*$", extra=_PREFIX)]
Username = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f]*$", extra=_USERNAME)]


class FallbackConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[[mqtt.fallback]]`: another broker, used while those before it cannot be reached.

    Keys that are left out are as in `[mqtt]`, which explains each, credentials and TLS included.

    Attributes:
        host: name or address.
        port, transport, ws_path: how to reach it; port 0: the protocol's default.
        username, password_file: credentials.
        tls, ca_file, cert_file, key_file, alpn: encryption.
        protocol: MQTT version.
    """

    host: Host
    port: Port | None = None
    transport: Transport | None = None
    ws_path: WsPath | None = None
    username: Username | None = None
    password_file: str | None = None
    tls: bool | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    alpn: Alpn | None = None
    protocol: MqttVersion | None = None


class MqttConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[mqtt]`: the broker. In the names of its files `$CREDENTIALS_DIRECTORY`, which systemd sets, is expanded.

    Attributes:
        host: name or address of the broker.
        port: 0 means 1883, or 8883 with TLS; over WebSocket 80, or 443 with TLS.
        transport: `websockets` for a broker behind a web server or a proxy.
        ws_path: path of the WebSocket.
        username: empty for an anonymous connection.
        password_file: file whose first line is the password.
        tls: encrypt; implied by `ca_file` and `cert_file`.
        ca_file: PEM bundle to trust instead of the system's.
        cert_file, key_file: client certificate and key, PEM.
        alpn: protocols offered in the TLS handshake, for a broker that shares port 443 with others: `["mqtt"]`;
            `["x-amzn-mqtt-ca"]` for AWS IoT.
        protocol: `auto` tries MQTT 5 first, then 3.1.1.
        prefix: first level of every topic.
        keepalive_s: silence after which the broker reports the device offline, s.
        reconnect_max_s: longest pause between two attempts to connect, s. Left out: 60, and 5 while a broker of
            the local network cannot be reached.
        commands: whether commands are taken from the broker. Left out: they are if this device logs in to it, and
            to every fallback, with `username` and `password_file` or with a client certificate, so that its
            access list can say who commands. A broker without that may let anybody on the network in, also one on
            this machine.
        event_expiry_s: time that the broker keeps an event for a disconnected subscriber, s; 0: the broker's
            choice. MQTT 5 only.
        fallback: other brokers, in the order in which they are tried. While one is in use,
            the first is tried again at each reconnect and every 10 minutes.
        fallback_after_s: time without a connection until the next broker is tried, s; one that refuses the
            connection is left at once.
    """

    host: Host = "localhost"
    port: Port = 0
    transport: Transport = "tcp"
    ws_path: WsPath = "/mqtt"
    username: Username = ""
    password_file: str = ""
    tls: bool = False
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    alpn: Alpn = ()
    protocol: MqttVersion = "auto"
    prefix: Prefix = "vedette"
    keepalive_s: Annotated[int, Meta(ge=5, le=3600)] = 30
    reconnect_max_s: Seconds | None = None
    commands: bool | None = None
    event_expiry_s: Annotated[int, Meta(ge=0, le=4_000_000_000)] = 7 * 86400
    fallback: tuple[FallbackConfig, ...] = ()
    fallback_after_s: Annotated[float, Meta(ge=0.0, le=1e8)] = 10.0
