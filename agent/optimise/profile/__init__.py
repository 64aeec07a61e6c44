"""Where the time of an inference goes, operation by operation."""
