"""Rules of fused events: `person and "help"`, parsed, tied to the streams and texts that there are, and judged.

    rule   = all { "or" all }            all = not { "and" not }
    not    = "not" not | "(" rule ")" | term
    term   = [ NAME ":" ] ( LABEL | QUOTED )

`person` is a label of any stream, `front:person` of one stream, and `"help"` a word or several in a row that are
heard as a keyword or come as text. `door:"traffic light"` is a label with a space. Case does not matter.

A rule is judged in Kleene's three-valued logic: a term whose camera, microphone or broker is away is unknown, so
that `not person` is not true while nobody can see.
"""

from __future__ import annotations

import ast
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec
from msgspec import Struct

from agent.errors import ConfigError
from agent.structs import from_json

RULE_MAX, TERMS_MAX = 1000, 32
"""Characters and different terms of a rule."""
_TERM = re.compile(r"""(?:([^\W_][\w-]*)\s*:\s*)?(?:"([^"]*)"|([^\W_][\w-]*))""")
"""Source, quoted words, and label of a term, or a keyword in place of the label."""
_NODES = (ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.Name, ast.Load)
_WORDS = re.compile(r"\w+(?:['’]\w+)*")
_KEYWORDS = ("and", "or", "not")

SourceKind = Literal["pictures", "sounds", "words", "text", "none", "unknown"]


class EvidenceSource(Struct, frozen=True):
    """Evidence that a stream or a text input can give.

    Attributes:
        kind: tracks in pictures, sounds or keywords; text; none, where numbers or verdicts on parts are published
            instead; or unknown, since the model cannot be opened now.
        labels: that its model may give; empty: not known.
        learns: states may be taught to it, such as `gate open`, also later.
    """

    kind: SourceKind
    labels: tuple[str, ...] = ()
    learns: bool = False

    def may_give(self, label: str, *, is_named: bool = False) -> bool:
        """Return True if a label, as `plain_words` returns it, may come from here.

        A state and its value may come from a stream that is named: of any other, a misspelt label would pass.
        """
        if self.kind == "text" or not self.labels or (is_named and self.learns and " " in label):
            return True
        return any(plain_words(one) == label for one in self.labels)


class Term(Struct, frozen=True):
    """Term of a rule, tied to where it may come from.

    Attributes:
        text: as written, such as `front:person`.
        label: as `plain_words` returns it.
        sources: streams and texts that may give it.
    """

    text: str
    label: str
    sources: tuple[str, ...]


class Reading(NamedTuple):
    """A term at one instant.

    Attributes:
        present: evidence lies in the window before the instant.
        known: every source was there during the window; counts where nothing is present.
        score: highest of the evidence, 0..1.
    """

    present: bool
    known: bool
    score: float


class Judgement(NamedTuple):
    """The truth of a rule at one instant, None if it is unknown, and its score 0..1."""

    truth: bool | None
    score: float


def plain_words(text: str) -> str:
    """Return the words of a text in lower case, with a space between: how labels and words are compared."""
    folded = unicodedata.normalize("NFC", text).casefold()
    return " ".join(_WORDS.findall(folded.replace("_", " ")))


def phrases_in(text: str, phrases: Iterable[str]) -> list[str]:
    """Return those of some phrases, as `plain_words` returns them, that stand in a text as whole words."""
    words = f" {plain_words(text)} "
    return [phrase for phrase in phrases if f" {phrase} " in words]


class _Wanted(NamedTuple):
    """A term as it was parsed: the name before the colon, the label, and if that was in quotes."""

    source: str
    label: str
    quoted: bool

    def __str__(self) -> str:
        label = f'"{self.label}"' if self.quoted else self.label
        return f"{self.source}:{label}" if self.source else label


class Rule:
    """A parsed rule, tied to its sources.

    Attributes:
        terms: that it asks for, each once.
        is_monotone: no `not` is in it: more evidence never makes it false.
    """

    def __init__(self, text: str, sources: Mapping[str, EvidenceSource]) -> None:
        """Parse a rule.

        Raises:
            ConfigError: it is no rule, names a stream or a label that there is not, or would be true while
                nothing is seen or heard.
        """
        self._root, wanted = _parse(text)
        self.terms = tuple(_tied(one, sources) for one in wanted)
        self.is_monotone = not any(isinstance(node, ast.Not) for node in ast.walk(self._root))
        nothing = [Reading(present=False, known=True, score=0.0)] * len(self.terms)
        if self.judge(nothing).truth:
            raise ConfigError('would be true while nothing is seen or heard; join `not` to something with "and"')

    def judge(self, readings: Sequence[Reading]) -> Judgement:
        """Judge the readings of the terms. A score of `and` is the least, of `or` the highest of what is true."""
        return _judge(self._root, readings)


