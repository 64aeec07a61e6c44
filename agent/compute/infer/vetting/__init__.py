"""Tries a model in a process of its own, without privileges, before the daemon opens it."""
