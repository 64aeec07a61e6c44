"""Models of this device: bundled ones and files."""

PREFIX, SUFFIX = "wakeword/", ".json"
"""Beginning of the names, and end of the files, of microWakeWord's manifests: see `agent.models.wakeword`."""
