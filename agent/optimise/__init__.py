"""What makes models faster or more exact, on a bench: nothing that the daemon loads."""
