"""Decode: output arrays and manifest to detections. Pure functions; nothing here knows a runtime.

A decoder is built once for a model's tensors and called per frame; each lives in a module of its own that is
imported when a manifest names it.
"""
