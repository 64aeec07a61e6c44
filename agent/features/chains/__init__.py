"""Secondary models: run on the objects that a stream has found, and their answers are attributes."""
