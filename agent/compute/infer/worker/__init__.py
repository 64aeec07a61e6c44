"""A model in a process of its own, which may crash or hang."""
