"""Verification of words: a second model listens again to what the first has heard."""