def _parse(text: str) -> tuple[ast.expr, list[_Wanted]]:
    """Parse a rule. Return it with the number of its term in each name, `_0` and so on, and the different terms.

    `and`, `or`, `not` and parentheses are those of Python, whose parser knows which binds closer.
    """
    if len(text) > RULE_MAX:
        raise ConfigError(f"a rule has at most {RULE_MAX} characters; found {len(text)}")
    if odd := re.search(r"[^\s()]", _TERM.sub("", text)):
        raise ConfigError(f"{odd[0]!r} cannot be read; use letters, digits, _ and -, or words in quotes")
    wanted: dict[str, _Wanted] = {}

    def name(found: re.Match[str]) -> str:
        source, quoted, word = found.groups()
        if not source and word and word.lower() in _KEYWORDS:
            return f" {word.lower()} "
        one = _Wanted(source or "", word or quoted, not word)
        if not plain_words(one.label):
            raise ConfigError(f"{one}: there is no word in it")
        wanted[str(one)] = one
        return f" _{list(wanted).index(str(one))} "

    code = " ".join(_TERM.sub(name, text).split())
    if len(wanted) > TERMS_MAX:
        raise ConfigError(f"{len(wanted)} different terms; a rule has at most {TERMS_MAX}")
    try:
        root = ast.parse(code, mode="eval").body
    except (SyntaxError, RecursionError, MemoryError):
        root = None
    if root is None or not all(isinstance(node, _NODES) for node in ast.walk(root)):
        raise ConfigError('expected labels and words in quotes, joined with "and", "or", "not" and parentheses')
    return root, list(wanted.values())


def parse_term(text: str, sources: Mapping[str, EvidenceSource]) -> Term:
    """Parse a single term, such as `front:person`, as a calibration names it.

    Raises:
        ConfigError: see `Rule`; or it is more than a term.
    """
    root, wanted = _parse(text)
    if not isinstance(root, ast.Name):
        raise ConfigError(f"{text!r}: expected a single label or word")
    return _tied(wanted[0], sources)


def _tied(wanted: _Wanted, sources: Mapping[str, EvidenceSource]) -> Term:
    """Tie a term to the sources that may give it."""
    label, named = plain_words(wanted.label), wanted.source
    if named and named not in sources:
        known = ", ".join(sources) or "none"
        raise ConfigError(f"{wanted}: no stream or text is called {named!r}; there are: {known}")
    if named and sources[named].kind == "none":
        raise ConfigError(f"{wanted}: {named} gives numbers or verdicts on parts, no tracks or keywords")
    kinds = ("words", "text", "unknown") if wanted.quoted else ("pictures", "sounds", "words", "unknown")
    allowed = {name: one for name, one in sources.items() if (name == named if named else one.kind in kinds)}
    giving = tuple(name for name, one in allowed.items() if one.may_give(label, is_named=bool(named)))
    if not giving:
        known = ", ".join(sorted({label for one in allowed.values() for label in one.labels})) or "none"
        hint = "they come from keywords or a [text.NAME]" if wanted.quoted else "words of a text are in quotes"
        raise ConfigError(f"{wanted}: nothing gives this; known: {known}; {hint}")
    return Term(str(wanted), label, giving)


def _judge(node: ast.expr, readings: Sequence[Reading]) -> Judgement:
    if isinstance(node, ast.Name):
        one = readings[int(node.id[1:])]
        return Judgement(True if one.present else False if one.known else None, one.score if one.present else 0.0)
    if isinstance(node, ast.UnaryOp):
        truth, score = _judge(node.operand, readings)
        return Judgement(None if truth is None else not truth, 1.0 - score)
    assert isinstance(node, ast.BoolOp)
    is_and = isinstance(node.op, ast.And)
    found = [_judge(part, readings) for part in node.values]
    decisive = not is_and  # one true part decides `or`, one false part decides `and`
    truths = [one.truth for one in found]
    truth = decisive if decisive in truths else None if None in truths else not decisive
    if is_and:
        return Judgement(truth, min(one.score for one in found))
    return Judgement(truth, max((one.score for one in found if one.truth), default=0.0))


