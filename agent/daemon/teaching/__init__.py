"""What a stream is taught by commands: states from pictures, words from sound."""
