"""Clips: recorded, kept as long as there is room, saved after a crash."""
