"""The daemon: streams from their sources to the broker, as the configuration says."""
