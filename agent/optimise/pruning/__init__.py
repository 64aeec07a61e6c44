"""Pruning: connections or whole channels of a trained network are removed in rounds."""
