"""Comms: sockets to brokers, and what goes over them."""
