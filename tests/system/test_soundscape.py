"""Many sounds at once, from a recording to a subscriber: the daemon as a process, a real broker."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import soundfile

from agent.comms.messages import DetectionsMessage, EventMessage
from tests.support.mosquitto import Mosquitto
from tests.support.publishing import TOPICS
from tests.support.running import Table, Vedette, events, left_open, states, stopped
from tests.support.sound import RATE
from tests.support.soundscape import ALARM, BIRD, SMOKE, WHISTLE, story, waveform_model

SOUNDS = ((WHISTLE, 1.0, 4.5), (ALARM, 2.5, 6.0), (BIRD, 7.5, 8.1))
LOST_S, EVERY_S, WINDOW_S = 1.0, 0.48, 0.975


@pytest.mark.parametrize("pace", ["realtime", "fast"])
def test_sounds_that_overlap_reach_a_subscriber_each_with_its_times(
    tmp_path: Path, broker: Mosquitto, pace: str
) -> None:
    soundfile.write(tmp_path / "yard.wav", story(*SOUNDS, seconds=10.5), RATE)
    messages = broker.subscribe("vedette/#")
    yard: Table = {"source": f"wav:{tmp_path / 'yard.wav'}?pace={pace}", "model": str(waveform_model(tmp_path))}
    track = {"lost_after_s": LOST_S, "update_every_s": 1.0, "stationary_after_s": 0.0}
    yard |= {"track": track, "publish": {"detections": True}}
    with Vedette(tmp_path, broker, yard=yard).online_first() as vedette:
        messages.wait(lambda m: states(m).get("yard") == "ended")
        vedette.end()
    assert stopped(messages)
    assert left_open(messages, "yard") == set()
    told = events(messages, "yard")
    assert {event.track.label for event in told} == {WHISTLE, ALARM, SMOKE, BIRD}
    zero = min(event.track.first_seen for event in told).timestamp() - SOUNDS[0][1]
    for label, began, ended in (*SOUNDS, (SMOKE, 2.5, 6.0)):
        new, *updates, end = [event for event in told if event.track.label == label]
        assert [new.kind, end.kind, end.reason] == ["new", "end", "lost"]
        assert began - 0.1 < new.captured_at.timestamp() - zero < began + WINDOW_S
        assert ended + LOST_S - EVERY_S < end.captured_at.timestamp() - zero < ended + LOST_S + WINDOW_S + EVERY_S
        assert {event.kind for event in updates} == ({"update"} if label != BIRD else set())
        assert all(event.track.box is None and event.latency_ms.infer > 0.0 for event in (new, *updates))
    assert together(told) == {WHISTLE, ALARM, SMOKE}
    topic = f"vedette/{TOPICS.device}/yard/count/Smoke_detector,_smoke_alarm"
    assert TOPICS.count("yard", SMOKE) == topic
    assert messages.of(topic)[-1] == b"0"
    if pace == "realtime":  # at the other the newest count wins before it is sent, and samples may be early
        assert messages.of(topic) == [b"1", b"0"]
        bodies = messages.of(TOPICS.detections("yard"))
        found = [msgspec.json.decode(body, type=DetectionsMessage).detections for body in bodies]
        assert max(map(len, found)) == 3, "several labels in one message"


def together(told: list[EventMessage]) -> set[str]:
    """The most labels that were there at once."""
    there, most = set[str](), set[str]()
    for event in told:
        (there.discard if event.kind == "end" else there.add)(event.track.label)
        most = max(most, set(there), key=len)
    return most
