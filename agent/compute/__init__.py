"""Compute: arrays in, results out. Neither disk nor network."""
