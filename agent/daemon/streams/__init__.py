"""One configured stream: its model and source, its pipeline, and the thread that runs it."""
