"""Shares the board's resources out while the daemon runs: readings, the governor, and budgets of streams."""
