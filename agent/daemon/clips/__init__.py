"""Clips of the streams: when they begin and end, and where their packets come from."""
