"""Models with several depths: which exit answers an input."""
