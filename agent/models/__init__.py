"""Models of this device: bundled ones and files."""

PREFIX, SUFFIX = "wakeword/", ".json"
"""Of names and of manifests of microWakeWord, see `agent.models.wakeword`."""
