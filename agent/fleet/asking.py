"""Asking: the same command to many boards at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from msgspec import Struct

from agent.fleet.inventory import Board
from agent.fleet.transport import Reply, Transport
from agent.fleet.trouble import Fault


class Answer(Struct, frozen=True, omit_defaults=True):
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
    boards: Iterable[Board],
    command: str,
    *,
    at_once: int,
    patience_s: float = 120.0,
    show: Callable[[Answer], None] = lambda answer: None,
) -> list[Answer]:
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
    gate = asyncio.Semaphore(at_once)

    async def one(board: Board) -> Answer:
        async with gate:
            answer = _answer(board, await transport.ask(board, command, patience_s))
            show(answer)
            return answer

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(board)) for board in boards]
    return [task.result() for task in tasks]


def _answer(board: Board, reply: Reply) -> Answer:
    trouble = reply.trouble
    if trouble is None:
        return Answer(board.name, out=reply.out)
    return Answer(board.name, trouble.fault, trouble.reason, reply.code, reply.out)
