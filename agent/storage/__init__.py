"""Storage: the only place that writes to disk. Everything in it may be cut off at any instruction."""
