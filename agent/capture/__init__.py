"""Capture: opens devices and streams, stamps time, hands frames on."""
