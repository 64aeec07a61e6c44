"""Recordings around events, or without a pause."""
