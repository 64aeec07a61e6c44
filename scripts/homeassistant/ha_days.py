"""Scenarios in the life of a device, one function each, with the checks that must hold."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from datetime import datetime

from ha_kinds import (
    a_problem_is_told,
    every_button_does_something,
    every_kind_tells,
    every_kind_was_there,
    every_number_and_choice_is_set,
    every_switch_switches,
    what_is_taught_is_told,
)
from ha_odd import an_old_word_is_no_event, names_of_every_kind, nothing_is_left_of_it, what_is_told_once_stays
from ha_scene import CONFIG_TOPIC, DEVICE, UNKNOWN, Scene

from tests.support.publishing import TOPICS

_ALWAYS = ("connection", "seen")
"""Entities that have a state while the device is offline."""
_NOTHING_TO_KNOW = ("update", "press.verdict", "press.picture", "ramp.text")
"""Entities whose state `unknown` is right: no update is announced, no part was judged,
and what is read once was read before Home Assistant had the entity."""


def it_is_found(scene: Scene) -> None:
    """A device appears with all that it has."""
    scene.run()
    scene.comes("the device is in the registry", lambda: scene.ha.device(DEVICE), 60.0)
    scene.comes(
        "a label that the configuration does not name becomes an entity when it is seen",
        lambda: scene.entity("back_yard.occupancy.person"),
        90.0,
    )
    device = scene.ha.device(DEVICE) or {}
    name, maker, version = (device.get(key) for key in ("name", "manufacturer", "sw_version"))
    scene.proved(
        "it has a name, a maker and a version", name == "Porch" and maker and version, f"{name}, {version}"
    )
    scene.comes("every entity that is announced is there", lambda: set(scene.announced()) == set(scene.states()))
    scene.proved(
        "and no other", not set(scene.states()) - set(scene.announced()), f"{len(scene.states())} entities"
    )
    expected = {
        "front.zone.left.count.person",
        "front.zone.right.occupancy.person",
        "kitchen.keyword",
        "front.picture",
    }
    scene.proved("zones, words and the picture are among them", expected <= set(scene.states()))


def every_entity_has_its_state(scene: Scene) -> None:
    """None is unknown or unavailable, save what nobody knows."""

    def without() -> list[str]:
        blank = [name for name, state in scene.states().items() if state in UNKNOWN]
        known = (*_NOTHING_TO_KNOW, *_buttons(scene))
        return [name for name in blank if name not in known]

    scene.comes("none is unknown or unavailable, save the update and the buttons", lambda: not without(), 90.0)
    if without():
        scene.proved("these are", proved=False, found=", ".join(without()))
    update = scene.ha.states()[scene.entity("update")]
    version = update["attributes"]["installed_version"]
    scene.proved("the update knows the installed version", version == scene.state("version"), version)
    scene.comes("somebody is seen", lambda: scene.state("front.occupancy.person") == "on", 60.0)
    scene.comes("and counted", lambda: int(scene.state("front.count.person")) > 0, 60.0)
    scene.comes("in a zone, too", lambda: "on" in _of(scene, "front.zone.", ".occupancy.person"), 60.0)
    scene.comes("and nobody, when nobody is there", lambda: "off" in _of(scene, "front.zone.", ".person"), 60.0)


def _buttons(scene: Scene) -> list[str]:
    return [name for name, entity in scene.ha.entities(DEVICE).items() if entity.startswith("button.")]


def _of(scene: Scene, start: str, end: str) -> list[str]:
    return [state for name, state in scene.states().items() if name.startswith(start) and name.endswith(end)]


def values_are_right(scene: Scene) -> None:
    """Check that Home Assistant shows the values that the device publishes."""

    def picture_is_ours() -> bool:
        picture = scene.ha.bytes_of(f"/api/image_proxy/{scene.entity('front.picture')}")
        return picture.startswith(b"\xff\xd8") and picture in scene.messages.of(TOPICS.snapshot("front"))

    scene.comes("the picture is a snapshot of this device", picture_is_ours)
    scene.comes("a word is an event", lambda: scene.state("kitchen.keyword") not in UNKNOWN)
    heard = scene.ha.states()[scene.entity("kitchen.keyword")]["attributes"]
    known = heard["event_type"] in heard["event_types"] and 0 < heard["score"] <= 1
    scene.proved("with the word and how sure it was", known, f"{heard['event_type']} {heard['score']:.2f}")
    states = _of(scene, "", ".state")
    scene.proved("each stream tells its state", set(states) == {"running"}, f"{len(states)} streams")
    scene.comes("and its frames per second", lambda: float(scene.state("front.fps")) > 0)
    seen = datetime.fromisoformat(scene.state("seen")).timestamp()
    scene.proved("last seen is now", abs(time.time() - seen) < 10)
    names = {one["attributes"]["friendly_name"] for one in scene.ha.states().values()}
    wanted = {
        "Porch Front person",
        "Porch Front left person count",
        "Porch Back yard person",
        "Porch Kitchen word heard",
    }
    scene.proved("names are such as a person gives", wanted <= names, ", ".join(sorted(wanted)))


def commands_are_carried_out(scene: Scene) -> None:
    """Check that controls on the dashboard change the device, which publishes its new state."""
    ha, switch = scene.ha, scene.entity("front.enabled")
    ha.call("switch", "turn_off", switch)
    scene.comes("switched off, the stream is disabled", lambda: scene.state("front.state") == "disabled")
    scene.comes("and says so", lambda: scene.state("front.enabled") == "off")
    scene.comes("its picture is gone", lambda: scene.state("front.picture") == "unavailable")
    scene.comes("what it sees is unknown then", lambda: scene.state("front.occupancy.person") == "unavailable")
    scene.proved("other streams go on", scene.state("kitchen.state") == "running")
    ha.call("switch", "turn_on", switch)
    scene.comes("switched on, it runs", lambda: scene.state("front.state") == "running", 60.0)
    scene.comes("and sees", lambda: scene.state("front.occupancy.person") in ("on", "off"))
    ha.call("switch", "turn_off", scene.entity("front.zone.left.enabled"))
    scene.comes("nobody stands in a zone that is off", lambda: scene.state("front.zone.left.count.person") == "0")
    ha.call("switch", "turn_on", scene.entity("front.zone.left.enabled"))
    before = scene.state("front.picture")
    ha.call("button", "press", scene.entity("front.snapshot"))
    scene.comes("a picture is taken", lambda: scene.state("front.picture") not in (before, *UNKNOWN))
    scene.proved("and the button knows when", scene.state("front.snapshot") not in UNKNOWN)


def it_goes_and_comes_back(scene: Scene) -> None:
    """A killed device is unavailable, and so is one that was stopped."""
    for how in (signal.SIGKILL, signal.SIGTERM):
        scene.comes(f"before {how.name} all is available", lambda: _none_is_unavailable(scene))
        scene.vedette.end(how)
        scene.comes(f"after {how.name} all is unavailable", lambda: _all_are(scene, "unavailable"), 60.0)
        scene.proved("save when it was seen last", scene.state("seen") not in UNKNOWN, scene.state("seen"))
        scene.proved("and that it is not connected", scene.state("connection") == "off")
        scene.vedette.start()
        scene.comes("started again all is back", lambda: _none_is_unavailable(scene), 90.0)
    scene.proved("with the label that was seen before", scene.entity("back_yard.occupancy.person"))


def _all_are(scene: Scene, state: str) -> bool:
    return all(found == state for name, found in scene.states().items() if name not in _ALWAYS)


def _none_is_unavailable(scene: Scene) -> bool:
    return "unavailable" not in scene.states().values()


def the_broker_restarts(scene: Scene) -> None:
    """Home Assistant and the device find each other again."""
    scene.restart_broker()
    scene.comes("all is back", lambda: scene.state("connection") == "on" and _none_is_unavailable(scene), 90.0)
    scene.comes("and goes on", lambda: "on" in _of(scene, "front.", ".occupancy.person"), 60.0)


def the_broker_forgets(scene: Scene) -> None:
    """A broker that has lost what it retained is told everything again."""
    states = scene.states()
    scene.restart_broker(forgets=True)
    scene.comes("all is back", lambda: scene.state("connection") == "on" and _none_is_unavailable(scene), 90.0)
    scene.comes("the announcement is retained again", lambda: _is_retained(scene), 60.0)
    again = [name for name, state in states.items() if state not in UNKNOWN]

    def blank() -> list[str]:
        found = scene.states()
        return [name for name in again if found.get(name, "unknown") in UNKNOWN]

    scene.comes("with every state", lambda: not blank(), 60.0)
    if blank():
        scene.proved("without", proved=False, found=", ".join(blank()))


def _is_retained(scene: Scene) -> bool:
    """Return True if somebody who comes late is told of the device."""
    late = scene.broker.subscribe(CONFIG_TOPIC)
    time.sleep(1.0)
    return any(one.retain and one.payload for one in late)


def home_assistant_starts(scene: Scene) -> None:
    """Its start is answered by one more announcement, a little later; what is retained is known again."""
    states = scene.states()
    scene.ha.stop()
    before = len(scene.messages.of(CONFIG_TOPIC))
    scene.ha.start()
    scene.comes("the device announces itself once more", lambda: len(scene.messages.of(CONFIG_TOPIC)) > before)
    scene.comes("all is back", lambda: scene.states().keys() == states.keys(), 60.0)
    scene.comes("and available", lambda: _none_is_unavailable(scene), 60.0)

    def blank() -> list[str]:
        return [
            name for name, state in scene.states().items() if state in UNKNOWN and states[name] not in UNKNOWN
        ]

    scene.comes("what was known is known, save what is told once", lambda: not _retained(blank()), 60.0)
    scene.proved("which is unknown until it is told again", proved=True, found=", ".join(blank()))
    time.sleep(8.0)
    told = scene.messages.of(CONFIG_TOPIC)[before:]
    scene.proved("the same announcement comes once only", told.count(told[0]) == 1, f"{len(told)} announcements")


def _retained(names: list[str]) -> list[str]:
    """Leave out entities whose states come with events, which no broker retains."""
    return [name for name in names if not name.endswith(".text") and ".attribute." not in name]


def a_stream_goes(scene: Scene) -> None:
    """Check that a stream that a reload removes is removed from Home Assistant."""
    streams = scene.vedette.config["streams"]
    parts = ("back_yard.", "front.zone.left.", "front.line.", "front.filter.", "front.motion", "front.reset")
    gone = {name for name in scene.states() if name.startswith((*parts, "front.attribute.", "call."))}
    kept = set(scene.states()) - gone
    yard = streams.pop("back_yard")
    whole = streams["front"]
    less = {key: value for key, value in whole.items() if key not in ("lines", "filters", "gate", "secondary")}
    streams["front"] = {**less, "zones": [zone for zone in whole["zones"] if zone["name"] == "right"]}
    fusion = scene.vedette.config.pop("fusion")
    scene.vedette.reload()
    scene.comes("entities of what is gone are gone", lambda: not gone & set(scene.states()), 30.0)
    scene.proved("the others stay", set(scene.states()) == kept, f"{len(gone)} gone, {len(kept)} left")
    streams["back_yard"], streams["front"] = yard, whole
    scene.vedette.config["fusion"] = fusion
    scene.vedette.reload()
    # What a stream without a list of labels has seen is known when it is seen again.
    back = {name for name in gone if not name.startswith(("back_yard.occupancy.", "back_yard.count."))}
    scene.comes("and come back with it", lambda: back <= set(scene.announced()), 90.0)
    scene.comes("with what is seen again", lambda: scene.entity("back_yard.count.person"), 90.0)
    scene.comes("each with its state", lambda: _none_is_unavailable(scene), 60.0)


def a_stranger_has_the_name(scene: Scene) -> None:
    """Check that the device leaves another program's discovery message under its name alone."""
    scene.vedette.end()
    theirs = {"dev": {"ids": ["theirs"], "name": "Theirs"}, "o": {"name": "other"}, "cmps": {}}
    scene.say(CONFIG_TOPIC, json.dumps(theirs).encode(), retain=True)
    scene.vedette.start()
    said = scene.vedette.wait_said("belongs to other, device theirs")
    scene.proved("the log says so", said, said[-150:])
    time.sleep(5.0)
    newest = json.loads(scene.messages.of(CONFIG_TOPIC)[-1])
    scene.proved("it is left alone", newest == theirs)


