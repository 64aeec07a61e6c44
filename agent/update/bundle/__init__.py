"""Bundles, the signed files that update boards: build, sign, verify, inspect and unpack them."""
