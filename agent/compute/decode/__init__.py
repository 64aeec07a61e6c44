"""Decoders: output arrays and a manifest to detections. Nothing here knows a runtime.

A decoder is built once for a model's tensors and called per inference. Its module is imported when a manifest
names it.
"""
