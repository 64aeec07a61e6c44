"""Prune whole channels of a torch module in rounds, so that it becomes smaller, and faster everywhere.

Each round removes the least important channels of each group of channels that belong together, the same share of
every group or the least important ones of all. The importance of a channel is that of its weights together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from agent.errors import ModelError
from agent.optimise.graph.channels import ChannelGroup, channel_groups, without_channels
from agent.optimise.pruning.rounds import ALL_FROZEN, PruningRun
from agent.optimise.train import Pictures

MULTIPLE = 8
"""The number of channels that stay is a multiple of this, for the kernels of boards."""
_LEAST = 0.6
"""Least share of a group's channels that stays, of what would stay if each group gave the same share."""


def trained_groups(module: Any, shape: tuple[int, ...]) -> list[ChannelGroup]:
    """Return the groups of channels whose layers are all trained.

    Args:
        module: a torch module.
        shape: of one input, without the batch.

    Raises:
        ModelError: there is none, or the module cannot be traced.
    """
    layers = dict(module.named_modules())
    found = [
        group
        for group in channel_groups(module, shape)
        if all(layers[one.layer].weight.requires_grad for one in group.members if one.side == "out")
    ]
    if not found:
        raise ModelError(ALL_FROZEN.format("group of channels"))
    return found


def channels_after(channels: int, share: float, multiple: int) -> int:
    """Return how many of a group's channels stay.

    Args:
        channels: of the group, at first.
        share: of them that goes, 0..1.
        multiple: the number is rounded to a multiple of this, but never to 0 or to more than there are.
    """
    rounded = multiple * round(channels * (1 - share) / multiple)
    return min(channels, max(rounded, min(multiple, channels)))


def channels_over_groups(
    scores: Mapping[str, Any], channels: Mapping[str, int], share: float, least: float, multiple: int
) -> dict[str, int]:
    """Return how many channels of each group stay if those of all groups are compared.

    Args:
        scores: importance of the channels that each group still has.
        channels: of each group, at first.
        share: of all channels that goes, 0..1.
        least: share of each group's channels that stays in any case, 0..1.
        multiple: numbers are rounded to multiples of this, so that all together stay as near as they can to what
            `share` says; a group that has fewer keeps what it has.
    """
    held = {
        name: min(len(one), multiple * math.ceil(channels[name] * least / multiple))
        for name, one in scores.items()
    }
    wanted = max(0, round(sum(channels.values()) * (1 - share)) - sum(held.values()))
    # Of equal ones, as of channels that do nothing, the same share of each group goes.
    others = [
        (-score, place / len(one), name)
        for name, one in scores.items()
        for place, score in enumerate(one.sort(descending=True)[0].tolist())
        if place >= held[name]
    ]
    more = Counter(name for _, _, name in sorted(others)[:wanted])
    exact = {name: count + more[name] for name, count in held.items()}
    return _to_multiples(exact, {name: len(one) for name, one in scores.items()}, multiple)


def _to_multiples(exact: Mapping[str, int], most: Mapping[str, int], multiple: int) -> dict[str, int]:
    """Round numbers to multiples, those with the largest rests up, so that their sum stays nearly the same."""
    kept = {name: min(most[name], multiple * (count // multiple)) or most[name] for name, count in exact.items()}
    missing = sum(exact.values()) - sum(kept.values())
    for name in sorted(exact, key=lambda one: kept[one] - exact[one]):
        more = min(multiple, most[name] - kept[name])
        if 0 < more <= missing + multiple // 2:
            kept[name] += more
            missing -= more
    return kept


def _check_enough(channels: Mapping[str, int], target: float) -> None:
    """Check that channels can go, so that nobody trains for nothing."""
    if all(channels_after(count, target, MULTIPLE) >= count for count in channels.values()):
        has = ", ".join(f"{name}: {count}" for name, count in channels.items())
        raise ModelError(
            f"target = {target:g}: no channels can go, because what stays of a layer is a multiple of "
            f"{MULTIPLE}, and there are {has}"
        )


class ChannelPruning(PruningRun):
    """Channels that are still there, and the importance of these; the module that is given is not changed."""

    def __init__(self, module: Any, pictures: Pictures, *given: Any) -> None:
        super().__init__(module, pictures, *given)
        self._whole, self.module = module, without_channels(module, {})
        height, width, depth = pictures.shape[1:]
        self._shape = (depth, height, width)
        self._channels = {group.name: group.channels for group in trained_groups(module, self._shape)}
        _check_enough(self._channels, self.recipe.target)
        self._kept = {name: torch.arange(count) for name, count in self._channels.items()}
        self._groups: dict[str, ChannelGroup] = {}
        self._find_groups()

    def _find_groups(self) -> None:
        found = {group.name: group for group in channel_groups(self.module, self._shape)}
        self._groups = {name: found[name] for name in self._channels}
        self.sums = {name: torch.zeros(group.channels) for name, group in self._groups.items()}

    @property
    def gone(self) -> float:
        return 1 - sum(map(len, self._kept.values())) / sum(self._channels.values())

    @property
    def layers(self) -> dict[str, float]:
        return {name: 1 - len(kept) / self._channels[name] for name, kept in self._kept.items()}

    def remove(self, share: float) -> None:
        scores = self.scores()
        counts, chosen = self._counts(scores, share), {}
        for name, group in self._groups.items():
            chosen[group] = scores[name].topk(min(counts[name], group.channels))[1].sort()[0]
            self._kept[name] = self._kept[name][chosen[group]]
        self.module = without_channels(self.module, chosen)
        self._find_groups()

    def _counts(self, scores: Mapping[str, Any], share: float) -> dict[str, int]:
        """Return how many channels of each group stay in this round."""
        if not self.recipe.over_layers:
            return {name: channels_after(count, share, MULTIPLE) for name, count in self._channels.items()}
        return channels_over_groups(scores, self._channels, share, _LEAST * (1 - self.recipe.target), MULTIPLE)

    def _weights(self, name: str) -> list[Any]:
        """Return the weights of a group whose first axis is its channels."""
        layers = dict(self.module.named_modules())
        members = [one for one in self._groups[name].members if one.side != "in"]
        return [weight for one in members if (weight := layers[one.layer].weight) is not None]

    def after_backward(self, module: Any) -> None:
        if not self.recipe.needs_gradients:
            return
        for name in self._groups:
            for weight in self._weights(name):
                if weight.grad is not None:
                    each = (weight.grad * weight.detach()).abs()
                    self.sums[name] += each.reshape(len(each), -1).sum(1).cpu()

    def sizes(self) -> dict[str, Any]:
        return {name: self._norms(name) for name in self._groups}

    def _norms(self, name: str) -> Any:
        """Return the sum of |weight| of each channel's filters."""
        filters = [weight.detach() for weight in self._weights(name) if weight.ndim > 1]
        return sum(weight.abs().flatten(1).sum(1).cpu() for weight in filters)

    def state(self) -> dict[str, Any]:
        return {**super().state(), "kept": self._kept}

    def load_state(self, state: dict[str, Any]) -> None:
        self._kept = {name: kept.cpu() for name, kept in state["kept"].items()}
        chosen = {self._groups[name]: kept for name, kept in self._kept.items()}
        self.module = without_channels(self._whole, chosen)
        self._find_groups()
        super().load_state(state)
        self.sums = {name: one.cpu() for name, one in self.sums.items()}
