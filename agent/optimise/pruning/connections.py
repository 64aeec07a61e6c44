"""Prune connections of a torch module in rounds: the least important weights of all layers become zero."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from agent.errors import ModelError
from agent.optimise.pruning.rounds import ALL_FROZEN, PruningRun

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
_KEPT = 0.02
"""Share of the weights of each layer that stay in any case: a layer without any would end the signal."""


def prunable(module: Any) -> dict[str, Any]:
    """Return the weights of a module's convolutions and linear layers that are trained, by the layer's name.

    Raises:
        ModelError: none is trained.
    """
    layers = ((name, one.weight) for name, one in module.named_modules() if isinstance(one, _LAYERS))
    found = {name: weight for name, weight in layers if weight.requires_grad}
    if not found:
        raise ModelError(ALL_FROZEN.format("layer"))
    return found


class ConnectionPruning(PruningRun):
    """Masks of the connections that are still there, and the importance of all; the module is changed."""

    def __init__(self, module: Any, *given: Any) -> None:
        super().__init__(module, *given)
        self._weights = prunable(module)
        self._masks = {name: torch.ones_like(one, dtype=torch.bool) for name, one in self._weights.items()}
        self.sums = {name: torch.zeros_like(one) for name, one in self._weights.items()}

    @property
    def gone(self) -> float:
        return sparsity_of(self._masks)

    @property
    def layers(self) -> dict[str, float]:
        return {name: float((~mask).float().mean()) for name, mask in self._masks.items()}

    def remove(self, share: float) -> None:
        cut(self._masks, self.scores(), share)
        self.after_step(self.module)
        for one in self.sums.values():
            one.zero_()

    def after_backward(self, module: Any) -> None:
        """Sum up importance, and stop the gradients of weights that are gone."""
        for name, weight in self._weights.items():
            gradient = weight.grad
            if self.recipe.needs_gradients:
                self.sums[name] += (gradient * weight.detach()).abs()
            gradient.mul_(self._masks[name])

    def after_step(self, module: Any) -> None:
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.mul_(self._masks[name])

    def sizes(self) -> dict[str, Any]:
        return {name: weight.detach().abs() for name, weight in self._weights.items()}

    def state(self) -> dict[str, Any]:
        return {**super().state(), "masks": self._masks}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self._masks = state["masks"]


def cut(masks: Mapping[str, Any], scores: Mapping[str, Any], target: float) -> None:
    """Clear the mask of the weights of least importance, in place.

    Of each layer a small share stays in any case.

    Args:
        masks: True for weights that are still there, by layer.
        scores: importance of each weight, of the same shapes.
        target: share of all weights whose mask is to be cleared, 0..1; those that are clear already count.
    """
    free = {name: mask & ~_kept(mask, scores[name]) for name, mask in masks.items()}
    ranked = torch.cat([torch.where(free[name], scores[name], math.inf).flatten().cpu() for name in masks])
    gone_already = sum(int((~mask).sum()) for mask in masks.values())
    count = min(round(target * len(ranked)) - gone_already, sum(int(one.sum()) for one in free.values()))
    gone = torch.zeros(len(ranked), dtype=torch.bool)
    gone[ranked.topk(max(count, 0), largest=False).indices] = True
    for mask, part in zip(masks.values(), gone.split([mask.numel() for mask in masks.values()]), strict=True):
        mask &= ~part.reshape(mask.shape).to(mask.device)


def _kept(mask: Any, scores: Any) -> Any:
    """Return a mask of the weights of a layer that stay in any case: by number, since scores may be equal."""
    count = min(max(1, math.ceil(_KEPT * mask.numel())), int(mask.sum()))
    kept = torch.zeros_like(mask).flatten()
    kept[torch.where(mask, scores, -math.inf).flatten().topk(count).indices] = True
    return kept.reshape(mask.shape)


def sparsity_of(masks: Mapping[str, Any]) -> float:
    """Return the share of all weights that are masked, 0..1."""
    return sum(int((~one).sum()) for one in masks.values()) / sum(int(one.numel()) for one in masks.values())
