"""Clips: recorded, repaired after a crash, and deleted when they are too old or too many."""
