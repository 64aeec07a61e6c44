"""Decoded pictures, and their conversion to what models and people are shown."""
