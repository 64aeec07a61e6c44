"""What a daemon serves over HTTP: the port of a table, and the page of clips."""
