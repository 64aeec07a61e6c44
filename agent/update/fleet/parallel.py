"""Run the same command on many boards, some at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from msgspec import Struct

from agent.errors import VedetteError, reason_of
from agent.update.fleet.inventory import FleetBoard
from agent.update.fleet.ssh import Fault, Reply, Transport

Item = TypeVar("Item")
Result = TypeVar("Result")


async def run_parallel(
    items: Iterable[Item], work: Callable[[Item], Awaitable[Result]], *, at_once: int
) -> list[Result]:
    """Run `work` on each item; return the results in order.

    Args:
        items: such as boards.
        work: returns the failure of one item as its result. An exception cancels the other items and is raised.
        at_once: items at the same time.
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
    """Answer of one board to a command.

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
    """Run a command on boards and return their answers.

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
    """Return a failure of this board or its connection as its answer."""
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
