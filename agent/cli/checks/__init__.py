"""The doctor: looks at a board and says what is wrong with it, and what to do."""
