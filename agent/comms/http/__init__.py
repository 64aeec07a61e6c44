"""A small HTTP server, for what a monitoring system reads from the device."""
