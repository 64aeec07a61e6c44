"""Decode: output arrays and manifest to detections. Pure functions."""
