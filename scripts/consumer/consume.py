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
import threading
import time
from typing import Any

import paho.mqtt.client as paho
from commandline import options
from messages import row
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from rows import EventRow, RejectedRow
from stores import SqlStore, Unavailable, open_store

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
            log.error("the broker refuses the connection: %s", reason)
            return
        log.info("connected; the broker %s the session", "has kept" if flags.session_present else "begins")
        share = f"$share/{self._options.share}/" if self._options.share else ""
        kinds = ["events", "clips", "verdicts", *(["detections"] if self._options.detections else [])]
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
        """Return the messages that have come: at least one, if one comes within a quarter of a second."""
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


def main() -> None:
    """Consume until told to end."""
    given = options(__doc__)
    level = logging.DEBUG if given.verbose else logging.INFO
    logging.basicConfig(level=level, format="%(levelname)s %(message)s")
    consumer = Consumer(given)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: consumer.stop.set())
    consumer.run()


if __name__ == "__main__":
    main()
