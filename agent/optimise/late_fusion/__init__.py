"""Fused events on recordings: replay what a device published, judge rules by it, and calibrate log-odds."""
