"""Events on disk until a broker has them."""
