r"""Regular expressions whose match costs a fixed time for each character, and of which a prefix can be matched.

Python's `re` tries one way after another, which takes exponential time for some expressions, and cannot say if a
text could still become a match. Here an expression becomes an automaton that is in several states at once.
Source: Thompson, Regular Expression Search Algorithm, Communications of the ACM 11, 1968.

Understood, as in `re`: characters, `.`, classes such as `[A-Z0-9]` and `[^0]`, `\d \w \s` and their opposites,
groups `( )` and `(?: )`, `|`, and `? * + {2} {2,4} {2,}`. A text matches as a whole: `^` and `$` are needless.
"""

from __future__ import annotations

from collections.abc import Callable

from agent.errors import ModelError

States = frozenset[int]
_Accepts = Callable[[str], bool]

_MOST_STATES = 2000
"""Most states of an automaton: `[A-Z]{2}[0-9]{4}` has about a dozen."""
_MOST_REPEATS = 255
_DEEPEST = 20
"""Most groups within groups."""
_SPECIAL = frozenset("\\.[](){}|?*+^$")
_ESCAPES: dict[str, _Accepts] = {
    "d": str.isdecimal,
    "w": lambda one: one.isalnum() or one == "_",
    "s": str.isspace,
}


class Pattern:
    """An automaton. A set of states is what a beginning of a text leads to; an empty one cannot become a match.

    Attributes:
        start: states before the first character.
    """

    def __init__(self, text: str) -> None:
        """Read an expression.

        Raises:
            ModelError: it is no expression, has what is not understood here, or is too large.
        """
        self._text, self._at, self._depth = text, 0, 0
        self._accepts: list[_Accepts | None] = []
        self._next: list[list[int]] = []
        begin, end = self._choice()
        if self._at < len(text):
            raise self._fault(f"{text[self._at]!r} without its opening bracket")
        self._end = end
        self.start = self._closed([begin])

    def step(self, states: States, text: str) -> States:
        """Return the states after further characters."""
        for character in text:
            reached: list[int] = []
            for state in states:
                accepts = self._accepts[state]
                if accepts is not None and accepts(character):
                    reached += self._next[state]
            states = self._closed(reached)
        return states

    def is_match(self, states: States) -> bool:
        """Return True if the text that has led to these states matches as a whole."""
        return self._end in states

    def matches(self, text: str) -> bool:
        """Return True if a text matches as a whole."""
        return self.is_match(self.step(self.start, text))

    def _closed(self, states: list[int]) -> States:
        """Add the states that are reached without a character."""
        found, left = set(states), list(states)
        while left:
            state = left.pop()
            if self._accepts[state] is None:
                new = [one for one in self._next[state] if one not in found]
                found.update(new)
                left += new
        return frozenset(found)

    def _state(self, accepts: _Accepts | None = None, to: list[int] | None = None) -> int:
        if len(self._accepts) >= _MOST_STATES:
            raise self._fault(f"it needs more than {_MOST_STATES} states: repeat less")
        self._accepts.append(accepts)
        self._next.append(to or [])
        return len(self._accepts) - 1

    def _fault(self, what: str) -> ModelError:
        return ModelError(f"the pattern {self._text!r} cannot be used: {what}, at character {self._at + 1}")

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip(self, expected: str) -> bool:
        if self._text.startswith(expected, self._at):
            self._at += len(expected)
            return True
        return False

    def _choice(self) -> tuple[int, int]:
        """Read alternatives up to a bracket or the end. Return the first and the last state."""
        ways = [self._sequence()]
        while self._skip("|"):
            ways.append(self._sequence())
        if len(ways) == 1:
            return ways[0]
        last = self._state()
        for _, end in ways:
            self._next[end].append(last)
        return self._state(to=[begin for begin, _ in ways]), last

    def _sequence(self) -> tuple[int, int]:
        begin = end = self._state()
        if self._at == 0:
            self._skip("^")
        while (one := self._peek()) and one not in "|)":
            if one == "$" and self._at == len(self._text) - 1:
                self._at += 1
                break
            first, last = self._repeated()
            self._next[end].append(first)
            end = last
        return begin, end

    def _repeated(self) -> tuple[int, int]:
        place = self._at
        part = self._item()
        least, most = self._times()
        if (least, most) == (1, 1):
            return part
        rest, copies = self._at, [part]
        for _ in range((least if most is None else most) - 1):
            self._at = place  # each copy has states of its own
            copies.append(self._item())
        self._at = rest
        return self._joined(copies, least, most)

    def _joined(self, copies: list[tuple[int, int]], least: int, most: int | None) -> tuple[int, int]:
        begin, last = self._state(), self._state()
        end = begin
        if most == 0:
            return begin, begin
        for number, (first, final) in enumerate(copies):
            if number >= least:
                self._next[end].append(last)
            self._next[end].append(first)
            end = final
        self._next[end].append(last)
        if most is None:
            self._next[end].append(copies[-1][0])
        return begin, last

    def _times(self) -> tuple[int, int | None]:
        for sign, times in (("?", (0, 1)), ("*", (0, None)), ("+", (1, None))):
            if self._skip(sign):
                return self._once(times)
        if not self._skip("{"):
            return 1, 1
        inner, bracket, after = self._text[self._at :].partition("}")
        low, comma, high = inner.partition(",")
        if not bracket or not low.isdecimal() or not (high.isdecimal() or not high):
            raise self._fault("expected {2}, {2,4} or {2,}")
        self._at = len(self._text) - len(after)
        least = int(low[:9])
        most = (int(high[:9]) if high else None) if comma else least
        if max(least, most or 0) > _MOST_REPEATS or (most is not None and most < least):
            raise self._fault(f"expected repeats in order, at most {_MOST_REPEATS}")
        return self._once((least, most))

    def _once(self, times: tuple[int, int | None]) -> tuple[int, int | None]:
        if self._peek() in ("?", "*", "+", "{") and self._peek():
            raise self._fault("one repeat follows another: put the first in a group")
        return times

    def _item(self) -> tuple[int, int]:
        one = self._peek()
        if one == "(":
            return self._group()
        accepts = self._class() if one == "[" else self._single()
        last = self._state()
        return self._state(accepts, [last]), last

    def _group(self) -> tuple[int, int]:
        self._at += 1
        if self._peek() == "?" and not self._skip("?:"):
            raise self._fault("of groups, `( )` and `(?: )` are understood")
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._fault(f"more than {_DEEPEST} groups within groups")
        found = self._choice()
        self._depth -= 1
        if not self._skip(")"):
            raise self._fault("a bracket is not closed")
        return found

    def _single(self) -> _Accepts:
        one = self._peek()
        if one == "\\":
            return self._escaped()
        self._at += 1
        if one == ".":
            return lambda _: True
        if one in _SPECIAL:
            self._at -= 1
            raise self._fault(f"{one!r} has nothing to follow; as a character it is \\{one}")
        return one.__eq__

    def _escaped(self) -> _Accepts:
        one = self._text[self._at + 1 : self._at + 2]
        self._at += 2
        if one in _ESCAPES:
            return _ESCAPES[one]
        if one and one.lower() in _ESCAPES:
            accepts = _ESCAPES[one.lower()]
            return lambda other: not accepts(other)
        if not one or one.isalnum():
            self._at -= 2
            raise self._fault(f"\\{one} is not understood; known are \\d, \\w, \\s and their opposites")
        return one.__eq__

    def _class(self) -> _Accepts:
        self._at += 1
        negated = self._skip("^")
        parts: list[_Accepts] = []
        while self._peek() != "]" or not parts:
            if not self._peek():
                raise self._fault("a class is not closed")
            parts.append(self._range())
        self._at += 1
        return lambda one: any(part(one) for part in parts) is not negated

    def _range(self) -> _Accepts:
        low = self._peek()
        if low == "\\":
            escaped = self._text[self._at + 1 : self._at + 2]
            accepts = self._escaped()
            if escaped.isalnum():
                return accepts
            low = escaped
        else:
            self._at += 1
        high = self._text[self._at + 1 : self._at + 2]
        if self._peek() != "-" or high in ("]", ""):
            return low.__eq__
        self._at += 2
        if high == "\\":
            high = self._peek()
            self._at += 1
            if high.isalnum():
                raise self._fault(f"{low}-\\{high} is no range")
        if not high or high < low:
            raise self._fault(f"{low}-{high} is no range")
        return lambda one: low <= one <= high
