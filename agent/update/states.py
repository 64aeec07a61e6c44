"""The states of an update, and which may follow which: rules without I/O.

    received → verified → staged → tested [→ shadow] → switching → trial → committed
                                                              └──────┴────→ rolled_back
    received, verified, staged, tested, shadow ────────────────────────────→ refused

Each state is on the disk before anything is done that belongs to the next one. Whatever is cut off before
`switching` has changed nothing that runs: it is done again from the bundle. What is cut off in `switching` is
undone before the daemon starts. A trial goes on where it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from agent.errors import UpdateError

State = Literal[
    "received",
    "verified",
    "staged",
    "tested",
    "shadow",
    "switching",
    "trial",
    "committed",
    "rolled_back",
    "refused",
]
STATES: tuple[State, ...] = get_args(State)
FINAL: frozenset[State] = frozenset(("committed", "rolled_back", "refused"))
"""Nothing more comes of these."""
BEFORE_SWITCH: frozenset[State] = frozenset(("received", "verified", "staged", "tested", "shadow"))
"""Nothing that runs has been changed."""

_NEXT: Mapping[State, frozenset[State]] = {
    "received": frozenset(("verified", "refused")),
    "verified": frozenset(("staged", "refused")),
    "staged": frozenset(("tested", "refused")),
    "tested": frozenset(("shadow", "switching", "refused")),
    "shadow": frozenset(("switching", "refused")),
    "switching": frozenset(("trial", "rolled_back")),
    "trial": frozenset(("committed", "rolled_back")),
    "committed": frozenset(),
    "rolled_back": frozenset(),
    "refused": frozenset(),
}

Step = Literal["again", "undo", "follow", "nothing"]
"""What to do with an update that was cut off: begin again with its bundle, undo the switch, go on with the trial,
or nothing."""

_AFTER_CUT: Mapping[State, Step] = {
    "received": "again",
    "verified": "again",
    "staged": "again",
    "tested": "again",
    "shadow": "again",
    "switching": "undo",
    "trial": "follow",
    "committed": "nothing",
    "rolled_back": "nothing",
    "refused": "nothing",
}


def check_step(before: State, after: State) -> None:
    """Refuse a step that no update takes.

    Raises:
        UpdateError: it is one.
    """
    if after not in _NEXT[before]:
        raise UpdateError(f"an update that is {before} cannot become {after}: a defect in Vedette")


def after_cut(state: State) -> Step:
    """What to do with an update that was cut off in this state."""
    return _AFTER_CUT[state]
