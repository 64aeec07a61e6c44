"""Condition of cameras, microphones and models: what is wrong with them although inputs come."""
