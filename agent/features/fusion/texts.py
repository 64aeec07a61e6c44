"""Texts from the broker: messages and transcripts that others send as evidence for a fused event.

The payload is plain UTF-8, or a JSON object with `text` and, if the sender knows when it was said, `at`: a time
of ISO 8601 with its offset, or Unix time, s. Texts may be private: they are neither logged nor kept.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from agent.errors import CommandError
from agent.structs import from_json

if TYPE_CHECKING:
    from agent.comms.mqtt.inbox import IncomingMessage

log = logging.getLogger(__name__)

TEXT_MAX = 4096
"""Largest payload, bytes."""


class ReceivedText(Struct, frozen=True):
    """A text.

    Attributes:
        text: as sent.
        at: UTC at which it was said, by the sender's clock; None: the sender does not tell.
    """

    text: str
    at: datetime | None = None


class _Body(Struct, frozen=True):
    text: str
    at: datetime | float | None = None


def decode_text(payload: bytes) -> ReceivedText:
    """Decode a payload.

    Raises:
        CommandError: it is too large, not UTF-8, or no such JSON object. The message does not quote it.
    """
    if len(payload) > TEXT_MAX:
        raise CommandError(f"{len(payload)} bytes, at most {TEXT_MAX} are taken")
    try:
        text = payload.decode()
    except UnicodeDecodeError as error:
        raise CommandError(f"not UTF-8 at byte {error.start}") from None
    if not text.lstrip().startswith("{"):
        return ReceivedText(text)
    try:
        body = from_json(payload, _Body)
        return ReceivedText(body.text, _utc(body.at))
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
        raise CommandError('expected JSON with "text", and "at" as a time, or plain text') from None


def _utc(at: datetime | float | None) -> datetime | None:
    if at is None:
        return None
    if isinstance(at, datetime):
        if at.tzinfo is None:
            raise ValueError("a time without its offset")
        return at.astimezone(UTC)
    return datetime.fromtimestamp(at, UTC)


def said_at(text: ReceivedText, arrived_at: datetime, clock_within_s: float) -> datetime:
    """Return when a text was said: its own time if that is near enough, and not ahead; else its arrival."""
    if text.at is None or abs(text.at - arrived_at) > timedelta(seconds=clock_within_s):
        return arrived_at
    return min(text.at, arrived_at)


class TextReceiver:
    """Receives the texts of one topic. For the connection's thread; each kind of refusal is logged once.

    Attributes:
        clock_within_s: see `agent.config.TextConfig`.
        refused: number of messages that were refused.
    """

    def __init__(self, name: str, clock_within_s: float, on_text: Callable[[str, str, datetime], None]) -> None:
        """Pass on the name of the text input, the text, and the UTC at which it was said."""
        self._name, self.clock_within_s, self._on_text = name, clock_within_s, on_text
        self.refused, self._reasons = 0, set[str]()
        self._clock_logged = False

    def receive(self, received: IncomingMessage) -> None:
        """Pass a message on, or refuse it."""
        if received.retained:  # it would count again at every start
            if received.payload:
                self._refuse("retained by the broker; send it without the retain flag")
            return
        arrived_at = datetime.now(UTC)
        try:
            text = decode_text(received.payload)
        except CommandError as error:
            self._refuse(str(error))
            return
        if text.at is not None and abs((text.at - arrived_at).total_seconds()) > self.clock_within_s:
            self._log_clock((text.at - arrived_at).total_seconds())
        self._on_text(self._name, text.text, said_at(text, arrived_at, self.clock_within_s))

    def _refuse(self, why: str) -> None:
        self.refused += 1
        kind = re.sub(r"\d+", "", why)
        if kind not in self._reasons:
            self._reasons.add(kind)
            log.warning("text %s: refused: %s; more of this kind are counted in health", self._name, why)

    def _log_clock(self, ahead_s: float) -> None:
        if not self._clock_logged:
            self._clock_logged = True
            log.warning(
                "text %s: the sender's clock is %.1f s %s of this device's: the time of arrival counts instead",
                self._name,
                abs(ahead_s),
                "ahead" if ahead_s > 0 else "behind",
            )
