"""Metrics of the running daemon in Prometheus' format, and traces of its stages on demand."""
