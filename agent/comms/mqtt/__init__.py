"""The connection to brokers: what is published over it, what is heard, and how it comes back."""
