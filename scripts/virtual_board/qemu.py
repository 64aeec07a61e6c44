"""Verbs of scripts/virtual_board/qemu that need a built board."""

from __future__ import annotations

import sys
from pathlib import Path

from emulated import Emulated
from machine import BoardError, put


def main(verb: str, folder: Path, *words: str) -> int:
    """Run a verb, and return the exit code."""
    if not (folder / "image/base.raw").exists():
        raise BoardError(f"{folder}: nothing is built there: run scripts/virtual_board/qemu build {folder}")
    board = Emulated(folder / "board", folder / "image")
    plain = {"up": board.up, "cut": board.cut, "down": board.down, "fresh": board.fresh}
    if verb in plain and not words:
        plain[verb]()
    elif verb == "sh" and words:
        done = board.run(" ".join(words), patience_s=86_400)
        sys.stdout.buffer.write(done.stdout)
        sys.stderr.buffer.write(done.stderr)
        return done.returncode
    elif verb == "put" and len(words) == 2:
        put(board, Path(words[0]), words[1])
    elif verb == "snapshot" and len(words) == 1:
        board.save(words[0])
    elif verb == "restore" and len(words) == 1:
        if board.pid:
            board.cut()
        board.start(words[0])
        board.go_on()
        board.wait_ssh()
    else:
        raise BoardError(f"qemu {' '.join((verb, *words))}: see scripts/virtual_board/qemu without arguments")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]))
    except BoardError as error:
        sys.exit(f"qemu: {error}")
