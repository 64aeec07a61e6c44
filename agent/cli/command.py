"""`vedette command`: send a command to a device over the broker; `vedette trace`: record what its threads do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.options import broker_options, device_name, duration, this_device
from agent.cli.output import print_json
from agent.errors import BrokerError, CommandError
from agent.text import plain, plural

if TYPE_CHECKING:
    from agent.comms.consumer import BrokerOptions, CommandReply


_VERBS = ("status", "reload", "doctor")
_PATIENCE_S, _DOCTOR_S = 10.0, 310.0
_REFUSED = 1


_HELP = """Command a device, and print its answer.

\b
  vedette command porch status | reload | doctor
  vedette command porch front enabled off
  vedette command porch front threshold 0.6
  vedette command porch front threshold default
  vedette command porch front variant 256
  vedette command porch front zone/drive off
  vedette command porch front line/gate off
  vedette command porch front filter/cats off
  vedette command porch front only_moving on
  vedette command porch front motion_masks off
  vedette command porch front reset gate
  vedette command porch front snapshot
  vedette command porch front record 20s
  vedette command porch front inspect
  vedette command porch front inspect A-1042
  vedette command porch front accept

`reset` counts the crossings of a line anew, without a name those of all lines of the stream.

`accept` takes what a camera sees now for its right view, after it was moved.

`default` restores the value of the configuration file. A setting survives restarts; it lapses when the same key
is changed in the file.

The broker is that of --host, with its login, not that of a configuration file.
"""
_CODES = "Exit code: 0 done, 1 refused or no broker, 2 wrong usage, 3 no answer."


@click.command(help=_HELP, epilog=_CODES)
@broker_options
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
@click.option(
    "--timeout", "timeout_s", type=duration, metavar="DURATION", help="Time to wait for the answer; default: 10s."
)
@click.argument("device", callback=device_name)
@click.argument("words", nargs=-1, required=True, metavar="[STREAM] WHAT [VALUE]")
@click.pass_context
def command(
    ctx: click.Context,
    access: BrokerOptions,
    prefix: str,
    as_json: bool,
    timeout_s: float | None,
    device: str,
    words: tuple[str, ...],
) -> None:
    """Run `vedette command`; `_HELP` is its help text."""
    from agent.comms.consumer import send_command
    from agent.comms.topics import Topics

    verb, body = _request(words)
    patience_s = timeout_s or (_DOCTOR_S if verb == "doctor" else _PATIENCE_S)
    answer = send_command(access, Topics(prefix, device), verb, body, patience_s)
    _print(verb, answer, as_json=as_json)
    ctx.exit(0 if answer.ok else _REFUSED)


def _request(words: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    if len(words) == 1 and words[0] in _VERBS:
        return words[0], {}
    stream, what, value = (*words, "", "")[:3]
    from agent.comms.commands import VERBS

    if len(words) == 2 and what in VERBS and what not in ("set", "record"):
        return what, {"stream": stream}
    if what in ("snapshot", "accept"):
        raise click.UsageError(f"{what} takes no value")
    if len(words) != 3:
        raise click.UsageError(
            f"{' '.join(words)!r} is no command: expected {', '.join(_VERBS)}, or STREAM WHAT VALUE; see --help"
        )
    if what in ("inspect", "reset"):
        return what, {"stream": stream, "part" if what == "inspect" else "line": value}
    if what == "record":
        return "record", {"stream": stream, "seconds": duration(value)}
    return "set", {"stream": stream, "what": what, "value": value}


def _print(verb: str, answer: CommandReply, *, as_json: bool) -> None:
    if as_json:
        print_json(answer.body)
    elif not answer.ok:
        click.echo(f"refused: {plain(answer.reason)}", err=True)
    elif verb == "doctor":
        _print_report(answer.body.get("report"))
    elif verb == "status":
        _print_status(answer.body)
    else:
        click.echo(plain(_describe(verb, answer)))


def _describe(verb: str, answer: CommandReply) -> str:
    if verb == "record" and not answer.reason:
        return f"recording to {answer.body.get('path')}"
    more = [str(answer.body[key]) for key in ("topic", "path", "part") if answer.body.get(key)]
    return ": ".join([answer.reason or "done", *more])


def _print_report(report: Any) -> None:
    import msgspec

    from agent.cli.checks import Report
    from agent.cli.doctor import print_report
    from agent.structs import convert

    try:
        print_report(convert(report, Report))
    except msgspec.ValidationError as error:
        raise BrokerError(f"the device's report cannot be read by this version: {error}") from None


def _print_status(body: dict[str, Any]) -> None:
    click.echo(plain(f"{body.get('device')}, Vedette {body.get('version')}"))
    streams = body.get("streams")
    for name, one in streams.items() if isinstance(streams, dict) else ():
        click.echo(plain("  ".join([f"  {name}", *_describe_stream(one)])))
    if unmet := body.get("unmet"):
        click.echo(plain(f"unmet: {unmet}"))
    if waiting := body.get("waits_for_restart"):
        click.echo(plain(f"waits for a restart: {', '.join(map(str, waiting))}"))


def _describe_stream(stream: dict[str, Any]) -> Iterator[str]:
    detail = stream.get("detail")
    yield f"{stream.get('state')}{f': {detail}' if detail else ''}"
    for key in ("threshold", "variant", "decoding"):
        if stream.get(key) not in (None, ""):
            yield f"{key}={stream[key]}"
    for state, one in (stream.get("states") or {}).items():
        yield f"{state}={one.get('value') or 'unknown'}"
    for kind in ("zone", "line", "filter"):
        for name, on in (stream.get(f"{kind}s") or {}).items():
            yield f"{kind}/{name}={'on' if on else 'off'}"
    if stream.get("only_moving"):
        yield "only_moving=on"
    if stream.get("motion_masks") is False:
        yield "motion_masks=off"
    for key in ("reduced", "unmet"):
        if stream.get(key):
            yield f"{key}: {stream[key]}"
    if problems := ", ".join(stream.get("problems") or ()):
        yield f"problems: {problems}"
    if by_command := ", ".join(stream.get("set_by_command") or ()):
        yield f"(set by command: {by_command})"


_TRACE_PATIENCE_S = 20.0
"""Longest wait for the answer after the end of the trace, s."""
_LARGEST = 64 * 1024 * 1024
"""Largest trace that is unpacked, bytes: the device is trusted no further than that."""
_SHORTEST_S, _LONGEST_S = 0.001, 120.0

_TRACE_HELP = """Record what the threads of a running device do, stage by stage, and write a file for Perfetto.

