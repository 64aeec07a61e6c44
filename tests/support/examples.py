"""Numbers of examples for tests that need many."""

from __future__ import annotations

from hypothesis import settings

_ALL = 200


def examples(thorough: int) -> int:
    """`thorough` in the profile `all` of `tests/conftest.py`; in others, the profile's own number."""
    chosen = settings.default.max_examples if settings.default else _ALL
    return thorough if chosen >= _ALL else chosen
