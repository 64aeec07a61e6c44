"""Signed files that update boards: built, signed, read."""
