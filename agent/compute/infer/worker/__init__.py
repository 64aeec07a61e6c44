"""Runs a model in a worker process, which may crash or hang."""
