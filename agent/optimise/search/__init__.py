"""Search for networks: trials of a space of networks, shared by processes and machines."""
