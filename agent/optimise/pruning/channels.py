"""Prune whole channels of a torch module in rounds, so that it becomes smaller, and faster everywhere.

Each round removes the least important channels of each group of channels that belong together, the same share of
every group or the least important ones of all, and trains for some steps. The importance of a channel is
|gradient · weight|, summed over its weights and the steps of a round.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec.structs import replace

from agent.errors import ModelError
from agent.optimise.checkpoint import read_checkpoint, run_key, write_checkpoint
from agent.optimise.factory import fastest_device
from agent.optimise.graph.channels import ChannelGroup, channel_groups, without_channels
from agent.optimise.pruning.connections import (
    PruneHistory,
    PrunePoint,
    PruneSettings,
    anneal_settings,
    matching,
    round_settings,
    weight_importance,
)
from agent.optimise.pruning.teacher import to_learn
from agent.optimise.recipe import NEED_GRADIENTS
from agent.optimise.train import (
    Labels,
    Objective,
    Pictures,
    Progress,
    Test,
    TrainingSettings,
    evaluate,
    fit,
)
from agent.structs import from_json

ROUND_FACTOR = 0.25
"""`PruneSettings.round_factor` for channels: what is left of a smaller module has to be learned more anew."""
_LEAST = 0.6
"""Least share of a group's channels that stays, of what would stay if each group gave the same share."""


def chosen_groups(module: Any, shape: tuple[int, ...], patterns: Sequence[str]) -> list[ChannelGroup]:
    """Return the groups of channels whose layers are all trained and whose names match.

    Args:
        module: a torch module.
        shape: of one input, without the batch.
        patterns: of the first layer of each group, with `*`, `?` and `[…]`.

    Raises:
        ModelError: a pattern matches no group.
    """
    groups, _ = trained_groups(module, shape)
    chosen = matching((group.name for group in groups), patterns, "group of channels")
    return [group for group in groups if group.name in chosen]


def trained_groups(module: Any, shape: tuple[int, ...]) -> tuple[list[ChannelGroup], list[str]]:
    """Return the groups of channels whose layers are all trained, and the names of the others; see there."""
    layers = dict(module.named_modules())
    groups: dict[bool, list[ChannelGroup]] = {True: [], False: []}
    for group in channel_groups(module, shape):
        made_by = (layers[one.layer] for one in group.members if one.side == "out")
        groups[all(one.weight.requires_grad for one in made_by)].append(group)
    return groups[True], [group.name for group in groups[False]]


def prune_channels(
    module: Any,
    pictures: Pictures,
    labels: Labels,
    settings: PruneSettings,
    training: TrainingSettings,
    *,
    folder: Path | None = None,
    test: Test | None = None,
    objective: Objective | None = None,
    progress: Progress | None = None,
) -> tuple[Any, PruneHistory]:
    """Remove channels of a trained module.

    Args:
        module: see `agent.optimise.train.fit`; it is not changed.
        pictures: see there.
        labels: see there.
        settings: see `PruneSettings`.
        training: settings of all steps; its schedule and number of epochs are not used.
        folder: existing folder for checkpoints, from which an interrupted run goes on to the same bytes; None:
            it cannot go on.
        test: pictures and labels on which the module is scored after each round and each epoch of the anneal.
        objective: see `fit`; one with a teacher is not used.
        progress: called after each training step of a round, then of the anneal.

    Returns:
        The smaller module, and what happened.

    Raises:
        ModelError: a pattern matches no channels, none can go, the module cannot be traced, or see `fit`.
        StorageError: a checkpoint cannot be read or written.
    """
    run = _ChannelPruning(module, pictures, labels, settings, training, objective, progress)
    if folder is not None:
        run.restore(folder / "rounds.checkpoint")
    run.warm_up(test)
    while run.round < settings.rounds:
        run.next_round(test)
        if folder is not None:
            run.save(folder / "rounds.checkpoint")
    run.anneal(folder and folder / "anneal.checkpoint", test)
    layers = {name: 1 - len(kept) / run.channels[name] for name, kept in run.kept.items()}
    return run.module.eval(), PruneHistory(points=tuple(run.points), layers=layers)


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


def _check_enough(channels: Mapping[str, int], settings: PruneSettings) -> None:
    """Check that channels can go, so that nobody trains for nothing."""
    multiple = settings.multiple
    if all(channels_after(count, settings.target, multiple) >= count for count in channels.values()):
        has = ", ".join(f"{name}: {count}" for name, count in channels.items())
        raise ModelError(
            f"target = {settings.target:g}: no channels can go, because what stays of a layer is a multiple of "
            f"{multiple}, and there are {has}"
        )


