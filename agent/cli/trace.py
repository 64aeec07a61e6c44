"""`vedette trace`: record what the threads of a running device do, as a file for Perfetto or Chrome."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.options import broker_options, device_name, duration, this_device
from agent.cli.output import print_json
from agent.errors import BrokerError, CommandError
from agent.text import plain, plural

if TYPE_CHECKING:
    from agent.comms.consumer.client import BrokerOptions

_PATIENCE_S = 20.0
"""Longest wait for the answer after the end of the trace, s."""
_END_S = 3.0
"""Longest wait for the end of a trace that Ctrl-C has interrupted, s."""
_LARGEST = 64 * 1024 * 1024
"""Largest trace that is unpacked, bytes: the device is trusted no further than that."""
_SHORTEST_S, _LONGEST_S = 0.001, 120.0

_HELP = """Record what the threads of a running device do, stage by stage, and write a file for Perfetto.

\b
  vedette trace --for 10s --device porch
  vedette trace --for 2s --output slow.json.gz

Open the file at ui.perfetto.dev, or in Chrome at chrome://tracing. Each thread has a row: a stream's with its
`wait` for a picture and each `frame` with gate, prepare, infer, decode and track; `encode` of clips; `commit` of
events to the disk; `send` to the broker. The device records nothing, and loses no time, while no trace runs.
Ctrl-C ends a trace at the device, too. --end ends one that was left behind.

A trace of many fast streams may be too large for one message: then its first part is written, and that is said.
"""
_CODES = "Exit code: 0 done, 1 refused or no broker, 2 wrong usage, 3 no answer."


def _length(context: click.Context, option: click.Parameter, seconds: float) -> float:
    if not _SHORTEST_S <= seconds <= _LONGEST_S:
        raise click.BadParameter(f"expected {_SHORTEST_S:g}s to {_LONGEST_S:.0f}s, found {seconds:g}s")
    return seconds


@click.command(help=_HELP, epilog=_CODES)
@broker_options
@click.option(
    "--device", callback=lambda c, o, t: t and device_name(c, o, t), help="Default: this machine's name."
)
@click.option(
    "--for",
    "seconds",
    type=duration,
    default="10s",
    callback=_length,
    show_default=True,
    metavar="DURATION",
    help="Length of the trace, at most 2m.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("trace.json"),
    show_default=True,
    help="File to write; one that ends with .gz stays compressed.",
)
@click.option("--end", is_flag=True, help="End the trace that another program has begun; write no file.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def trace(
    access: BrokerOptions,
    prefix: str,
    device: str | None,
    seconds: float,
    output: Path,
    end: bool,
    as_json: bool,
) -> None:
    """Run `vedette trace`; `_HELP` is its help text."""
    from agent.comms.consumer.client import send_command
    from agent.comms.topics import Topics

    _check_folder(output)
    topics = Topics(prefix, device or this_device())
    if end:
        answer = send_command(access, topics, "trace", {"seconds": 0}, _END_S)
        if not answer.ok:
            raise CommandError(f"{topics.device}: {plain(answer.reason)}")
        click.echo(f"{topics.device}: {plain(answer.reason or 'the trace has ended')}")
        return
    click.echo(f"{topics.device}: recording for {seconds:g} s …", err=True)
    with _interrupted(lambda: send_command(access, topics, "trace", {"seconds": 0}, _END_S)):
        answer = send_command(access, topics, "trace", {"seconds": seconds}, seconds + _PATIENCE_S)
    if not answer.ok:
        raise CommandError(f"{topics.device}: {plain(answer.reason)}")
    threads = write_trace(output, answer.body.get("trace"))
    _print(output, answer.body, seconds, threads, as_json=as_json)


@contextmanager
def _interrupted(end: Callable[[], object]) -> Iterator[None]:
    """Call `end` if Ctrl-C or SIGTERM interrupts the context; no further one interrupts that."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        with suppress(BrokerError):
            end()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_folder(output: Path) -> None:
    folder = output.absolute().parent
    if not folder.is_dir():
        raise click.BadParameter(f"there is no folder {folder}", param_hint="--output")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise click.BadParameter(f"{folder} cannot be written", param_hint="--output")


def write_trace(output: Path, packed: object) -> int:
    """Write the file of a device's answer; return the number of its threads.

    Raises:
        BrokerError: the answer holds no trace. StorageError: the file cannot be written.
    """
    import base64
    import zlib

    from agent.errors import NO_JSON
    from agent.storage.files import write_atomic
    from agent.structs import from_json

    try:
        compressed = base64.b64decode(str(packed), validate=True)
        unpacker = zlib.decompressobj(wbits=31)  # of gzip
        content = unpacker.decompress(compressed, _LARGEST)
        if not unpacker.eof:
            raise ValueError("it is cut off, or too large")
        events = from_json(content, dict[str, Any])["traceEvents"]
        threads: int = sum(one["name"] == "thread_name" for one in events)
    except (*NO_JSON, zlib.error, KeyError, TypeError) as error:
        raise BrokerError(f"the device's answer holds no trace that this version can read: {error}") from None
    write_atomic(output, compressed if output.suffix == ".gz" else content)
    return threads


def _print(output: Path, body: dict[str, Any], seconds: float, threads: int, *, as_json: bool) -> None:
    count, dropped, covered_s = (body.get(key, 0) for key in ("spans", "dropped", "covered_s"))
    if as_json:
        print_json(
            {"file": str(output), "spans": count, "threads": threads, "dropped": dropped, "covered_s": covered_s}
        )
        return
    click.echo(f"{output}: {count} spans of {plural(threads, 'thread')}; open it at ui.perfetto.dev")
    if dropped:
        click.echo(
            f"{dropped} spans of the {seconds:g} s were left out, since they do not fit into one message: the "
            f"file has the first {covered_s} s",
            err=True,
        )
