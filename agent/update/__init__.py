"""Signed A/B updates: build, sign and inspect bundles, install them on a board, and roll them out to a fleet.

The updater restarts and watches the daemon. Nothing that the daemon imports may import this package.
"""
