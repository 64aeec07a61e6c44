"""From the end of a spoken word to a subscriber, through a real microphone path.

A sound server's microphone is heard by the daemon and, beside it, by the bench, which finds in what it hears
where each word ends on the machine's one monotonic clock. What passes after that is waiting (for the window that
tells the word: capture blocks, steps of the model, smoothing), computing (gate to track, as the message says) and
the rest (spool, broker).

Every fifth digit is said twice with 0.3 s between. It counts for the repeats alone: how many of those that were
heard were told once only. Of the others it is counted how many were told twice.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import _sound
import common
import listen_cost
import numpy as np
from msgspec import Struct

sys.path.insert(0, str(common.ROOT))

from agent.capture.sound import AudioStream
from agent.comms.consumer import BrokerOptions, Subscriber
from agent.comms.messages import EventMessage
from agent.config import CaptureConfig
from agent.types import Samples
from tests.support.soundserver import SoundServer

RATE = 16_000
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
VOICES = ("en-us+m3", "en-us+f3", "en-us+m7")
_GAP_S, _REPEAT_S, _LOUD = 1.5, 0.3, 300
_TWICE = 5
"""Every so many words one is said twice."""


class Word(Struct):
    """A word as the bench's own microphone heard it: its end, CLOCK_MONOTONIC, s."""

    ended_s: float


class Arrival(Struct):
    """An event at the subscriber, CLOCK_MONOTONIC, s."""

    at_s: float
    event: EventMessage


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--model", default="small-speech", help="name or path of a model of sound")
    args = parser.parse_args()
    sound = script(10 if args.quick else 60)
    with tempfile.TemporaryDirectory() as folder, common.mosquitto() as port:
        server = SoundServer(Path(folder))
        os.environ |= server.environment
        with server:
            daemon = listen_cost.start(Path(folder), port, args.model)
            try:
                words, arrivals = play(server, port, sound)
            finally:
                daemon.terminate()
                daemon.wait()
    single = [word for number, word in enumerate(words) if not said_twice(number)]
    figures = judged(single, arrivals) | repeated(words, arrivals)
    targets = {"computing_p99_ms": "< 20 ms", "words_heard": "> 0"}
    meets = figures.get("computing_p99_ms", np.inf) < 20.0 and figures["words_heard"] > 0
    common.conclude("speech_latency", figures, targets, meets)


def script(count: int) -> Samples:
    """Digits with pauses; some are said twice."""
    parts: list[Samples] = [np.zeros(RATE, np.int16)]
    for number in range(count):
        digit, voice = DIGITS[number % 10], VOICES[number // 10 % len(VOICES)]
        word = _sound.trimmed(_sound.spoken(digit, voice, RATE), RATE)
        if said_twice(number):
            word = np.concatenate((word, np.zeros(round(_REPEAT_S * RATE), np.int16), word))
        parts += [word, np.zeros(round(_GAP_S * RATE), np.int16)]
    return np.concatenate(parts)


def said_twice(number: int) -> bool:
    return number % _TWICE == _TWICE - 1


def play(server: SoundServer, port: int, sound: Samples) -> tuple[list[Word], list[Arrival]]:
    """Play everything; gives the words as heard here, and what arrived."""
    arrivals: list[Arrival] = []
    subscriber = Subscriber(BrokerOptions("127.0.0.1", port))
    subscriber.start()
    over = threading.Event()

    def listen() -> None:
        for message in subscriber.messages():
            if over.is_set():
                return
            if message is not None and (event := message.event()) is not None:
                arrivals.append(Arrival(time.monotonic(), event))

    thread = threading.Thread(target=listen)
    thread.start()
    microphone = AudioStream("bench", "mic:default", CaptureConfig(), RATE, on_change=lambda *_: None)
    microphone.start()
    time.sleep(2.0)
    server.play(sound, RATE)
    loud: list[tuple[float, bool]] = []
    until = time.monotonic() + len(sound) / RATE + 3.0
    while time.monotonic() < until:
        if (chunk := microphone.take(0.5)) is not None:
            step = RATE // 100
            for at in range(0, len(chunk.samples) - step + 1, step):
                end_s = chunk.captured_ns / 1e9 - (len(chunk.samples) - at - step) / RATE
                peak = int(np.abs(chunk.samples[at : at + step].astype(np.int32)).max())
                loud.append((end_s, peak >= _LOUD))
    over.set()
    microphone.stop()
    thread.join()
    subscriber.stop()
    return ends(loud), arrivals


def ends(loud: list[tuple[float, bool]]) -> list[Word]:
    """Where sound is followed by a second of quiet."""
    words: list[Word] = []
    last_s = None
    for at_s, is_loud in loud:
        if is_loud:
            last_s = at_s
        elif last_s is not None and at_s - last_s > _GAP_S / 2:
            words.append(Word(last_s))
            last_s = None
    return words


def repeated(words: list[Word], arrivals: list[Arrival]) -> dict[str, float]:
    """Words said twice and told once only, and words said once and told more than once."""
    missed = doubled = twice = 0
    for number, word in enumerate(words):
        labels = [a.event.track.label for a in arrivals if -1.5 < a.at_s - word.ended_s < _GAP_S - 0.5]
        most = max((labels.count(label) for label in labels), default=0)
        twice += said_twice(number) and most > 0
        missed += said_twice(number) and most == 1
        doubled += not said_twice(number) and most > 1
    return {"said_twice_and_heard": float(twice), "repeats_missed": float(missed), "doubled": float(doubled)}


def judged(words: list[Word], arrivals: list[Arrival]) -> dict[str, float]:
    """Milliseconds by part, over the words that were told within the pause after them."""
    total, waiting, computing, rest = [], [], [], []
    for word in words:
        told = [a for a in arrivals if -0.7 < a.at_s - word.ended_s < _GAP_S]
        if not told:
            continue
        latency = told[0].event.latency_ms
        spent = latency.gate + latency.prepare + latency.infer + latency.decode + latency.track
        after = (told[0].at_s - word.ended_s) * 1e3
        total.append(after)
        computing.append(spent)
        rest.append(latency.publish)
        waiting.append(after - spent - latency.publish)
    figures = {"words": float(len(words)), "words_heard": float(len(total))}
    parts = {"total": total, "waiting": waiting, "computing": computing, "publish": rest}
    for name, values in parts.items():
        if values:
            figures[f"{name}_p50_ms"] = float(np.percentile(values, 50))
            figures[f"{name}_p99_ms"] = float(np.percentile(values, 99))
    for name, value in figures.items():
        print(f"{name:20} {value:8.1f}")
    return figures


if __name__ == "__main__":
    main()
