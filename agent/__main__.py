"""The program: `vedette`, or `python -m agent`."""

from __future__ import annotations

import os
import sys

from agent.errors import StreamError, VedetteError


def main() -> None:
    """Run the command line. An error that Vedette raises on purpose is its text, and exit code 1."""
    from agent.cli.main import vedette

    try:
        vedette(prog_name="vedette")
    except StreamError:
        sys.exit(1)
    except VedetteError as error:
        print(f"vedette: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        # The reader of a pipe has gone, as `| head` does: nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
