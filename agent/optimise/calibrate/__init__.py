"""Thresholds of cascades, found on labelled data."""
