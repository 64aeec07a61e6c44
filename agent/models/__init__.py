"""The models of this device: bundled ones and files."""
