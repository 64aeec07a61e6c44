"""Processes that train one network together, as `torchrun` starts them, on one machine or several.

Each takes a share of every batch; gradients and the statistics of batch norms are the mean of all. The first
process alone writes files; the others do the same steps, and keep nothing.
"""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent.optimise.checkpoint import Resumable


def is_first() -> bool:
    """Return False in a process that `torchrun` has started beside the first one."""
    return os.environ.get("RANK", "0") == "0"


class Workers:
    """All processes of a training, or this one alone."""

    def __init__(self, number: int = 0, count: int = 1) -> None:
        """Name this process.

        Args:
            number: of this one, from 0.
            count: of all.
        """
        self.number, self.count = number, count

    def share(self, indices: Any) -> Any:
        """Return the part of a batch that this process takes; all parts are as large."""
        return indices[self.number : len(indices) // self.count * self.count : self.count]

    def agree(self, run: Resumable) -> None:
        """Let all runs go on from the state of the first process's."""
        if self.count > 1:
            import torch.distributed

            state = [run.state() if self.number == 0 else {}]
            torch.distributed.broadcast_object_list(state)
            run.load_state(state[0])

    def average(self, module: Any) -> None:
        """Set gradients and statistics of a module to the mean of all processes."""
        if self.count > 1:
            import torch
            from torch import distributed

            grown = [one.grad for one in module.parameters() if one.grad is not None]
            values = [*grown, *(one for one in module.buffers() if one.is_floating_point())]
            flat = torch.cat([one.reshape(-1).float() for one in values])
            distributed.all_reduce(flat)
            for one, mean in zip(values, (flat / self.count).split([one.numel() for one in values]), strict=True):
                one.copy_(mean.reshape(one.shape))


@cache
def joined() -> Workers:
    """Join the processes that `torchrun` has started with this one; the same object each time."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Workers()
    from torch import distributed

    distributed.init_process_group("gloo")
    return Workers(distributed.get_rank(), count)
