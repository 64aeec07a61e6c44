"""How fast the governor acts and gives back: pauses, shares and reasons."""

from __future__ import annotations

CHANGES_PER_MINUTE = 6
"""Decisions in any minute that change something; what one decision changes at once counts once. What heat and a
weak supply need does not count."""
FOR_PROMISES, FOR_PROMISES_BACK, FOR_PROMISES_ROOM = 3, 2, 1
"""Decisions of a minute that are left for promises when memory, the disk or the network takes something, when it
gives that back, and when processor time comes back."""
CONFIRM_S = 0.9
"""A promise is broken if it was in every window for so long, s."""
SETTLE_S = 2.5
"""Pause after a change until its effect can be judged, s."""
CALM_S = 3.0
"""Time without trouble after which something comes back, s."""
HALF, RELIEFS = 0.5, 2
"""Share of its cost that a stream keeps when it gives way; where a promise is far from kept, or has not been kept
after so many decisions, all give way at once, and less important ones keep as little as they can."""
IDLE, FUTILE_S = 0.3, 20.0
"""Idle share of the processors from which on a stream is not short of processor time; what others gave is in vain
when its promise is not kept beside so much for so long, s."""
RELAPSE_S = 45.0
"""Time after a return within which giving way again shows that it was too early, s."""
RESERVE = 0.08
"""Share of all processors that stays idle when something comes back."""
DEARER = 1.15
"""Factor on the estimated cost of what comes back."""
ROOM, TRIAL = "there is room for it", "for a trial"
SLOWER = "its camera gives fewer pictures now"
CONFIGURED, OFF = "as it is configured now", "the governor is off"
"""Reasons of changes that no load has caused, but the configuration of a stream or of the governor."""
BATTERY_BACK = 5.0
"""The battery is no longer low when its charge has risen by so much, percentage points."""
FORGIVEN_S = 600.0
"""Time after which it no longer counts that something came back too early, s."""
TRIAL_S = 120.0
"""Time without trouble after which a stream gets more for a trial although no time is idle, s."""

HEAT_SETTLE_S, HEAT_CALM_S = 20.0, 60.0
"""Pause between two reductions because of heat or a weak supply, and from one until something comes back, s:
boards take minutes to follow."""
WEAK_MAX_S = 1200.0
"""Longest pause from a weak supply until something comes back, s: it doubles each time that this was too much.
For so long afterwards, things come back one by one."""
BLIND_S = 600.0
"""Time for which nothing comes back to a warm board whose temperature cannot be read any more, s."""
RELAX_S, RELAX_MAX_S, TOO_SOON_S = 10.0, 640.0, 90.0
"""First and longest pause between two steps back after memory, the disk or the network was short, s: it doubles
when trouble comes again so soon after a step, and halves with each step from `FORGIVEN_S` after that on."""
