"""Cameras on the network: their streams, how these are opened, and rules that tell when one is lost."""
