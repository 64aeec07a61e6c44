"""The program: `vedette`, or `python -m agent`."""

from __future__ import annotations

import atexit
import errno
import io
import os
import sys
import threading
from contextlib import suppress

from agent.board.process import block_until_ready, separate_stderr
from agent.errors import StreamError, VedetteError, reason_of
from agent.text import plain

_NOT_FLUSHED = 120
"""Exit code of Python where what was printed could not be written."""


def program() -> None:
    """Run `main` as a process of its own. End it at once where threads are left that may be in native code."""
    ended: list[SystemExit] = []
    atexit.register(_end_under_threads, ended)  # the first that is registered runs last
    try:
        main()
    except SystemExit as end:
        ended.append(end)
        raise


def main() -> None:
    """Run the command line. An error that Vedette raises on purpose is its text, and exit code 1."""
    _open_missing()
    separate_stderr()
    if sys.argv[1:2] == ["run"]:
        block_until_ready()
    _print_anything()
    from agent.cli.main import vedette

    try:
        vedette(prog_name="vedette")
    except StreamError:
        sys.exit(1)
    except VedetteError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno == errno.EPIPE:  # nobody reads errors
            sys.exit(1)
        if error.errno != errno.ENOSPC:
            raise
        _fail(plain(f"{error.filename or 'output'}: {reason_of(error)}"))


def _end_under_threads(ended: list[SystemExit]) -> None:
    """End the process now where daemon threads are left, such as the reader of a camera that FFmpeg waits for.

    When the interpreter is being finalised, a thread that comes back from native code is made to exit, and the
    C++ frames that it passes abort the process.

    Args:
        ended: how `main` ended; empty: it raised another exception, which has been printed.
    """
    if not any(thread.daemon for thread in threading.enumerate()):
        return
    code = ended[0].code if ended else 1
    status = code if isinstance(code, int) else int(code is not None)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            status = status or _NOT_FLUSHED
    os._exit(status)


def _open_missing() -> None:
    """Open /dev/null as each of descriptors 0, 1 and 2 that is closed, so that stdout and stderr are never None.

    A file that is opened later would get the free number, and what libraries print would be written into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # it is the lowest that is free, so this gets its number
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(descriptor, True)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


def _print_anything() -> None:
    """Make stdout and stderr print the escape of a character that their encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _fail(text: str) -> None:
    with suppress(BrokenPipeError):
        print(f"vedette: {text}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    program()
