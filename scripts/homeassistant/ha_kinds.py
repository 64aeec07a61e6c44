"""An entity of every kind: what a real device tells by it, and that what Home Assistant sets by it is done."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ha_scene import DEVICE, UNKNOWN, Scene
from ha_streams import MEASURED, PLATE, READING, WORD

from agent.features.homeassistant import discovery
from agent.features.homeassistant.discovery import slug
from agent.features.homeassistant.part import PLATFORMS
from tests.support.publishing import TOPICS
from tests.support.soundscape import ALARM
from tests.system.gate_camera import REGION

_MADE = re.compile(r'source\.id\(\s*"(\w+)"|\(f"(zone|line|filter)/')
"""Where the code makes an id of a stream's entity: the first word after the stream's name is its kind."""
_LABELS = {"occupancy", "count", "zone", "filter"}
"""Kinds that the code makes otherwise."""
_WAIT_S = 60.0
_SIREN, _GAUGE = f"siren.occupancy.{slug(ALARM)}", f"gauge.value.{slug(MEASURED)}"


def every_kind_tells(scene: Scene) -> None:
    """Each kind of result of a model becomes the state of its entity."""
    for name, wanted in (
        (_SIREN, "on"),
        (_SIREN, "off"),
        ("call.fused", "on"),
        ("call.fused", "off"),
        (_GAUGE, str(READING)),
        ("front.problem", "off"),
    ):
        _becomes(scene, name, wanted)
    scene.comes("the camera of parts sees a colour", lambda: "on" in _states(scene, "sorter.occupancy."), _WAIT_S)
    colours = ("red", "green", "blue")
    scene.comes("somebody's coat has a colour", lambda: scene.state("front.attribute.colour") in colours, _WAIT_S)

    def crossed() -> bool:
        return any(scene.state(f"front.line.kerb.{way}") not in ("0", "", *UNKNOWN) for way in ("in", "out"))

    scene.comes("somebody crosses the line", crossed, 90.0)
    unit = scene.attributes(_GAUGE).get("unit_of_measurement")
    scene.proved("the measurement has its unit", unit == "kPa", unit)


def _becomes(scene: Scene, name: str, wanted: str, timeout_s: float = _WAIT_S) -> bool:
    return scene.comes(f"{name} is {wanted}", lambda: scene.state(name) == wanted, timeout_s)


def _states(scene: Scene, start: str) -> list[str]:
    return [state for name, state in scene.states().items() if name.startswith(start)]


def what_is_taught_is_told(scene: Scene) -> None:
    """A state and a word are taught while all runs; each has an entity at once."""
    place: dict[str, Any] = {"stream": "drive", "state": "gate", "examples": 5, "region": list(REGION)}
    for value in ("open", "closed"):
        scene.gate.shows = value
        answer = scene.operator.ask("teach", value=value, **place)
        scene.proved(f"the gate is taught: {value}", answer["ok"], answer.get("reason"))
    _becomes(scene, "drive.sensor.gate", "closed")
    scene.gate.shows = "open"
    _becomes(scene, "drive.sensor.gate", "open")
    options = scene.attributes("drive.sensor.gate").get("options")
    scene.proved("its values are the options", options == ["open", "closed", "unsure"], options)
    answer = scene.operator.ask("teach", stream="study", state="command", value=WORD, examples=5)
    scene.proved("a word is taught", answer["ok"], answer.get("reason"))
    scene.comes("the word is heard", lambda: scene.state("study.keyword") not in ("", *UNKNOWN), _WAIT_S)
    heard = scene.attributes("study.keyword").get("event_type")
    scene.proved("and is the event's type", heard == WORD, heard)


def a_problem_is_told(scene: Scene) -> None:
    """A camera in the dark has a problem, which attributes name, until there is light."""
    scene.gate.light = 0.02
    _becomes(scene, "drive.problem", "on", 90.0)
    problems = scene.attributes("drive.problem").get("problems")
    scene.proved("its attributes say which", "dark" in str(problems), problems)
    scene.gate.light = 1.0
    _becomes(scene, "drive.problem", "off", 90.0)


def every_switch_switches(scene: Scene) -> None:
    """Every switch of every stream, those that stop a stream last, all of a sort at once."""
    switches = [name for name in scene.announced() if scene.entity(name).startswith("switch.")]
    streams = [name for name in switches if name.count(".") == 1 and name.endswith(".enabled")]
    kinds = {name.split(".")[1] for name in switches}
    wanted = {"enabled", "zone", "line", "filter", "only_moving", "motion_masks"}
    scene.proved("there are switches of every kind", kinds == wanted, ", ".join(sorted(kinds)))
    for names in ([name for name in switches if name not in streams], streams):
        before = scene.states()
        for state in ("off", "on"):
            _switch(scene, names, state)
        _switch(scene, [name for name in names if before[name] == "off"], "off")
    scene.comes("every stream runs again", lambda: set(_running(scene)) == {"running"}, 90.0)
    _becomes(scene, "ramp.text", PLATE)  # what it read at its start came before the entity


def _switch(scene: Scene, names: list[str], state: str) -> None:
    if not names:
        return
    scene.ha.call("switch", f"turn_{state}", [scene.entity(name) for name in names])
    what = f"{len(names)} switches are {state}" if len(names) > 1 else f"{names[0]} is {state}"
    scene.comes(what, lambda: {scene.state(name) for name in names} == {state}, _WAIT_S)
    said = {name: scene.messages.of(_topic(name))[-1:] == [state.encode()] for name in names}
    wrong = [name for name in names if not said[name]]
    scene.proved("as the device says itself", not wrong, ", ".join(wrong))
    status = scene.operator.ask("status")["streams"]
    wrong = [name for name in names if _told(status, name) is not (state == "on")]
    scene.proved("and does", not wrong, ", ".join(wrong))


def _topic(name: str) -> str:
    stream, _, what = name.partition(".")
    switched = what if what == "enabled" else what.removesuffix(".enabled")
    return TOPICS.state(stream, switched.replace(".", "/"))


def _told(status: dict[str, Any], name: str) -> bool | None:
    """Return whether the device's report says that something is on."""
    stream, what, *rest = name.split(".")
    value = status[stream][f"{what}s"][rest[0]] if rest else status[stream][what]
    return None if value is None else bool(value)


