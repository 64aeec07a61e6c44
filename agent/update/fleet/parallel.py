"""Asking: the same command to many boards at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from msgspec import Struct

from agent.errors import VedetteError, reason_of
from agent.update.fleet.inventory import FleetBoard
from agent.update.fleet.ssh import Fault, Reply, Transport

# At once: the same for many boards, some at a time.

Item = TypeVar("Item")
Result = TypeVar("Result")


async def run_parallel(
    items: Iterable[Item], work: Callable[[Item], Awaitable[Result]], *, at_once: int
) -> list[Result]:
    """What came of each, in their order.

    Args:
        items: such as boards.
        work: on one of them. What is wrong with that one is to be its result: an exception is for what ends it
            for all, comes out as it is, and the work on the others is cancelled.
        at_once: on how many at the same time.
    """
    gate = asyncio.Semaphore(at_once)

    async def one(item: Item) -> Result:
        async with gate:
            return await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(item)) for item in items]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


class BoardAnswer(Struct, frozen=True, omit_defaults=True):
    """Of one board.

    Attributes:
        board: its name.
        fault: empty: it has answered and done it.
        reason: in words.
        code: exit code of the command. out: what it printed.
    """

    board: str
    fault: Fault | None = None
    reason: str = ""
    code: int = 0
    out: str = ""


async def ask_all(
    transport: Transport,
    boards: Iterable[FleetBoard],
    command: str,
    *,
    at_once: int,
    patience_s: float = 120.0,
    show: Callable[[BoardAnswer], None] = lambda answer: None,
) -> list[BoardAnswer]:
    """What each board says to a command.

    Args:
        transport: to them.
        boards: to ask.
        command: as `vedette-ssh` knows it.
        at_once: boards at the same time.
        patience_s: with each of them.
        show: is given each answer as it comes.

    Raises:
        FleetError: there is no ssh here.
    """

    async def ask(board: FleetBoard) -> BoardAnswer:
        answer = await _ask(transport, board, command, patience_s)
        show(answer)
        return answer

    return await run_parallel(boards, ask, at_once=at_once)


async def _ask(transport: Transport, board: FleetBoard, command: str, patience_s: float) -> BoardAnswer:
    """Whatever is wrong with this board or on the way to it is its answer."""
    try:
        return _answer(board, await transport.ask(board, command, patience_s))
    except VedetteError:
        raise
    except Exception as error:
        return BoardAnswer(board.name, "failed", f"it could not be asked: {reason_of(error)}")


def _answer(board: FleetBoard, reply: Reply) -> BoardAnswer:
    trouble = reply.trouble
    if trouble is None:
        return BoardAnswer(board.name, out=reply.out)
    return BoardAnswer(board.name, trouble.fault, trouble.reason, reply.code, reply.out)
