"""Byte-pair encoding with bytes to fall back on: splits a text into the pieces that text vectors are of.

A space is written as `▁`, and one stands before the text. The text begins as single characters, and the two
neighbours whose join is the piece that comes first in the list are joined, the leftmost first, until no two
neighbours make a piece. A character that is no piece becomes its bytes in UTF-8. Source of the method: Sennrich,
Haddow and Birch, Neural machine translation of rare words with subword units, 2016; of the conventions: Kudo and
Richardson, SentencePiece, 2018.

The package `tokenizers` ranks pairs in place of the pieces that they make; the pieces are the same ones.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping, Sequence

SPACE = "▁"
BYTES = 256
"""Pieces 0 to 255 are single bytes; the others follow in the order in which they are joined."""
_END = -1


class Tokenizer:
    """Splits texts into pieces. Any thread may use it.

    Attributes:
        pieces: number of each piece, from `BYTES` on.
    """

    def __init__(self, pieces: Sequence[str]) -> None:
        """Take different pieces in the order in which they are joined, without those of single bytes."""
        self.pieces: Mapping[str, int] = {piece: number for number, piece in enumerate(pieces, BYTES)}

    def encode(self, text: str) -> list[int]:
        """Return the numbers of a text's pieces, in order; an empty text has none.

        The time grows as n log n for n characters. A lone surrogate, which UTF-8 cannot have, is taken for `?`.
        """
        if not text:
            return []
        written = (SPACE + text.replace(" ", SPACE)).encode("utf-8", "replace").decode()
        return [number for symbol in self._join(list(written)) for number in self._numbers(symbol)]

    def _numbers(self, symbol: str) -> Sequence[int]:
        number = self.pieces.get(symbol)
        return symbol.encode() if number is None else (number,)

    def _join(self, symbols: list[str]) -> list[str]:
        """Join neighbours until none make a piece; what was joined to its left neighbour becomes empty."""
        after = [*range(1, len(symbols)), _END]
        before = list(range(-1, len(symbols) - 1))
        queue = [
            (number, at, len(left) + len(right))
            for at, (left, right) in enumerate(itertools.pairwise(symbols))
            if (number := self.pieces.get(left + right)) is not None
        ]
        heapq.heapify(queue)
        while queue:
            _, at, length = heapq.heappop(queue)
            right = after[at]
            if not symbols[at] or right == _END or len(symbols[at]) + len(symbols[right]) != length:
                continue  # one of the two has been joined to another
            symbols[at] += symbols[right]
            symbols[right] = ""
            after[at] = after[right]
            if after[at] != _END:
                before[after[at]] = at
            for one in (before[at], at):
                self._offer(queue, symbols, one, after)
        return [symbol for symbol in symbols if symbol]

    def _offer(self, queue: list[tuple[int, int, int]], symbols: list[str], at: int, after: list[int]) -> None:
        """Queue the join of a symbol and its right neighbour, if it is a piece."""
        if at == _END or after[at] == _END:
            return
        joined = symbols[at] + symbols[after[at]]
        if (number := self.pieces.get(joined)) is not None:
            heapq.heappush(queue, (number, at, len(joined)))
