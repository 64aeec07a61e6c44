"""Words over time: probabilities of one inference after the other in, `heard` events out, each word once.

A word is told when the mean of the last N answers exceeds the threshold. The same word is told again only after
its mean has fallen to half the threshold, and at the earliest `refractory_s` after it was told before.
Source: Chen, Parada and Heigold, Small-footprint keyword spotting using deep neural networks, ICASSP 2014
"""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta

import numpy as np

from agent.compute.decode.keyword import Keyword
from agent.compute.decode.quant import Floats
from agent.messages import Event, Track

_RELEASE = 0.5


class Words:
    """What one stream hears. For one thread.

    Attributes:
        decoder: labels, threshold and options.
        told: numbers of the labels that have been told and are not over yet.
    """

    def __init__(self, decoder: Keyword, stream: str, *, run: str = "") -> None:
        """Prepare.

        Args:
            decoder: see the class.
            stream: its name, the first part of every id.
            run: makes ids unique over restarts; default: random.
        """
        self.use(decoder)
        self._refractory_ns = round(decoder.options.refractory_s * 1e9)
        self._newest = np.zeros((decoder.options.mean_of, len(decoder.labels)), np.float32)
        self._share = np.float32(1.0 / decoder.options.mean_of)
        self._heard = 0
        self._prefix = f"{stream}-{run or secrets.token_hex(4)}-"
        self._count = 0
        self._told_ns: dict[int, int] = {}
        self.told: frozenset[int] = frozenset()

    def use(self, decoder: Keyword) -> None:
        """Take another decoder of the same labels and options; what has been told stays so."""
        self.decoder = decoder
        self._labels, self._threshold, self._wanted = decoder.labels, decoder.threshold, frozenset(decoder.wanted)

    def hear(self, probabilities: Floats, at_ns: int, at: datetime, span_s: float) -> list[Event]:
        """One inference was made.

        Args:
            probabilities: float32 [classes].
            at_ns: of the last sample that it heard, ns.
            at: the same, UTC.
            span_s: from one inference to the next.
        """
        count = len(self._newest)
        self._newest[self._heard % count] = probabilities
        self._heard += 1
        whole = self._heard >= count
        mean = np.add.reduce(self._newest) * self._share if whole else self._newest[: self._heard].mean(axis=0)
        if self.told:
            self.told = frozenset(label for label in self.told if mean[label] > self._threshold * _RELEASE)
        if not whole:
            return []
        best = int(mean.argmax())
        if mean[best] <= self._threshold or best not in self._wanted or best in self.told:
            return []
        if at_ns - self._told_ns.get(best, -self._refractory_ns) < self._refractory_ns:
            return []
        self._told_ns[best] = at_ns
        self.told |= {best}
        return [self._event(best, float(mean[best]), at, span_s)]

    def reset(self) -> None:
        """Start the mean anew: the next answer does not follow those before. What has been told stays so."""
        self._heard = 0

    def _event(self, number: int, score: float, at: datetime, span_s: float) -> Event:
        self._count += 1
        hits = len(self._newest)
        first = at - timedelta(seconds=span_s * (hits - 1))
        track = Track(f"{self._prefix}{self._count}", self._labels[number], score, score, hits, first, at)
        return Event("heard", track, "word")
