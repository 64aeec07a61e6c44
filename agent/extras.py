"""What the optional extras of the package need."""

from __future__ import annotations

import re
import shlex
import sys
from importlib.metadata import PackageNotFoundError, requires

_PACKAGE = "vedette"


def install_command(extra: str) -> str:
    """Return the command that installs what an extra needs: `/usr/bin/python3 -m pip install 'amqtt>=0.11'`.

    Args:
        extra: one of `pyproject.toml`, such as `demo`.
    """
    marker = re.compile(rf"extra == ['\"]{re.escape(extra)}['\"]")
    try:
        needed = [one.partition(";")[0].strip() for one in requires(_PACKAGE) or () if marker.search(one)]
    except PackageNotFoundError:  # it is run from a clone that is not installed
        needed = []
    return shlex.join([sys.executable, "-m", "pip", "install", *(needed or [f".[{extra}]"])])
