"""Models of several sizes or depths: which of them answers."""