\b
  vedette trace --for 10s --device porch
  vedette trace --for 2s --output slow.json.gz

Open the file at ui.perfetto.dev, or in Chrome at chrome://tracing. Each thread has a row: a stream's with its
`wait` for a picture and each `frame` with gate, prepare, infer, decode and track; `encode` of clips; `commit` of
events to the disk; `send` to the broker. The device records nothing, and loses no time, while no trace runs.

A trace of many fast streams may be too large for one message: then its first part is written, and that is said.
"""


def _length(context: click.Context, option: click.Parameter, seconds: float) -> float:
    if not _SHORTEST_S <= seconds <= _LONGEST_S:
        raise click.BadParameter(f"expected {_SHORTEST_S:g}s to {_LONGEST_S:.0f}s, found {seconds:g}s")
    return seconds


@click.command(help=_TRACE_HELP, epilog=_CODES)
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
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def trace(
    access: BrokerOptions,
    prefix: str,
    device: str | None,
    seconds: float,
    output: Path,
    as_json: bool,
) -> None:
    """Run `vedette trace`; `_TRACE_HELP` is its help text."""
    from agent.comms.consumer import send_command
    from agent.comms.topics import Topics

    if not output.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {output.absolute().parent}", param_hint="--output")
    topics = Topics(prefix, device or this_device())
    click.echo(f"{topics.device}: recording for {seconds:g} s …", err=True)
    answer = send_command(access, topics, "trace", {"seconds": seconds}, seconds + _TRACE_PATIENCE_S)
    if not answer.ok:
        raise CommandError(f"{topics.device}: {plain(answer.reason)}")
    threads = write_trace(output, answer.body.get("trace"))
    _print_trace(output, answer.body, seconds, threads, as_json=as_json)


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


def _print_trace(output: Path, body: dict[str, Any], seconds: float, threads: int, *, as_json: bool) -> None:
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
