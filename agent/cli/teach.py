"""`vedette teach`: teach a stream of a running device states that its camera sees, or words that it hears."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from agent.cli.options import broker_options, device_name, this_device
from agent.cli.output import console, open_table, print_json
from agent.errors import BrokerError, CommandError
from agent.text import plain, plural

if TYPE_CHECKING:
    from agent.comms.consumer import BrokerOptions, CommandReply

_PATIENCE_S, _SHORT_S = 90.0, 10.0
"""Longest wait for a lesson, and for other answers, s."""
_WORD_S = 60.0
"""Longest wait of a device for each word, s."""
_WIDTH = 80


class RefusedCommandError(CommandError):
    """The device has refused a command; the message has its reason."""


def _region(context: click.Context, option: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        edges = tuple(float(one) for one in text.split(","))
    except ValueError:
        edges = ()
    if len(edges) != 4:
        raise click.BadParameter(
            f"expected LEFT,TOP,RIGHT,BOTTOM as fractions 0..1 of the picture, found {text!r}"
        )
    return edges


def _values(context: click.Context, option: click.Parameter, text: str | None) -> tuple[str, ...]:
    values = tuple(one.strip() for one in text.split(",")) if text else ()
    if text is not None and (not all(values) or len(set(values)) < len(values)):
        raise click.BadParameter(f"expected different values with commas between them, found {text!r}")
    return values


_HELP = """Teach STREAM of a running device a STATE, such as a gate that is open or closed, or some words.

\b
  vedette teach front gate --states open,closed --region 0.1,0.2,0.4,0.9
  vedette teach front gate --value open           more examples of one value, such as at night
  vedette teach front gate --forget --value open
  vedette teach front gate --forget
  vedette teach front                             list the states of the stream
  vedette teach mic command --states stop,start   words, on a stream that hears

For each value the command waits until you have brought the thing into that state, and pressed Enter; then the
device learns from the next pictures of its own camera, in seconds. Each example is checked by the others. From
then on the device publishes the value on vedette/DEVICE/STREAM/sensor/STATE, also to Home Assistant; `unsure` if
a picture is between two values, or like no example.

On a stream with sound, say each word as often as asked, by itself. From then on the device publishes an event
when it hears one of them, and nothing for what is unlike.

What was learned is kept on the device as numbers; no picture and no sound is. The stream's model must give
features: `nanodet` does, and for words `speech-embedding`; `vedette optimise features` adds them to another
detector.
"""
_CODES = "Exit code: 0 done, 1 refused or no broker, 2 wrong usage, 3 no answer."


@click.command(help=_HELP, epilog=_CODES)
@broker_options
@click.option(
    "--device", callback=lambda c, o, t: t and device_name(c, o, t), help="Default: this machine's name."
)
@click.option(
    "--states", "values", callback=_values, metavar="A,B", help="Teach these values, one after the other."
)
@click.option("--value", default="", help="Teach this value now, without a question; with --forget, forget it.")
@click.option("--region", callback=_region, metavar="L,T,R,B", help="Of the picture, as fractions; default: all.")
@click.option(
    "--examples",
    type=click.IntRange(1, 20),
    default=10,
    show_default=True,
    help="Pictures of each value, or utterances of each word.",
)
@click.option("--forget", is_flag=True, help="Forget the state, or one --value of it.")
@click.option("--json", "as_json", is_flag=True, help="Print the device's answer as JSON.")
@click.argument("stream")
@click.argument("state", required=False)
def teach(
    access: BrokerOptions,
    prefix: str,
    device: str | None,
    stream: str,
    state: str | None,
    values: tuple[str, ...],
    value: str,
    forget: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Run `vedette teach`; `_HELP` is its help text."""
    _check(state, values, value, forget=forget)
    taught = TaughtStream(access, prefix, device or this_device(), stream)
    if state is None:
        _print_states(taught.states(), as_json=as_json)
    elif forget:
        answer = taught.send("forget", {"state": state, "value": value}, _SHORT_S)
        print_json(answer.body) if as_json else click.echo(
            f"forgotten: {plain(' '.join((state, value)).rstrip())}"
        )
    else:
        _check_lessons(state, values or (value,), asked["region"])
        if values:
            taught.states()  # whether there is such a device and stream, before anything is brought anywhere
        body, hears = dict[str, Any](), taught.hears()
        for one in values or (value,):
            body = _teach(taught, state, one, asks=bool(values), hears=hears, **asked)
        print_json(body) if as_json else _print_check(state, body, hears=hears)


def _check(state: str | None, values: tuple[str, ...], value: str, *, forget: bool) -> None:
    if state is None and (values or value or forget):
        raise click.UsageError("name the STATE as well, such as: vedette teach front gate --states open,closed")
    if values and (value or forget):
        raise click.UsageError("--states teaches values one after the other: leave --value and --forget out")
    if state is not None and not (values or value or forget):
        raise click.UsageError("give the values with --states open,closed, or one of them with --value open")
    if values and not _is_terminal():
        raise click.UsageError(
            "--states asks at a terminal for each value, and stdin is none: teach one at a time with --value"
        )


