"""Medical screening: a model's opinion on each picture of a folder, for people to review."""
