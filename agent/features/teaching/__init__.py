"""States and words that a stream was taught by examples."""
