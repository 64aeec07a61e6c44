"""A new model that runs beside a stream's own while an update asks for it."""
