"""A Raspberry Pi 4B without a heat sink, simulated: power, temperature, and how its firmware throttles.

Power: 2.1 W without load, 6.41 W with four busy cores and a busy GPU (Gareth Halfacree, "Thermal testing Raspberry
Pi 4", The MagPi 88, firmware of November 2019). Temperature: two bodies, the chip and the board, in air of 25 °C.
Their resistances give 47 °C without load and 92 °C at full load if nothing throttled; with their time constants 80 °C
is reached three minutes after full load begins, as measured there ("177 s"). Throttling: from 80 °C on the clock
falls, to 600 MHz at 85 °C (raspberrypi.com, "Frequency management and thermal control").
"""

from __future__ import annotations

from pathlib import Path

AIR_C = 25.0
IDLE_W, CORE_W = 2.1, (6.41 - 2.1) / 4
CORES = 4
CHIP_K_PER_W, BOARD_K_PER_W = 1.5, 9.0
CHIP_S, BOARD_S = 8.0, 145.0
FULL_MHZ, LEAST_MHZ = 1500.0, 600.0
SOFT_C, HARD_C = 80.0, 85.0
STEP_C = 0.487
"""Steps of the sensor."""


class SimulatedPi:
    """Temperature and clock under a load. Times in s.

    Attributes:
        mhz: clock of the cores.
        throttled_s, passed_s: time with a reduced clock, and all time.
    """

    def __init__(self, busy_cores: float = 0.0, factor: float = 1.0) -> None:
        """Begin in the steady state of a load; `factor` makes it react so much faster than a real one."""
        watts = IDLE_W + CORE_W * busy_cores
        self._board, self._chip = BOARD_K_PER_W * watts, CHIP_K_PER_W * watts
        self._factor, self.mhz = factor, FULL_MHZ
        self.throttled_s = self.passed_s = 0.0

    @property
    def celsius(self) -> float:
        """Temperature of the chip as its sensor gives it."""
        return round((AIR_C + self._board + self._chip) / STEP_C) * STEP_C

    def step(self, dt_s: float, busy_cores: float) -> None:
        """Let time pass with so many busy cores. Power falls with the square of the clock, as its voltage does."""
        watts = IDLE_W + CORE_W * min(busy_cores, CORES) * (self.mhz / FULL_MHZ) ** 2
        scaled = dt_s * self._factor
        self._board += (BOARD_K_PER_W * watts - self._board) * min(1.0, scaled / BOARD_S)
        self._chip += (CHIP_K_PER_W * watts - self._chip) * min(1.0, scaled / CHIP_S)
        above = min(1.0, max(0.0, (AIR_C + self._board + self._chip - SOFT_C) / (HARD_C - SOFT_C)))
        self.mhz = FULL_MHZ - above * (FULL_MHZ - LEAST_MHZ)
        self.passed_s += dt_s
        self.throttled_s += dt_s * (above > 0.0)

    def show(self, root: Path, celsius: float | None = None) -> None:
        """Write what the kernel shows below `root`: a thermal zone whose trip point is the soft limit.

        Its temperature is `celsius`, or the simulated one.
        """
        zone = root / "sys/class/thermal/thermal_zone0"
        if not zone.is_dir():
            zone.mkdir(parents=True)
            (zone / "type").write_text("cpu-thermal\n", encoding="ascii")
            (zone / "trip_point_0_type").write_text("passive\n", encoding="ascii")
            (zone / "trip_point_0_temp").write_text(f"{SOFT_C * 1000:.0f}\n", encoding="ascii")
        new = zone / "temp.new"
        shown = self.celsius if celsius is None else celsius
        new.write_text(f"{shown * 1000:.0f}\n", encoding="ascii")
        new.replace(zone / "temp")
