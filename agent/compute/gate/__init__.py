"""Gates: decide whether an input is worth an inference, and how complex it is."""
