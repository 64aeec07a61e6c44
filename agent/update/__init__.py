"""Signed A/B updates: what a bundle is, how it is made, trusted and unpacked, and what a board does with it.

Nothing that the daemon imports imports this room: an update minds the daemon, never the other way round.
"""