def _running(scene: Scene) -> Iterator[str]:
    return (state for name, state in scene.states().items() if name.count(".") == 1 and name.endswith(".state"))


def every_number_and_choice_is_set(scene: Scene) -> None:
    """Thresholds and sizes of every stream, there and back."""
    states = scene.states()
    numbers = [name for name in states if scene.entity(name).startswith("number.")]
    choices = [name for name in states if scene.entity(name).startswith("select.")]
    scene.proved("there are some of both", numbers and choices, f"{len(numbers)} numbers, {len(choices)} choices")
    for name in numbers:
        _set(scene, name, "number", "set_value", "0.37", value=0.37)
        _set(scene, name, "number", "set_value", states[name], value=float(states[name]))
    for name in choices:
        others = [one for one in scene.attributes(name)["options"] if one != states[name]]
        _set(scene, name, "select", "select_option", others[0], option=others[0])
        _set(scene, name, "select", "select_option", states[name], option=states[name])
    scene.comes("every stream runs", lambda: set(_running(scene)) == {"running"}, 90.0)


def _set(scene: Scene, name: str, domain: str, service: str, wanted: str, **data: object) -> None:
    scene.ha.call(domain, service, scene.entity(name), **data)
    scene.comes(f"{name}: {service} {wanted}", lambda: scene.state(name) == wanted, _WAIT_S)
    stream, _, what = name.partition(".")
    told = scene.operator.ask("status")["streams"][stream][what]
    scene.proved("as the device says itself", str(told) == wanted, told)


def every_button_does_something(scene: Scene) -> None:
    """Every kind of button, and what it brings about."""

    def pressed(name: str, what: str, test: Callable[[], Any]) -> None:
        scene.ha.call("button", "press", scene.entity(name))
        scene.comes(f"{name}: {what}", test, _WAIT_S)

    pressed("press.inspect", "a part is judged", lambda: scene.state("press.parts.ng") == "1")
    _becomes(scene, "press.verdict", "ng")
    _becomes(scene, "press.parts.ok", "0")
    # Crossings go on, so that a counter may be above 0 again: the message tells since when it counts.
    line = TOPICS.line("front", "kerb")
    before = _since(scene, line)
    pressed("front.reset", "lines are counted anew", lambda: _since(scene, line) > before)
    pressed("drive.accept", "the view is accepted", lambda: scene.vedette.said("stream drive: the present view"))
    names = {name.split(".")[1] for name in scene.announced() if scene.entity(name).startswith("button.")}
    tried = {"inspect", "reset", "accept", "snapshot"}
    scene.proved("there are no other kinds of buttons", names == tried, ", ".join(sorted(names)))
    for name in scene.states():
        if name.endswith(".snapshot"):
            pressed(name, "a picture comes", partial(_more_pictures, scene, name, _pictures(scene, name)))


def _since(scene: Scene, line: str) -> str:
    found = re.findall(rb'"since":"([^"]+)"', b"".join(scene.messages.of(line)[-1:]))
    return str(found[0], "ascii") if found else ""


def _more_pictures(scene: Scene, button: str, had: int) -> bool:
    return _pictures(scene, button) > had


def _pictures(scene: Scene, button: str) -> int:
    return len(scene.messages.of(TOPICS.snapshot(button.partition(".")[0])))


def every_kind_was_there(scene: Scene) -> None:
    """Whatever kind of entity the code can make, this device has had."""
    code = Path(discovery.__file__).read_text()
    made = {one or other for one, other in _MADE.findall(code)} | _LABELS
    ids = [name.split(".") for name in scene.announced()]
    there = {parts[1] for parts in ids if len(parts) > 1}
    scene.proved(
        "each kind in the code was announced", made <= there, ", ".join(sorted(made - there)) or len(made)
    )
    platforms = {entity.partition(".")[0] for entity in scene.ha.entities(DEVICE).values()}
    missing = PLATFORMS - platforms
    scene.proved("on each platform", not missing, ", ".join(sorted(missing or platforms)))
