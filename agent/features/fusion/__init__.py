"""Fused events: what several streams and texts tell together."""
