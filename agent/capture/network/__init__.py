"""Cameras on the network: options with which they are opened, and rules that tell when one is lost."""
