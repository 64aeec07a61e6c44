"""Text vectors: the meaning of short texts as static vectors of their pieces, with numpy alone."""
