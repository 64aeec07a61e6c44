"""Depth: turns a backbone into a cascade of exits, trains and calibrates them."""
