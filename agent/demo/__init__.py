"""The demo's own parts: an embedded broker, and the house run inside one program."""
