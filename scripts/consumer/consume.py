"""Writes every event of a fleet to SQLite or PostgreSQL, each exactly once: an example to copy and to change.

    python consume.py --store sqlite:events.db
    python consume.py --host broker.example --ca-file ca.pem --username reader --password-file secret
        --store postgresql://events@db.example/events --share night --client-id night-1

It has a session that lasts, so that the broker keeps what comes while it is away; it acknowledges a message
when the database has committed it, so that nothing is lost when it dies; and an event that comes again has an
id that is there. With --share several of them divide the events among themselves. What is no event goes to the
table `rejected`; numbers that do not come within --patience go to `gaps` and to the log, or to `jumps` where the
device began anew behind them.
"""

from __future__ import annotations

import argparse
import logging
import queue
import signal
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from messages import row
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from stores import EventRow, RejectedRow, SqlStore, Unavailable, check_store, open_store

log = logging.getLogger("consume")

_BATCH = 500
"""Messages in one transaction, at most; the broker sends twice as many without an acknowledgement."""
_SESSION_S = 7 * 86400
_RETRY_S = 2.0


class Consumer:
    """Takes messages from a broker in paho's thread, and keeps them in the one that calls `run`."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Prepare; `run` connects."""
        self._options = options
        self._came: queue.SimpleQueue[paho.MQTTMessage] = queue.SimpleQueue()
        self._store: SqlStore | None = None
        self._devices: set[str] = set()
        self.stop = threading.Event()
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            options.client_id,
            protocol=paho.MQTTv5,
            transport=options.transport,
            manual_ack=True,
        )
        self._client.ws_set_options(options.ws_path)
        if options.username:
            self._client.username_pw_set(options.username, options.password_file or None)
        if options.tls is not None:
            self._client.tls_set_context(options.tls)
        self._client.on_connect = self._connected
        self._client.on_connect_fail = lambda *_: log.warning("the broker cannot be reached")
        self._client.on_disconnect = self._disconnected
        self._client.on_message = lambda client, userdata, message: self._came.put(message)
        self._client.reconnect_delay_set(1, 30)

    def _connected(self, client: paho.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            log.error("the broker refuses us: %s", reason)
            return
        log.info("connected; the broker %s our session", "has kept" if flags.session_present else "begins")
        share = f"$share/{self._options.share}/" if self._options.share else ""
        kinds = ["events", "clips", *(["detections"] if self._options.detections else [])]
        client.subscribe([(f"{share}{self._options.prefix}/+/+/{kind}", 1) for kind in kinds])

    def _disconnected(self, client: paho.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        # What has come and is not acknowledged comes again on the next connection: here it would be acknowledged
        # under numbers of a connection that is over.
        self._came = queue.SimpleQueue()

    def run(self) -> None:
        """Consume until `stop` is set."""
        self._keep([])  # the tables are there before the first event, or it is said what is wrong
        self._connect()
        look_at = 0.0
        while not self.stop.is_set():
            source = self._came
            batch = self._batch(source)
            if batch and self._keep(batch) and source is self._came:
                for message in batch:
                    self._client.ack(message.mid, message.qos)
            if self._devices and time.monotonic() >= look_at:
                look_at = time.monotonic() + self._options.patience / 2
                self._look_for_gaps()
        self._client.disconnect()
        self._client.loop_stop()
        if self._store is not None:
            self._store.close()

    def _connect(self) -> None:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho leaves it untyped
        properties.SessionExpiryInterval = _SESSION_S
        properties.ReceiveMaximum = 2 * _BATCH
        ports = {"tcp": (1883, 8883), "websockets": (80, 443)}[self._options.transport]
        port = self._options.port or ports[self._options.tls is not None]
        self._client.connect_async(self._options.host, port, clean_start=False, properties=properties)
        self._client.loop_start()

    def _batch(self, source: queue.SimpleQueue[paho.MQTTMessage]) -> list[paho.MQTTMessage]:
        """What has come: at least one message, if one comes within a quarter of a second."""
        batch: list[paho.MQTTMessage] = []
        try:
            batch.append(source.get(timeout=0.25))
            while len(batch) < _BATCH:
                batch.append(source.get_nowait())
        except queue.Empty:
            pass
        return batch

    def _keep(self, batch: list[paho.MQTTMessage]) -> bool:
        """Have the database commit these; only False when we are to stop."""
        rows = [row(message.topic, bytes(message.payload)) for message in batch]
        events = [one for one in rows if isinstance(one, EventRow)]
        rejected = [one for one in rows if isinstance(one, RejectedRow)]
        for one in rejected:
            log.warning("%r: no event: %s", one.topic, one.why)
        while not self.stop.is_set():
            try:
                good, absurd = self._opened().sift(events)
                new = self._opened().keep(good, [*rejected, *absurd])
            except Unavailable as error:
                self._lost(error)
                continue
            for one in absurd:
                log.warning("%r: set aside: %s", one.topic, one.why)
            self._devices.update(event.device for event in good)
            log.debug("%d events, %d of them new", len(events), new)
            return True
        return False

    def _opened(self) -> SqlStore:
        if self._store is None:
            self._store = open_store(self._options.store)
        return self._store

    def _lost(self, error: Unavailable) -> None:
        log.error("the database: %s; the broker keeps the events, trying again", error)
        if self._store is not None:
            try:
                self._store.close()
            except Exception as closing:
                log.debug("while closing: %s", closing)
            self._store = None
        self.stop.wait(_RETRY_S)

    def _look_for_gaps(self) -> None:
        now = time.time()
        try:
            for device in sorted(self._devices):
                for gap in self._opened().find_gaps(device, now - self._options.patience, now):
                    if gap.restart:
                        log.info(
                            "%s: %d to %d are not used: it was cut off, and began anew behind them", *gap[:3]
                        )
                    else:
                        log.warning("%s: %d to %d have not come", *gap[:3])
        except Unavailable as error:
            self._lost(error)


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").partition("\n")[0].removesuffix("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None


def _store(where: str) -> str:
    try:
        return check_store(where)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _tls(parser: argparse.ArgumentParser, given: argparse.Namespace) -> ssl.SSLContext | None:
    """What the connection is encrypted with; None: it is not."""
    if given.key_file and not given.cert_file:
        parser.error("--key-file needs --cert-file")
    if not (given.tls or given.ca_file or given.cert_file):
        if given.alpn:
            parser.error("--alpn is said in the TLS handshake: add --tls")
        return None
    option = "--ca-file"
    try:
        context = ssl.create_default_context(cafile=given.ca_file)
        option = "--cert-file"
        if given.cert_file:
            context.load_cert_chain(
                given.cert_file, given.key_file, lambda: ""
            )  # a password is asked for nowhere
        if given.alpn:
            context.set_alpn_protocols(given.alpn)
    except OSError as error:
        parser.error(f"{option}: {getattr(given, option[2:].replace('-', '_'))}: {error}")
    return context


def options() -> argparse.Namespace:
    """What the command line says; `tls` is made of it, and `password_file` is the password."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, help="default: 1883, or 8883 with TLS; over WebSocket 80 or 443")
    parser.add_argument("--username", default="")
    parser.add_argument("--password-file", type=_first_line, help="its first line")
    parser.add_argument("--tls", action="store_true", help="encrypt; implied by --ca-file and --cert-file")
    parser.add_argument("--ca-file", help="trust this CA (PEM)")
    parser.add_argument("--cert-file", help="our client certificate (PEM)")
    parser.add_argument("--key-file", help="its key (PEM)")
    parser.add_argument("--alpn", action="append", help="protocol offered in the TLS handshake: mqtt")
    parser.add_argument("--transport", choices=("tcp", "websockets"), default="tcp")
    parser.add_argument("--ws-path", default="/mqtt", help="of the WebSocket")
    parser.add_argument("--prefix", default="vedette", help="first level of the topics")
    parser.add_argument(
        "--store", type=_store, required=True, help="sqlite:FILE or postgresql://USER@HOST/DATABASE"
    )
    parser.add_argument("--share", default="", help="name of a group that divides the events among its members")
    parser.add_argument("--detections", action="store_true", help="also those, where devices send them at QoS 1")
    parser.add_argument("--client-id", default="vedette-consumer", help="another for each consumer")
    parser.add_argument("--patience", type=float, default=30.0, help="seconds until a number counts as missing")
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args()
    given.tls = _tls(parser, given)
    return given


def main() -> None:
    """Consume until told to end."""
    given = options()
    level = logging.DEBUG if given.verbose else logging.INFO
    logging.basicConfig(level=level, format="%(levelname)s %(message)s")
    consumer = Consumer(given)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: consumer.stop.set())
    consumer.run()


if __name__ == "__main__":
    main()
