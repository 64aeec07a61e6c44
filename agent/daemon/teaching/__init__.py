"""Lessons of a stream by commands: states from pictures, words from sound."""
