"""A link that can be cut: a network namespace of its own for a process, joined to here by a pair of interfaces.

with Link() as link:            # LinkMissing without root or `ip`
    broker listens on link.here; processes started behind link.command reach it
    link.cut(); link.mend()
"""

from __future__ import annotations

import os
import shutil
import subprocess
from types import TracebackType
from typing import Self


class LinkMissing(Exception):  # noqa: N818  # not an error of the trial: a part of it is left out
    """Namespaces cannot be made here; says why."""


class Link:
    """The namespace, from `with` to its end.

    Attributes:
        name: of the namespace.
        here, there: the addresses of both ends; nothing beyond the pair reaches them.
        command: what a command is to begin with, to run at the other end.
    """

    def __init__(self, number: int = 0) -> None:
        """Nothing is made yet.

        Args:
            number: of several, 0 to 15.
        """
        mark = f"{os.getpid()}" if not number else f"{os.getpid()}x{number}"
        self.name = f"vedette{mark}"
        self._outer, self._inner = f"vo{mark}", f"vi{mark}"
        # 198.18.0.0/15 is set aside for benches; a /30 of it by our process number.
        block = (os.getpid() * 16 + number) % 32768 * 4
        self.here, self.there = (
            f"198.{18 + block // 65536}.{block // 256 % 256}.{block % 256 + n}" for n in (1, 2)
        )
        self.command = ("ip", "netns", "exec", self.name)

    def cut(self) -> None:
        """Nothing passes any more; connections stay open and wait."""
        _ip("link", "set", self._outer, "down")

    def mend(self) -> None:
        """It passes again."""
        _ip("link", "set", self._outer, "up")

    def __enter__(self) -> Self:
        if os.geteuid() != 0 or not shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"):
            raise LinkMissing("network namespaces need root and the command ip (iproute2)")
        try:
            _ip("netns", "add", self.name)
            _ip("link", "add", self._outer, "type", "veth", "peer", "name", self._inner, "netns", self.name)
            _ip("addr", "add", f"{self.here}/30", "dev", self._outer)
            _ip("link", "set", self._outer, "up")
            _ip("-n", self.name, "addr", "add", f"{self.there}/30", "dev", self._inner)
            _ip("-n", self.name, "link", "set", self._inner, "up")
            _ip("-n", self.name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            self.__exit__(None, None, None)
            raise LinkMissing(f"ip: {error.stderr.decode(errors='replace').strip()}") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The namespace outlives its name until its last process and socket have gone: the pair goes by itself.
        for words in (("link", "del", self._outer), ("netns", "del", self.name)):
            subprocess.run(["ip", *words], check=False, capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
