"""The program: `vedette`, or `python -m agent`."""

from __future__ import annotations

import atexit
import errno
import io
import os
import sys
import threading
from contextlib import suppress

# What else is needed is imported in `main`, where Ctrl-C is handled.

_INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells have it."""
_NOT_FLUSHED = 120
"""Python's exit code if output could not be written."""


def program() -> None:
    """Run `main`, and end the process at once if threads are left that may be in native code."""
    ended: list[SystemExit] = []
    atexit.register(_end_under_threads, ended)  # registered first, so it runs last
    try:
        main()
    except SystemExit as end:
        ended.append(end)
        raise


def main() -> None:
    """Run the command line. A `VedetteError` is printed, and sets the exit code; after Ctrl-C it is 130."""
    try:
        _run()
    except KeyboardInterrupt:  # while modules are imported
        sys.exit(_INTERRUPTED)


def _run() -> None:
    from agent.board.process import block_until_ready, separate_stderr
    from agent.errors import StreamError, VedetteError, reason_of
    from agent.text import plain

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
        _fail(str(error), error.exit_code)
    except OSError as error:
        if error.errno == errno.EPIPE:  # nobody reads errors
            sys.exit(1)
        if error.errno != errno.ENOSPC:
            raise
        _fail(plain(f"{error.filename or 'output'}: {reason_of(error)}"))


def _end_under_threads(ended: list[SystemExit]) -> None:
    """End the process now if daemon threads are left, such as the reader of a camera that FFmpeg waits for.

    While the interpreter finalises, a thread that returns from native code is made to exit, which aborts the
    process in C++ frames.

    Args:
        ended: how `main` ended; empty: with another exception, which has been printed.
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
    """Open /dev/null as each of descriptors 0, 1 and 2 that is closed.

    A file that is opened later would get the free number, and libraries would print into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # the lowest free number is the next that is opened
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(descriptor, True)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


def _print_anything() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _fail(text: str, code: int = 1) -> None:
    with suppress(BrokenPipeError):
        print(f"vedette: {text}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    program()
