"""Vedette: an edge runtime agent. Cameras and microphones through TFLite models to MQTT."""

__version__ = "0.1.0"
