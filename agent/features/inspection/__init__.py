"""Verdicts on parts that a line brings past a camera, with triggers, counters and a reject output."""
