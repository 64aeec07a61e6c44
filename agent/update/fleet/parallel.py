"""Asking: the same command to many boards at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec import Struct

from agent.errors import VedetteError, reason_of
from agent.fleet.atonce import for_each
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

    async def ask(board: Board) -> Answer:
        answer = await _ask(transport, board, command, patience_s)
        show(answer)
        return answer

    return await for_each(boards, ask, at_once=at_once)


async def _ask(transport: Transport, board: Board, command: str, patience_s: float) -> Answer:
    """Whatever is wrong with this board or on the way to it is its answer."""
    try:
        return _answer(board, await transport.ask(board, command, patience_s))
    except VedetteError:
        raise
    except Exception as error:
        return Answer(board.name, "failed", f"it could not be asked: {reason_of(error)}")


def _answer(board: Board, reply: Reply) -> Answer:
    trouble = reply.trouble
    if trouble is None:
        return Answer(board.name, out=reply.out)
    return Answer(board.name, trouble.fault, trouble.reason, reply.code, reply.out)