LOGIT_MAX = 6.0
"""Scores are taken between 0.0025 and 0.9975: a model that says 1 is not certain."""
_WEIGHT_MAX = 100.0


class TermWeights(Struct, frozen=True, forbid_unknown_fields=True):
    """Weights that one term adds to the log-odds.

    Attributes:
        term: such as `front:person` or `"help"`.
        absent: if nothing is there, and its sources are.
        present: if there is evidence.
        score: times the logit of the highest score, if there is evidence.
    """

    term: str
    absent: float
    present: float
    score: float = 0.0

    def adds(self, reading: Reading) -> float:
        """Return the log-odds that a reading adds."""
        if reading.present:
            return self.present + self.score * logit(reading.score)
        return self.absent if reading.known else 0.0


class FusionCalibration(Struct, frozen=True, forbid_unknown_fields=True):
    """A calibration file, JSON.

    Attributes:
        terms: weights, in their order.
        prior: log-odds before any evidence.
        window_s: window that the weights were fitted with, s.
        situations, moments: number of situations and of moments that it was fitted on.
        log_loss: mean on moments that were held out, nats; lower is better.
        calibration_error: mean distance of probability and share of truth there, 0..1.
    """

    terms: tuple[TermWeights, ...]
    prior: float
    window_s: float
    situations: int = 0
    moments: int = 0
    log_loss: float = 0.0
    calibration_error: float = 0.0


def logit(score: float) -> float:
    """Return the log-odds of a score, between ±`LOGIT_MAX`."""
    low = 1.0 / (1.0 + math.exp(LOGIT_MAX))
    bounded = min(1.0 - low, max(low, score))
    return math.log(bounded / (1.0 - bounded))


def read_calibration(content: bytes) -> FusionCalibration:
    """Read a calibration file.

    Raises:
        ConfigError: it is none, or its numbers cannot be used.
    """
    try:
        found = from_json(content, FusionCalibration)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ConfigError(f"no calibration of a fusion: {error}") from None
    numbers = [found.prior, *(value for one in found.terms for value in (one.absent, one.present, one.score))]
    if not found.terms or len(found.terms) > TERMS_MAX:
        raise ConfigError(f"expected 1 to {TERMS_MAX} terms; found {len(found.terms)}")
    if not all(math.isfinite(value) and abs(value) <= _WEIGHT_MAX for value in numbers):
        raise ConfigError(f"expected weights between ±{_WEIGHT_MAX:g}")
    return found


def terms_of(calibration: FusionCalibration, sources: Mapping[str, EvidenceSource]) -> tuple[Term, ...]:
    """Return the terms of a calibration, tied to their sources. Raises ConfigError as `Rule` does."""
    return tuple(parse_term(one.term, sources) for one in calibration.terms)


class LogOdds:
    """The condition that the probability of a situation is at least a threshold.

    Attributes:
        terms: tied to their sources.
        is_monotone: more evidence never lowers the probability.
    """

    def __init__(
        self, calibration: FusionCalibration, threshold: float, sources: Mapping[str, EvidenceSource]
    ) -> None:
        """Tie the terms to their sources.

        Raises:
            ConfigError: a term cannot be given, see `Rule`; or the probability reaches the threshold without any
                evidence.
        """
        self._weights, self._prior = calibration.terms, calibration.prior
        self._least = logit(threshold)
        self.terms = terms_of(calibration, sources)
        self.is_monotone = all(
            one.score >= 0.0 and one.present - LOGIT_MAX * one.score >= max(one.absent, 0.0)
            for one in calibration.terms
        ) and all(one.absent <= 0.0 for one in calibration.terms)
        unseen = self._prior + sum(max(0.0, one.absent) for one in calibration.terms)
        if unseen >= self._least:
            share = probability(unseen)
            raise ConfigError(f"the probability without any evidence is {share:.3f}: use a higher threshold")

    def judge(self, readings: Sequence[Reading]) -> Judgement:
        """Judge the readings of the terms; the score is the probability."""
        added = (one.adds(reading) for one, reading in zip(self._weights, readings, strict=True))
        odds = self._prior + sum(added)
        return Judgement(odds >= self._least, probability(odds))


def probability(odds: float) -> float:
    """Return the probability of log-odds."""
    return 1.0 / (1.0 + math.exp(-max(-500.0, min(500.0, odds))))
