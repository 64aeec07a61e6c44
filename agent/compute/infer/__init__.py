"""Infer: input tensors, backends and sessions."""
