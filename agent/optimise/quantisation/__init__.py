"""Parts of quantisation: ranges of activations, rounding of weights, choice of bit widths."""
