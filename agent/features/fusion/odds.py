"""Probabilistic late fusion: adds what each source's evidence says, as calibrated log-odds, to those of before.

    log-odds = prior + Σ (present: w_present + w_score · logit(score); absent: w_absent; not known: 0)

A source that is away says nothing for or against. The weights come from labelled recordings by
`agent.optimise.late_fusion`. Source of the form: logistic calibration of each score (Platt, Probabilistic outputs
for support vector machines, 1999), and logarithmic pooling with fitted weights instead of the assumption that
sources are independent (Genest and Zidek, Combining probability distributions, Statistical Science 1986).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

from agent.errors import ConfigError
from agent.features.fusion.expression import TERMS_MAX, EvidenceSource, Judgement, Reading, Term, parse_term
from agent.structs import from_json

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