def _check_lessons(state: str, values: tuple[str, ...], region: tuple[float, ...] | None) -> None:
    from agent.features.teaching.taught import Lesson, check_lesson

    for value in values:
        box = None if region is None else (region[0], region[1], region[2], region[3])
        check_lesson(Lesson(state, value, region=box))


def _is_terminal() -> bool:
    return sys.stdin.isatty()


class TaughtStream:
    """One stream of a device, as far as it can be taught over the broker."""

    def __init__(self, access: BrokerOptions, prefix: str, device: str, stream: str) -> None:
        from agent.comms.topics import Topics

        self._access, self._topics, self.stream = access, Topics(prefix, device), stream

    def send(self, verb: str, body: dict[str, Any], timeout_s: float) -> CommandReply:
        """Send a request about the stream and return its answer.

        Raises:
            RefusedCommandError: the device refuses. BrokerError: the broker or the device cannot be reached.
        """
        from agent.comms.consumer import send_command

        body = body if verb == "status" else {**body, "stream": self.stream}
        answer = send_command(self._access, self._topics, verb, body, timeout_s)
        if not answer.ok:
            raise RefusedCommandError(f"{self._topics.device}: {plain(answer.reason)}")
        return answer

    def states(self) -> dict[str, dict[str, Any]]:
        """Return the states of the stream, by name."""
        streams = self._streams()
        if self.stream not in streams:
            known = ", ".join(map(plain, streams)) or "none"
            raise BrokerError(f"{self._topics.device} has no stream {self.stream!r}; it has: {known}")
        found, state = streams[self.stream].get("states", {}), streams[self.stream].get("state")
        if not found and state not in ("running", "degraded"):
            raise BrokerError(f"{self.stream} is {plain(str(state))}: its states are known while it runs")
        return found if isinstance(found, dict) else {}

    def hears(self) -> bool:
        """Return True if the stream has sound; False if it has not, or is not known."""
        return bool(self._streams().get(self.stream, {}).get("sound"))

    def _streams(self) -> dict[str, Any]:
        streams = self.send("status", {}, _SHORT_S).body.get("streams")
        return streams if isinstance(streams, dict) else {}


def _teach(
    taught: TaughtStream,
    state: str,
    value: str,
    *,
    asks: bool,
    hears: bool,
    region: tuple[float, ...] | None,
    examples: int,
) -> dict[str, Any]:
    if asks:
        bring = f"bring {state} into the state {value!r}, then press Enter"
        say = f"press Enter, then say {value!r} {plural(examples, 'time')}, with a pause after each"
        click.prompt(
            f"{taught.stream}: {say if hears else bring}",
            default="",
            show_default=False,
            prompt_suffix=" ",
            err=True,
        )
    taking = (
        f"listening for {plural(examples, 'utterance')}" if hears else f"taking {plural(examples, 'picture')}"
    )
    click.echo(f"{value}: {taking} …", err=True)
    body: dict[str, Any] = {"state": state, "value": value, "examples": examples}
    if region is not None:
        body["region"] = region
    longest_s = _PATIENCE_S + _WORD_S * examples if hears else _PATIENCE_S
    return taught.send("teach", body, longest_s).body


def _print_check(state: str, body: dict[str, Any], *, hears: bool) -> None:
    examples, check = body.get("examples", {}), body.get("check")
    table = open_table(
        state, "examples", "right", "unsure", "wrong", right=("examples", "right", "unsure", "wrong")
    )
    for value, count in examples.items():
        one = (check or {}).get(value, {})
        table.add_row(plain(value), str(count), *(str(one.get(key, "–")) for key in ("right", "unsure", "wrong")))
    console(_WIDTH).print(table)
    if check is None:
        needed = "each word has" if hears else "two values have"
        click.echo(f"It is told from the others once {needed} at least 5 examples{'' if hears else ' each'}.")
    elif any(one.get("unsure") or one.get("wrong") for one in check.values()):
        advice = (
            "Teach those words again, each said by itself, or choose others that sound less alike."
            if hears
            else "Teach those values again in other light, or choose a region that shows the difference and "
            "little else. Values that look the same stay unsure."
        )
        click.echo(f"Each example was told by a rule that learned from all others. {advice}")


def _print_states(states: dict[str, dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json(states)
        return
    if not states:
        click.echo("no states are taught; vedette teach STREAM STATE --states A,B teaches one")
        return
    table = open_table("state", "value", "score", "examples", "region", "remark", right=("score",))
    for name, one in states.items():
        examples = ", ".join(f"{plain(value)} {count}" for value, count in one.get("examples", {}).items())
        region = ", ".join(f"{edge:g}" for edge in one.get("region", ()))
        value, detail = str(one.get("value") or "–"), str(one.get("detail", ""))
        table.add_row(plain(name), plain(value), f"{one.get('score', 0):.2f}", examples, region, plain(detail))
    console(_WIDTH).print(table)
