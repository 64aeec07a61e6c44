"""Models of this device: bundled ones and files."""
