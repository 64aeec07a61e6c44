"""Health: what the daemon knows about itself and its board."""
