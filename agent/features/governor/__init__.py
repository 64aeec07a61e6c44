"""The governor: shares a board's processors, disk and network out between streams, by priority."""
