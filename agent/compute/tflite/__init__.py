"""Reads `.tflite` files without a runtime."""
