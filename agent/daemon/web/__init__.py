"""HTTP of the daemon: the port that a table of the configuration asks for, and the page of clips."""
