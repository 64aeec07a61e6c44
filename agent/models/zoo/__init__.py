"""Bundled reference models and clips, each with its manifest and licence."""
