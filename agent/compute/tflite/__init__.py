"""Model files, read without a runtime."""
