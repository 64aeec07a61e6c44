"""`vedette command`: send a command to a device over the broker and print its answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from agent.cli.options import broker_options, device_name, duration
from agent.cli.output import print_json
from agent.text import plain

if TYPE_CHECKING:
    from agent.comms.consumer.client import BrokerOptions
    from agent.comms.consumer.request import CommandReply


_VERBS = ("status", "reload", "doctor")
_PATIENCE_S, _DOCTOR_S = 10.0, 310.0
_REFUSED, _NO_ANSWER = 1, 3


_HELP = """Command a device, and print its answer.

\b
  vedette command porch status | reload | doctor
  vedette command porch front enabled off
  vedette command porch front threshold 0.6
  vedette command porch front threshold default
  vedette command porch front variant 256
  vedette command porch front zone/drive off
  vedette command porch front snapshot
  vedette command porch front record 20s

`default` is what the configuration file says. What is set lasts, also over a restart, until it is set otherwise,
or the file says something else of it than before.
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
    """Send a command; the help is `_HELP`."""
    from agent.comms.consumer.request import NoAnswerError, send_command
    from agent.comms.topics import Topics

    verb, body = _request(words)
    patience_s = timeout_s or (_DOCTOR_S if verb == "doctor" else _PATIENCE_S)
    try:
        answer = send_command(access, Topics(prefix, device), verb, body, patience_s)
    except NoAnswerError as error:
        click.echo(f"vedette: {plain(str(error))}", err=True)
        ctx.exit(_NO_ANSWER)
    _print(verb, answer, as_json=as_json)
    ctx.exit(0 if answer.ok else _REFUSED)


def _request(words: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """Return verb and body of a request."""
    if len(words) == 1 and words[0] in _VERBS:
        return words[0], {}
    stream, *rest = words
    if rest == ["snapshot"]:
        return "snapshot", {"stream": stream}
    if len(rest) == 2 and rest[0] == "record":
        return "record", {"stream": stream, "seconds": duration(rest[1])}
    if len(rest) == 2:
        return "set", {"stream": stream, "what": rest[0], "value": rest[1]}
    raise click.UsageError(f"{' '.join(words)!r} is no command: {', '.join(_VERBS)}, or STREAM WHAT VALUE")


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
        click.echo(plain(_done(verb, answer)))


def _done(verb: str, answer: CommandReply) -> str:
    """Describe what was done; for `record`, where the clip will be."""
    if verb == "record" and not answer.reason:
        return f"recording; will be at {answer.body.get('path')}"
    more = [str(answer.body[key]) for key in ("topic", "path") if answer.body.get(key)]
    return ": ".join([answer.reason or "done", *more])


def _print_report(report: Any) -> None:
    import msgspec

    from agent.cli.checks import Report
    from agent.cli.doctor import print_report
    from agent.errors import BrokerError

    try:
        print_report(msgspec.convert(report, Report))
    except msgspec.ValidationError as error:
        raise BrokerError(f"its report is not one that this version can read: {error}") from None


def _print_status(body: dict[str, Any]) -> None:
    click.echo(plain(f"{body.get('device')}, Vedette {body.get('version')}"))
    streams = body.get("streams")
    for name, one in streams.items() if isinstance(streams, dict) else ():
        click.echo(plain("  ".join([f"  {name}", *_about(one)])))
    if waiting := body.get("waits_for_restart"):
        click.echo(plain(f"waits for a restart: {', '.join(map(str, waiting))}"))


def _about(stream: dict[str, Any]) -> Iterator[str]:
    """Describe a stream: state, reason, settings, and which of them commands have set."""
    detail = stream.get("detail")
    yield f"{stream.get('state')}{f': {detail}' if detail else ''}"
    for key in ("threshold", "variant"):
        if stream.get(key) not in (None, ""):
            yield f"{key}={stream[key]}"
    for zone, on in (stream.get("zones") or {}).items():
        yield f"zone/{zone}={'on' if on else 'off'}"
    if by_command := ", ".join(stream.get("set_by_command") or ()):
        yield f"(set by command: {by_command})"
