#!/usr/bin/python3
"""The first and only process of a board that runs one program, /job.py, and then switches itself off."""

import ctypes
import runpy
import sys
import traceback
from pathlib import Path

_POWER_OFF = 0x4321FEDC
_MOUNTS = {"/proc": "proc", "/sys": "sysfs", "/dev": "devtmpfs", "/tmp": "tmpfs"}

libc = ctypes.CDLL(None)
for place, kind in _MOUNTS.items():
    Path(place).mkdir(exist_ok=True)
    libc.mount(kind.encode(), place.encode(), kind.encode(), 0, None)
sys.path[:0] = ["/site", "/app"]
try:
    runpy.run_path("/job.py", run_name="__main__")
except BaseException:
    traceback.print_exc()
sys.stdout.flush()
libc.reboot(_POWER_OFF)