def it_is_switched_off(scene: Scene) -> None:
    """`enabled = false` takes back what was announced."""
    scene.vedette.end()
    scene.say(CONFIG_TOPIC, b"", retain=True)
    scene.vedette.start()
    scene.comes("announced anew", lambda: _is_there(scene), 60.0)
    scene.vedette.end()
    scene.vedette.config["homeassistant"] = {"enabled": False}
    scene.vedette.start()
    scene.comes("the device is gone", lambda: scene.ha.device(DEVICE) is None, 60.0)
    scene.proved("its message too", scene.messages.of(CONFIG_TOPIC)[-1] == b"")


def _is_there(scene: Scene) -> bool:
    """Return True if the device is announced now, and known to Home Assistant."""
    newest = scene.messages.of(CONFIG_TOPIC)[-1]
    return bool(newest) and scene.ha.device(DEVICE) is not None and _none_is_unavailable(scene)


def every_key_is_known(scene: Scene) -> None:
    """Home Assistant drops misspelt keys without a word."""
    found = scene.ha.discovered(DEVICE)
    dropped = scene.dropped_keys()
    scene.proved("Home Assistant keeps every key", found and not dropped, dropped or f"of {len(found)} entities")


def the_log_is_clean(scene: Scene) -> None:
    """Nothing about us is worth a warning."""
    complaints = scene.complaints()
    scene.proved("no warning and no error in Home Assistant's log", not complaints, "\n".join(complaints)[:2000])


DAYS: tuple[Callable[[Scene], None], ...] = (
    it_is_found,
    every_entity_has_its_state,
    values_are_right,
    every_kind_tells,
    what_is_taught_is_told,
    every_key_is_known,
    commands_are_carried_out,
    every_switch_switches,
    every_number_and_choice_is_set,
    every_button_does_something,
    a_problem_is_told,
    every_kind_was_there,
    it_goes_and_comes_back,
    names_of_every_kind,
    an_old_word_is_no_event,
    what_is_told_once_stays,
    nothing_is_left_of_it,
    the_log_is_clean,
    the_broker_restarts,
    home_assistant_starts,
    the_broker_forgets,
    a_stream_goes,
    a_stranger_has_the_name,
    it_is_switched_off,
    the_log_is_clean,
)
