"""Condition of each stream's camera, microphone and model: told when a problem begins and ends."""
