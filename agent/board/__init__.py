"""The board and this process: hardware, temperature, memory, disk, clock, signals."""
