"""Reads texts for a fused event: which words of its condition stand in a text, and which phrases it means about.

A phrase behind `~` is compared by text vectors. How alike a text is becomes the score of the evidence, so that a
rule takes the least of it, and calibrated log-odds or a learned head weigh it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from agent.compute.text_vectors.vectors import PhraseMatcher, TextVectors
from agent.compute.track.fusion import Evidence
from agent.compute.track.fusion_rule import Term, phrases_in


class TermMatch(Struct, frozen=True):
    """Match of a text with one term.

    Attributes:
        term: as written, such as `gate:~"somebody needs help"`.
        label: of the term.
        score: how alike the text is, 0..1; for words 1 if they stand in the text, else 0.
        counts: it is evidence.
    """

    term: str
    label: str
    score: float
    counts: bool


class TextReader:
    """Reads the texts of all sources for one condition. Any thread may use it.

    Attributes:
        terms: of the condition.
        sha256: of the files of vectors that it compares with, sorted; empty: no term asks for a meaning.
    """

    def __init__(
        self, terms: Sequence[Term], vectors: Mapping[str, TextVectors] | None = None, similarity: float = 1.0
    ) -> None:
        """Prepare the terms.

        Args:
            terms: of the condition.
            vectors: by name of the text, of each that a term behind `~` has as a source.
            similarity: least likeness that counts.
        """
        self.terms, self._similarity = tuple(terms), similarity
        self._matchers: dict[str, PhraseMatcher] = {}
        for source in dict.fromkeys(source for term in terms if term.is_meaning for source in term.sources):
            assert vectors is not None
            phrases = [term.label for term in terms if term.is_meaning and source in term.sources]
            self._matchers[source] = PhraseMatcher(vectors[source], phrases)
        self.sha256 = tuple(sorted({one.sha256 for one in self._matchers.values()}))

    def matches(self, source: str, text: str) -> list[TermMatch]:
        """Return what a text gives for each term that it may give, also where that is too little to count."""
        alike = self._matchers[source].compare(text) if source in self._matchers else {}
        return [self._match(term, text, alike) for term in self.terms if source in term.sources]

    def evidence(self, source: str, text: str, at_ns: int) -> Iterator[Evidence]:
        """Yield the evidence of a text that was said at an instant."""
        found = {one.label: one.score for one in self.matches(source, text) if one.counts}
        for label, score in found.items():
            yield Evidence.of_words(source, label, at_ns, score)

    def _match(self, term: Term, text: str, alike: Mapping[str, float]) -> TermMatch:
        if not term.is_meaning:
            is_there = bool(phrases_in(text, (term.label,)))
            return TermMatch(term.text, term.label, float(is_there), is_there)
        score = alike[term.label]
        return TermMatch(term.text, term.label, score, score >= self._similarity)
