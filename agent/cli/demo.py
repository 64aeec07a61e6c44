"""`vedette demo`: play a clip through a model to an embedded broker, and print what a subscriber receives."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.options import duration
from agent.cli.output import print_json

if TYPE_CHECKING:
    from agent.cli.demo_show import Show
    from agent.comms.consumer.subscribe import ReceivedMessage


@click.command()
@click.option(
    "--for",
    "seconds",
    type=duration,
    metavar="DURATION",
    help="Stop after this time, such as 20s; default: the clip's end.",
)
@click.option("--hear", is_flag=True, help="Use sound: digits, and with the extra [wakeword] wake words.")
@click.option("--source", help="A camera, microphone or clip of your own, such as v4l2:/dev/video0.")
@click.option("--model", help="Bundled model or file. [default: nanodet, or small-speech]")
@click.option(
    "--picture",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("vedette-demo.jpg"),
    show_default=True,
    help="File for the annotated picture.",
)
@click.option("--json", "as_json", is_flag=True, help="Print events as lines of JSON, and a summary as the last.")
def demo(
    seconds: float | None, hear: bool, source: str | None, model: str | None, picture: Path, as_json: bool
) -> None:
    """Play a clip through an INT8 model to an embedded MQTT broker, and print the received events."""
    from agent.cli.demo_show import Show, choose_streams

    if not picture.absolute().parent.is_dir():
        raise click.BadParameter(f"{picture}: there is no such folder", param_hint="--picture")
    chosen = choose_streams(hear=hear, source=source, model=model, loop=seconds is not None)
    show = Show(chosen.streams, picture, seconds)
    show.check(source)
    with _ended_by_signals(show.request_stop, show.abandon), closing(show.messages()) as messages:
        if as_json:
            _print_json(messages, show)
        else:
            _show_table(messages, show, chosen.title)
            if chosen.hint:
                click.echo(chosen.hint)


@contextmanager
def _ended_by_signals(*steps: Callable[[], None]) -> Iterator[None]:
    """On SIGINT or SIGTERM take the next of these steps; a signal after the last has its usual effect."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    left = iter(steps)

    def handle(number: int, frame: object) -> None:
        step = next(left, None)
        if step is not None:
            step()
            return
        signal.signal(number, before[signal.Signals(number)])
        signal.raise_signal(number)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_json(messages: Iterable[ReceivedMessage | None], show: Show) -> None:
    for message in messages:
        if message is not None and message.kind == "events":
            click.echo(message.payload.decode())
    print_json({"summary": show.summary})


def _show_table(messages: Iterable[ReceivedMessage | None], show: Show, title: str) -> None:
    from agent.cli.live import follow

    follow(messages, title)
    summary = show.summary
    labels = ", ".join(f"{count} {label}" for label, count in summary.labels.items()) or "nothing"
    heard = f"{summary.keyword} heard" if summary.keyword else ""
    seen = f"{summary.new} new, {summary.update} update, {summary.end} end"
    click.echo(
        f"{summary.seconds} s: {heard or seen} ({labels}); "
        f"median capture → publish {summary.median_ms} ms; lost {summary.lost}"
    )
    if summary.picture:
        click.echo(f"annotated picture: {summary.picture}")
