"""The page of the newest clips, for browsers."""
