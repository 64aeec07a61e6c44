"""Classifiers of pictures that are trained from the first weight on."""
