"""Byte-pair encoding: what any text becomes, judged by its definition and, if installed, by `tokenizers`."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as some

from agent.compute.text_vectors.tokenizer import BYTES, SPACE, Tokenizer
from tests.unit.compute.text_vectors import small

PIECES = [*"abcd ▁é", "ab", "▁a", "bc", "abc", "aa", "aab", "▁ab", "cd", "bcd", "aaa", "▁▁"]
TOKENIZER = Tokenizer(PIECES)
TEXTS = some.one_of(some.text(max_size=60), some.text("abcd ", max_size=40))


def written(text: str) -> str:
    return (SPACE + text.replace(" ", SPACE)) if text else ""


def back(numbers: list[int], pieces: list[str]) -> str:
    """The text that pieces were made of."""
    parts = [bytes([one]) if one < BYTES else pieces[one - BYTES].encode() for one in numbers]
    return b"".join(parts).decode()


def by_definition(text: str) -> list[str]:
    """Join the best pair of neighbours, one after the other, looking at all of them each time."""
    symbols = list(written(text))
    order = {piece: number for number, piece in enumerate(PIECES)}
    while True:
        pairs = [(order.get(left + right), at) for at, (left, right) in enumerate(itertools.pairwise(symbols))]
        known = [(number, at) for number, at in pairs if number is not None]
        if not known:
            return symbols
        _, at = min(known)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]


@given(TEXTS)
def test_pieces_are_those_of_the_definition(text: str) -> None:
    expected = [
        number
        for symbol in by_definition(text)
        for number in ([TOKENIZER.pieces[symbol]] if symbol in TOKENIZER.pieces else symbol.encode())
    ]
    assert TOKENIZER.encode(text) == expected


@given(some.text(max_size=200))
def test_pieces_of_any_text_give_it_back(text: str) -> None:
    assert back(TOKENIZER.encode(text), PIECES) == written(text)


def test_what_is_no_unicode_and_what_is_empty_has_pieces_all_the_same() -> None:
    assert TOKENIZER.encode("") == []
    assert TOKENIZER.encode("a\ud800") == [*TOKENIZER.encode("a"), ord("?")]
    assert TOKENIZER.encode("☃")[1:] == list("☃".encode())


def test_a_long_text_is_split_like_a_short_one() -> None:
    short = TOKENIZER.encode("abcd ")[:-1]
    assert TOKENIZER.encode("abcd " * 20_000)[: len(short)] == short
    assert len(TOKENIZER.encode("a" * 99_999)) == 50_000, "two and two, from the left"


@given(some.one_of(some.text(max_size=60), some.text("help asid", max_size=40)))
def test_the_package_of_the_format_gives_the_same_pieces(text: str) -> None:
    oracle = pytest.importorskip("tokenizers").Tokenizer.from_str(json.dumps(small.tokenizer()))
    vocab = small.tokenizer()["model"]["vocab"]
    pieces = [piece for piece in vocab if not piece.startswith("<")]
    order = {vocab[piece]: number for number, piece in enumerate(pieces, BYTES)}
    order |= {vocab[f"<0x{number:02X}>"]: number for number in range(BYTES)}
    made = Tokenizer(pieces).encode(text)
    assert made == [order[number] for number in oracle.encode(text, add_special_tokens=False).ids]
