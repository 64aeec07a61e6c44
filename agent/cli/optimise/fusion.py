"""`vedette optimise fusion`: try a fused event on a recording or on texts, and calibrate its log-odds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.options import config_option
from agent.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from agent.features.fusion.checks import FusedEvent
    from agent.features.fusion.expression import FusionCalibration
    from agent.features.fusion.rules import FusionTimes
    from agent.optimise.late_fusion import FusionScore, Recorded, Span
    from agent.types import Event

_FILE = click.Path(path_type=Path, dir_okay=False)


_NAME = click.argument("name")
_RECORDING = click.argument("recording", type=_FILE)


@click.group()
def fusion() -> None:
    """Try fused events on a recording or on texts, and calibrate them."""


@fusion.command("test")
@_NAME
@_RECORDING
@click.option("--truth", type=_FILE, help="CSV of the situations: beginning and end, ISO 8601.")
@config_option("The daemon's configuration.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def try_event(name: str, recording: Path, truth: Path | None, path: Path, as_json: bool) -> None:
    """Show which events [fusion.NAME] gives on RECORDING, lines as `vedette watch --json` writes them.

    With --truth also which situations they tell of: precision, recall and F1.
    """
    from agent.features.fusion.rules import Fusion
    from agent.optimise.late_fusion import read_recording, replay, score_events, to_ns

    opened, times = _opened(path, name)
    recorded = read_recording(recording, opened.condition.terms)
    situations = _situations(truth, recorded) if truth else None
    made = Fusion(name, opened.condition, times, run="test")
    told = [event for _, event in replay(recorded, made) if event]
    ended = [event for event in told if event.kind == "end"]
    spans = [(to_ns(one.track.first_seen), to_ns(one.track.last_seen)) for one in ended]
    score = score_events(spans, situations, times.window) if situations else None
    _print_events(ended, score, as_json=as_json)


@fusion.command()
@_NAME
@_RECORDING
@click.argument("truth", type=_FILE)
@click.argument("output", type=_FILE)
@config_option("The daemon's configuration.")
@click.option("--force", is_flag=True, help="Replace OUTPUT.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def calibrate(
    name: str, recording: Path, truth: Path, output: Path, path: Path, force: bool, as_json: bool
) -> None:
    """Fit log-odds for the terms of [fusion.NAME] on RECORDING, and write them to OUTPUT.

    TRUTH is a CSV of the situations: beginning and end, ISO 8601. Set `calibration` to OUTPUT in place of `when`
    to use them.
    """
    import msgspec

    from agent.models.writer import refuse_inputs
    from agent.optimise.late_fusion import calibrate as fit
    from agent.optimise.late_fusion import read_recording
    from agent.storage.files import write_atomic

    opened, times = _opened(path, name)
    refuse_inputs((output,), (recording, truth, path))
    if output.exists() and not force:
        raise StorageError(f"{output}: exists; --force replaces it")
    recorded = read_recording(recording, opened.condition.terms)
    found = fit(recorded, _situations(truth, recorded), opened.condition.terms, times)
    write_atomic(output, msgspec.json.format(msgspec.json.encode(found), indent=2))
    _print_calibration(found, as_json=as_json)
    click.echo(f"{output}: written", err=True)


def _situations(path: Path, recorded: Sequence[Recorded]) -> list[Span]:
    """Return the situations of a file that lie within a recording, and tell of the others."""
    from agent.optimise.late_fusion import read_truth, within

    truth = read_truth(path)
    found = within(truth, recorded)
    if len(found) < len(truth):
        told = f"{len(truth) - len(found)} of {len(truth)} situations lie outside the recording"
        if not found:
            raise ConfigError(f"{told}: expected times of its day, with their offset from UTC", str(path))
        click.echo(f"{path}: {told}: left out", err=True)
    return found


def _opened(path: Path, name: str) -> tuple[FusedEvent, FusionTimes]:
    """Return a fused event of a configuration, opened, and its times."""
    from agent.config.load import load
    from agent.features.fusion.checks import evidence_sources, open_fused
    from agent.features.fusion.rules import FusionTimes
    from agent.models.findings import findings_without_root

    file = load(path)
    if (one := file.config.fusion.get(name)) is None:
        known = ", ".join(file.config.fusion) or "none"
        raise ConfigError(f"{path}: there is no [fusion.{name}]; there are: {known}")
    try:
        opened = open_fused(one, evidence_sources(file.config, findings_without_root))
    except ConfigError as error:
        raise ConfigError(str(error), file.where("fusion", name, *error.keys)) from error
    return opened, FusionTimes.of_seconds(one.window_s, one.late_s, one.hold_s, one.update_every_s)


def _print_events(ended: list[Event], score: FusionScore | None, *, as_json: bool) -> None:
    from agent.cli.output import console, open_table, print_json
    from agent.text import local_time, plain

    if as_json:
        print_json({"events": [one.track for one in ended], "score": score})
        return
    table = open_table("from", "until", "score", "evidence", right=("score",))
    for one in ended:
        track = one.track
        evidence = ", ".join(plain(f"{piece.source}:{piece.label}") for piece in track.evidence)
        table.add_row(
            local_time(track.first_seen), local_time(track.last_seen), f"{track.best_score:.2f}", evidence
        )
    console(110, markup=False).print(table)
    if score is not None:
        click.echo(
            f"{score.right} of {score.events} events are right, {score.found} of {score.situations} situations "
            f"found: precision {score.precision:.3f}, recall {score.recall:.3f}, F1 {score.f1:.3f}"
        )


def _print_calibration(found: FusionCalibration, *, as_json: bool) -> None:
    """Print the weights, and how good they are."""
    from agent.cli.output import console, open_table, print_json
    from agent.text import plain

    if as_json:
        print_json(found)
        return
    table = open_table("term", "absent", "present", "score", right=("absent", "present", "score"))
    for one in found.terms:
        table.add_row(plain(one.term), f"{one.absent:+.2f}", f"{one.present:+.2f}", f"{one.score:+.2f}")
    console(80, markup=False).print(table)
    click.echo(
        f"prior {found.prior:+.2f}; {found.situations} situations in {found.moments} stretches; held out: log "
        f"loss {found.log_loss:.3f}, calibration error {found.calibration_error:.3f}"
    )
