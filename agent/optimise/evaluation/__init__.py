"""Evaluation of a model on labelled examples: how often it is right, where it errs, and at which threshold."""
