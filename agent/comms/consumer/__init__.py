"""The other end: programs that ask a device, and follow what it publishes."""
