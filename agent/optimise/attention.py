"""Light attention over the steps of a sequence, of operations that XNNPACK runs in INT8.

Dense attention multiplies two matrices of activations and takes a softmax over the scores; XNNPACK has neither
for INT8, so that the graph falls into several delegates. Here a query meets few keys, `seen` of them,
elementwise: a product with each key, and a convolution of one pixel that sums it up to a score. The weights of
the values are no softmax but a sigmoid of each score (https://arxiv.org/abs/2409.04431), so that a step may also
attend to nothing.

What is seen: the steps around one (`BandedAttention`), steps at fixed distances (`PatternAttention`, with gaps as
in https://arxiv.org/abs/2004.05150), or a few learned summaries of the whole sequence (`LowRankAttention`, as
https://arxiv.org/abs/2006.04768, but with one stretch of the sequence for each summary).

All take and return [batch, channels, steps, 1], and raise `ModelError` for another shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import torch
from torch import Tensor, nn
from torch.nn import functional

from agent.errors import ModelError


class _LightAttention(nn.Module):
    """Attention to `seen` keys and values, whichever they are.

    Args:
        channels: of the sequence.
        head: channels of queries, keys and values.
        seen: number of keys that a query meets.

    Raises:
        ModelError: a number is less than 1.
    """

    def __init__(self, channels: int, head: int, seen: int) -> None:
        if min(channels, head, seen) < 1:
            raise ModelError(f"expected 1 or more channels, got {channels}, and {head} of {seen} keys")
        super().__init__()
        self.channels, self.head, self.seen = channels, head, seen
        self.projection = nn.Conv2d(channels, 3 * head, 1)
        self.score = nn.Conv2d(head, 1, 1)
        self.gathered = nn.Conv2d(head, head, (1, seen), groups=head)
        self.output = nn.Conv2d(head, channels, 1)
        nn.init.constant_(self.score.weight, head**-0.5)
        nn.init.constant_(self.score.bias, -log(seen))
        nn.init.constant_(self.gathered.weight, 1.0)
        nn.init.zeros_(self.gathered.bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != self.channels or x.shape[3] != 1:
            raise ModelError(f"sequence: expected [batch, {self.channels}, steps, 1], got {[*x.shape]}")
        query, rest = self.projection(x).split((self.head, 2 * self.head), dim=1)
        key, value = self._met(rest).split((self.head, self.head), dim=1)
        weights = torch.sigmoid(self.score(key * query))
        return x + self.output(self.gathered(value * weights))

    def _met(self, rest: Tensor) -> Tensor:
        """Return keys and values [batch, 2 × head, steps or 1, seen] for those of each step."""
        raise NotImplementedError


class PatternAttention(_LightAttention):
    """Attention of each step to those at fixed distances from it; zeros beyond both ends.

    Args:
        channels: of the sequence.
        head: channels of queries, keys and values.
        offsets: distances in steps, such as (-8, -4, -2, -1, 0, 1, 2, 4, 8).

    Raises:
        ModelError: there are no offsets.
    """

    def __init__(self, channels: int, head: int, offsets: Sequence[int]) -> None:
        super().__init__(channels, head, len({*offsets}))
        self.offsets = tuple(dict.fromkeys(offsets))

    def _met(self, rest: Tensor) -> Tensor:
        steps, before, behind = rest.shape[2], max(0, -min(self.offsets)), max(0, max(self.offsets))
        padded = functional.pad(rest, (0, 0, before, behind))
        return torch.cat([padded[:, :, before + at : before + at + steps] for at in self.offsets], dim=3)


class BandedAttention(PatternAttention):
    """Attention of each step to itself and to those within `reach` of it; zeros beyond both ends.

    Args:
        channels: of the sequence.
        head: channels of queries, keys and values.
        reach: steps before and behind.

    Raises:
        ModelError: the reach is negative.
    """

    def __init__(self, channels: int, head: int, reach: int) -> None:
        super().__init__(channels, head, range(-reach, reach + 1))


class LowRankAttention(_LightAttention):
    """Attention of each step to `rank` summaries, each a learned mean of a stretch of the sequence.

    Args:
        channels: of the sequence.
        head: channels of queries, keys and values.
        steps: of the sequence.
        rank: number of summaries.

    Raises:
        ModelError: a number is less than 1, or the steps cannot be cut into so many stretches of one length.
    """

    def __init__(self, channels: int, head: int, steps: int, rank: int) -> None:
        super().__init__(channels, head, rank)
        self.steps, self.stretch = steps, -(-steps // rank)
        if steps < 1 or -(-steps // self.stretch) != rank:
            raise ModelError(f"rank: stretches of one length cannot cut {steps} steps into {rank}")
        self.summary = nn.Conv2d(2 * head, 2 * head, (1, self.stretch), groups=2 * head)
        nn.init.constant_(self.summary.weight, 1 / self.stretch)
        nn.init.zeros_(self.summary.bias)

    def _met(self, rest: Tensor) -> Tensor:
        if rest.shape[2] != self.steps:
            raise ModelError(f"steps: expected a sequence of {self.steps}, got {rest.shape[2]}")
        missing = self.stretch * self.seen - self.steps
        padded = functional.pad(rest, (0, 0, 0, missing))
        # One row for each stretch, since the gradients of a convolution with strides are slow.
        return self.summary(padded.reshape(*rest.shape[:2], self.seen, self.stretch)).transpose(2, 3)
