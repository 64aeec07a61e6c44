"""Track: detections over time, and where they stand."""
