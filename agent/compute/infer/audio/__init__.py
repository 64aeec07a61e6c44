"""Sound into input tensors: front ends that turn samples into rows, and the newest rows quantised."""
