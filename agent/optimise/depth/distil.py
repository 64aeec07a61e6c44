"""The loss of a network with several exits: labels at each, and the last exit teaches the others.

Source of the self-distillation: Zhang et al., Be Your Own Teacher, https://arxiv.org/abs/1905.08094.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.nn import functional

Tensor = Any
TAUGHT = 0.5
"""Weight of the last exit's answers against the labels, in the loss of the others."""
TEMPERATURE = 2.0
"""Divisor of the logits when exits are compared, so that small probabilities count, too."""


def exit_loss(
    logits: Sequence[Tensor],
    labels: Tensor,
    *,
    taught: float = TAUGHT,
    temperature: float = TEMPERATURE,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the sum of the losses of all exits.

    Args:
        logits: of each exit, float [batch, classes]; shallow first. The last one is the teacher, and learns from
            the labels alone.
        labels: classes, int64 [batch].
        taught: weight of the teacher, 0..1; the labels have the rest.
        temperature: of teacher and pupils.
        label_smoothing: share of the labels that is spread over all classes.
    """
    *early, last = (one.float() for one in logits)
    teacher = functional.softmax(last.detach() / temperature, dim=1)
    loss = functional.cross_entropy(last, labels, label_smoothing=label_smoothing)
    for own in early:
        logs = functional.log_softmax(own / temperature, dim=1)
        distance = functional.kl_div(logs, teacher, reduction="batchmean") * temperature**2
        right = functional.cross_entropy(own, labels, label_smoothing=label_smoothing)
        loss = loss + (1 - taught) * right + taught * distance
    return loss
