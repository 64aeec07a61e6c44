"""Benches of what is built on events. A package, so that two benches in different folders may share a name."""