class _ChannelPruning:
    """State of a run between two rounds."""

    def __init__(
        self,
        module: Any,
        pictures: Pictures,
        labels: Labels,
        settings: PruneSettings,
        training: TrainingSettings,
        objective: Objective | None,
        progress: Progress | None,
    ) -> None:
        self.settings, self.training = settings, training
        self.whole = module.to(fastest_device())
        rows, objective = to_learn(module, pictures, labels, training, settings.teacher, objective)
        self.data = pictures, rows
        self.options: dict[str, Any] = {"objective": objective, "progress": progress}
        self.module = without_channels(module, {})
        height, width, depth = pictures.shape[1:]
        self.shape = (depth, height, width)
        groups = chosen_groups(module, self.shape, settings.layers)
        self.channels = {group.name: group.channels for group in groups}
        _check_enough(self.channels, settings)
        self.kept = {name: torch.arange(count) for name, count in self.channels.items()}
        rounds = replace(settings, anneal_epochs=0.0, anneal_factor=1.0)  # the anneal has a checkpoint of its own
        self.key = run_key(module, pictures, labels, rounds, training)
        self.groups: dict[str, ChannelGroup] = {}
        self.sums: dict[str, Any] = {}
        self._find_groups()
        self.round = 0
        self.points: list[PrunePoint] = []

    def _find_groups(self) -> None:
        found = {group.name: group for group in channel_groups(self.module, self.shape)}
        self.groups = {name: found[name] for name in self.channels}
        self.sums = {name: torch.zeros(group.channels) for name, group in self.groups.items()}

    def warm_up(self, test: Test | None) -> None:
        if not self.points:
            self._score("dense", 0, test)
            self._train_round()

    def next_round(self, test: Test | None) -> None:
        self.round += 1
        scores = self._scores()
        share = self.settings.target * self.round / self.settings.rounds
        counts, chosen = self._counts(scores, share), {}
        for name, group in self.groups.items():
            chosen[group] = scores[name].topk(min(counts[name], group.channels))[1].sort()[0]
            self.kept[name] = self.kept[name][chosen[group]]
        self.module = without_channels(self.module, chosen)
        self._find_groups()
        self._train_round()
        self._score("round", self.round, test)

    def _counts(self, scores: Mapping[str, Any], share: float) -> dict[str, int]:
        """Return how many channels of each group stay in this round."""
        multiple = self.settings.multiple
        if not self.settings.over_layers:
            return {name: channels_after(count, share, multiple) for name, count in self.channels.items()}
        return channels_over_groups(scores, self.channels, share, _LEAST * (1 - self.settings.target), multiple)

    def _train_round(self) -> None:
        if not self.settings.round_steps:
            return
        pictures, labels = self.data
        settings = round_settings(self.training, self.settings, len(labels), self.round)
        torch.manual_seed(settings.seed)
        fit(self.module, pictures, labels, settings, after_backward=self._sum_up, **self.options)

    def anneal(self, checkpoint: Path | None, test: Test | None) -> None:
        if not self.settings.anneal_epochs:
            return
        settings = anneal_settings(self.training, self.settings)
        torch.manual_seed(settings.seed)
        # The key of the rounds tells other runs; of the same rounds, another anneal begins anew.
        more = {**self.options, "checkpoint": checkpoint, "renews": True, "test": test}
        history = fit(self.module, *self.data, settings, **more)
        gone = self._share_gone()
        self.points += [PrunePoint("anneal", one.number, gone, one.accuracy) for one in history.epochs]

    def _weights(self, name: str) -> list[Any]:
        """Return the weights of a group whose first axis is its channels."""
        layers = dict(self.module.named_modules())
        members = [one for one in self.groups[name].members if one.side != "in"]
        return [weight for one in members if (weight := layers[one.layer].weight) is not None]

    def _sum_up(self, _module: Any) -> None:
        if self.settings.importance not in NEED_GRADIENTS:
            return
        for name in self.groups:
            for weight in self._weights(name):
                if weight.grad is not None:
                    each = weight_importance(weight.grad, weight.detach(), self.settings.importance)
                    self.sums[name] += each.reshape(len(each), -1).sum(1).cpu()

    def _scores(self) -> dict[str, Any]:
        if self.settings.importance == "random":
            draw = torch.Generator().manual_seed(self.training.seed * 1_000_003 + self.round)
            return {name: torch.rand(group.channels, generator=draw) for name, group in self.groups.items()}
        if self.settings.importance == "weight":
            return {name: self._norms(name) for name in self.groups}
        return self.sums

    def _norms(self, name: str) -> Any:
        """Return the sum of |weight| of each channel's filters."""
        filters = [weight.detach() for weight in self._weights(name) if weight.ndim > 1]
        return sum(weight.abs().flatten(1).sum(1).cpu() for weight in filters)

    def _share_gone(self) -> float:
        return 1 - sum(map(len, self.kept.values())) / sum(self.channels.values())

    def _score(self, stage: str, number: int, test: Test | None) -> None:
        normalisation = self.training.normalisation
        accuracy = None if test is None else evaluate(self.module, *test, normalisation=normalisation)
        self.points.append(PrunePoint(stage, number, self._share_gone(), accuracy))

    def save(self, path: Path) -> None:
        state = {
            "kept": self.kept,
            "module": self.module.state_dict(),
            "sums": self.sums,
            "round": self.round,
            "points": msgspec.json.encode(self.points).decode(),
        }
        write_checkpoint(path, self.key, state)

    def restore(self, path: Path) -> None:
        state = read_checkpoint(path, self.key)
        if state is None:
            self.save(path)  # a disk that refuses it is found now
            return
        self.kept = state["kept"]
        self.module = without_channels(self.whole, {self.groups[name]: kept for name, kept in self.kept.items()})
        self.module.load_state_dict(state["module"])
        self._find_groups()
        self.sums, self.round = state["sums"], state["round"]
        self.points = from_json(state["points"], list[PrunePoint])
