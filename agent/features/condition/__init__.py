"""What is wrong with cameras, microphones and models."""
