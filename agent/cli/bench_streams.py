"""`vedette bench --streams` and `--decode`: how streams of a model use the cores best; video decoders."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from agent.cli.optimise.progress import show_progress
from agent.cli.output import NO_VALUE, console, open_table, print_json
from agent.errors import SourceError
from agent.text import plain, plural

if TYPE_CHECKING:
    from agent.capture.hardware_decoder import DecoderTrial
    from agent.capture.media import Media
    from agent.compute.infer.choice import By, SplitMeasurement


_THREADS = 4
"""Most threads of the CPU, as `vedette bench` measures."""


def bench_streams(model: str, variant: str, streams: int, by: By, *, patience_s: float, as_json: bool) -> None:
    """Measure what so many streams get with each number of threads, and print it."""
    from agent.compute.infer.benchmark import measure_splits
    from agent.compute.infer.choice import best_split
    from agent.compute.infer.sharing import is_shareable
    from agent.daemon.measurements import spare_memory_mb
    from agent.models.library import golden, open_model_without_root

    opened = open_model_without_root(model, variant)
    if not is_shareable(opened):
        raise click.UsageError(
            f"--streams is for models whose streams take turns; {plain(model)} has exits, keeps a state or hears:"
            " each of its streams has a session of its own"
        )
    cores = len(os.sched_getaffinity(0))
    found = measure_splits(
        opened,
        streams,
        cores,
        min(_THREADS, cores),
        inputs=golden(opened),
        patience_s=patience_s,
        spare_mb=spare_memory_mb(),
        progress=lambda what: show_progress(f"measuring {what}"),
    )
    show_progress("")
    best = best_split(found, streams, by)
    if as_json:
        print_json(
            {"streams": streams, "cores": cores, "threads": best.threads if best else 0, "measured": found}
        )
    else:
        _print_splits(found, best)


def _print_splits(found: tuple[SplitMeasurement, ...], best: SplitMeasurement | None) -> None:
    out = console(100, markup=False)
    figures = ("threads", "at once", "per s", "per stream", "answer ms", "CPU ms")
    table = open_table("", *figures, right=figures)
    for one in found:
        cells = [NO_VALUE] * 4
        if not one.refused:
            cells = [
                f"{one.per_s:.1f}",
                f"{one.per_s / one.streams:.1f}",
                f"{one.latency_ms:.1f}",
                f"{one.cpu_ms:.2f}",
            ]
        table.add_row("→" if one is best else "", str(one.threads), str(one.at_once), *cells)
    out.print(table)
    for one in found:
        if one.refused:
            out.print(f"{plural(one.threads, 'thread')}: {plain(one.refused)}")
    if best is not None:
        out.print(
            f"best: {plural(best.threads, 'thread')} for an inference; the daemon measures this, too, for streams"
            ' with backend = "auto" and without `threads`'
        )


_STALL_S = 10.0
_LARGEST = 256 * 1024 * 1024


class RecordedVideo(NamedTuple):
    """A clip in memory.

    Attributes:
        codec: FFmpeg's name.
        width, height: of its pictures, px.
        content: Matroska; begins with a key frame.
        pictures: encoded in it.
    """

    codec: str
    width: int
    height: int
    content: bytes
    pictures: int


def record_video(uri: str, seconds: float) -> RecordedVideo:
    """Record a camera on the network, or the beginning of a file.

    Args:
        uri: `file:`, `rtsp:` or `http:`.
        seconds: length, s.

    Raises:
        SourceError: it cannot be opened, has no key frame, or is no encoded video.
    """
    import av

    from agent.capture.network import open_medium
    from agent.capture.video import open_file
    from agent.config.source_uri import parse_picture

    address = parse_picture(uri)
    if not (address.on_network or address.scheme == "file"):
        raise SourceError(f"{address.masked}: expected a camera on the network or a video file")
    media = open_medium(address, _STALL_S) if address.on_network else open_file(address)
    try:
        return _recorded(media, seconds, address.masked)
    except (av.FFmpegError, ValueError):  # without its text, which may hold the address
        raise SourceError(f"{address.masked}: its packets cannot be read or recorded") from None
    finally:
        media.close()


def _recorded(media: Media, seconds: float, shown: str) -> RecordedVideo:
    import av

    memory, count, size, began_s = io.BytesIO(), 0, 0, time.monotonic()
    base = media.video.time_base
    first: int | None = None
    with av.open(memory, "w", format="matroska") as container:
        track = container.add_stream_from_template(media.video)
        for packet in media.packets():
            if packet.stream_index != media.video.index or not packet.size or packet.dts is None:
                continue
            if count == 0 and not packet.is_keyframe:
                if time.monotonic() - began_s > seconds + _STALL_S:
                    break
                continue
            first = packet.dts if first is None else first
            if (base is not None and (packet.dts - first) * base > seconds) or size > _LARGEST:
                break
            packet.stream = track
            size, count = size + packet.size, count + 1
            container.mux(packet)
    if not count:
        raise SourceError(f"{shown}: it sent no key frame")
    codec = media.video.codec_context.name
    return RecordedVideo(codec, media.width, media.height, memory.getvalue(), count)


def bench_decode(source: str, seconds: float, *, as_json: bool) -> None:
    """Record a video into memory, have every decoder of its codec decode it, and print what they need."""
    from agent.capture.decoder_trial import measure_decoders
    from agent.capture.hardware_decoder import best_decoder
    from agent.config.source_uri import mask

    address = f"file:{source}" if Path(source).is_file() else source
    show_progress(f"recording {seconds:g} s")
    video = record_video(address, seconds)
    found = measure_decoders(video.codec, video.content, progress=lambda name: show_progress(f"measuring {name}"))
    show_progress("")
    best = best_decoder(found)
    if as_json:
        print_json(
            {
                "source": mask(source),
                "codec": video.codec,
                "width": video.width,
                "height": video.height,
                "pictures": video.pictures,
                "best": best or "software",
                "measured": found,
            }
        )
    else:
        _print_trials(video, found, best or "software")


def _print_trials(video: RecordedVideo, found: tuple[DecoderTrial, ...], best: str) -> None:
    out = console(100, markup=False)
    out.print(f"{video.codec}, {video.width}x{video.height}, {video.pictures} pictures")
    figures = ("pictures", "ms", "CPU ms", "difference")
    table = open_table("", "decoder", *figures, right=figures)
    for one in found:
        if not one.pictures:
            table.add_row("", one.name, *[NO_VALUE] * len(figures))
            continue
        difference = NO_VALUE if one.difference is None else f"{one.difference:.1f}"
        figured = str(one.pictures), f"{one.ms:.2f}", f"{one.cpu_ms:.2f}", difference
        table.add_row("→" if one.name == best else "", one.name, *figured)
    out.print(table)
    for one in found:
        if one.refused:
            out.print(f"{one.name}: {plain(one.refused)}")
    if best != "software":
        out.print(f'use it: decoder = "{best}" or "auto" in [streams.NAME.capture]')
