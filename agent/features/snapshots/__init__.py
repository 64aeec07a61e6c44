"""Pictures of what is in view."""
