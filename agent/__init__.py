"""Vedette: an edge runtime agent. Cameras through TFLite models to MQTT."""

__version__ = "0.1.0"
