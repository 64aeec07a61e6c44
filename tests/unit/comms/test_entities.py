from __future__ import annotations

import pytest

from agent.comms.entities import display_name


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("porch",), "Porch"),
        (("pi-kitchen-01",), "Pi kitchen 01"),
        (("front", "", "person"), "Front person"),
        (("front_door", "drive", "traffic light", "count"), "Front door drive traffic light count"),
        (("yard", "Bark"), "Yard bark"),
        (("yard", "Smoke detector, smoke alarm"), "Yard smoke detector, smoke alarm"),
        (("living-room", "TV"), "Living room TV"),
        (("garten", "", "Hündchen"), "Garten hündchen"),
    ],
)
def test_names_are_such_as_a_person_gives(parts: tuple[str, ...], name: str) -> None:
    assert display_name(*parts) == name
