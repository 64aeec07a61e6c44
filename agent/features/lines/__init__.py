"""Crossings of a stream's lines, counted and kept."""
