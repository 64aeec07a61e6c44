"""Vitals: what the health message tells of the spool and of the line."""

from __future__ import annotations

from agent.comms.healthmessage import LinkHealth, SpoolHealth
from agent.comms.linkstate import LinkState
from agent.storage.spool import Spool


def spool_health(spool: Spool) -> SpoolHealth:
    """State of the spool now."""
    stats = spool.stats()
    dropped_by = {str(reason): count for reason, count in stats.dropped_by.items()}
    return SpoolHealth(stats.waiting, stats.bytes, stats.dropped, stats.on, dropped_by, spool.first_seq)


def link_health(state: LinkState) -> LinkHealth | None:
    """The line to the broker; None: there is none now."""
    if not state.connected:
        return None
    how = state.broker, state.detail, state.is_fallback, state.connects
    return LinkHealth(*how, state.trouble, state.intrusions)
