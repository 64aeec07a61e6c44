"""Reports of an evaluation of words: tables, the curve of errors, and an HTML file that plays the worst ones."""

from __future__ import annotations

import base64
import html
import importlib
import io
import math
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from agent.errors import ModelError
from agent.optimise.evaluation.keyword_rates import RatePoint
from agent.optimise.evaluation.report import (
    EvaluationTable,
    draw_confusions,
    percent,
    slice_table,
    span,
)
from agent.optimise.evaluation.sound import NOTHING_TOLD, OTHER, SoundEvaluation, WordResult, WrongSound
from agent.optimise.evaluation.sound_data import Recording, SoundExamples, read_blocks
from agent.optimise.report import html_page, html_picture, html_table
from agent.text import plain
from agent.types import Samples

_RATE_HZ = 16_000
_BEFORE_S, _AFTER_S, _LONGEST_S = 1.5, 0.5, 5.0
"""Sound before and after an error in the report, and most of it in all, s."""
_WINDOW, _STEP = 400, 160
"""Samples of a window of the spectrogram, and from one to the next."""
_DECIBELS = 80.0
_ACROSS, _UP = "false alarms per hour (leftmost: none)", "share of words missed (lowest: none)"
_SOURCES_MAX = 40
_CURVE_RATES = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
"""False alarms per hour whose rows of the curve are told."""


def sound_headline(found: SoundEvaluation) -> str:
    """Return the metric in a line."""
    told = f"{percent(found.value)} ({span(found.interval)}) of {found.count} words told rightly"
    if found.in_use.alarms_per_hour is None:
        return told
    return f"{told}, {_rate(found.in_use)} false alarms an hour in {found.hours:.2f} h of other sound"


def threshold_text(threshold: float) -> str:
    """Return a threshold as text, to six digits."""
    return f"{threshold:.6g}"


def _rate(point: RatePoint | WordResult) -> str:
    return "" if point.alarms_per_hour is None else f"{point.alarms_per_hour:.3g}"


def _range(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.3g} to {interval[1]:.3g}"


def sound_tables(found: SoundEvaluation) -> Iterator[EvaluationTable]:
    """Yield the tables of an evaluation."""
    yield _word_table(found)
    names = ("at", "threshold", "missed", "95 %", "false alarms an hour", "95 %")
    yield EvaluationTable("missed words against false alarms", names, names[1:], list(_point_rows(found)))
    if any(one.alarms for one in found.sources):
        yield _source_table(found)
    yield from slice_table(found.slices, "heard")


def _word_table(found: SoundEvaluation) -> EvaluationTable:
    columns = ("word", "said", "heard", "95 %", "false alarms", "an hour", "95 %")
    rows = [
        (
            one.name,
            str(one.count),
            percent(one.recall),
            span(one.recall_interval),
            str(one.alarms),
            _rate(one),
            _range(one.alarms_interval),
        )
        for one in found.words
    ]
    return EvaluationTable("by word, at the threshold in use", columns, columns[1:], rows)


def _source_table(found: SoundEvaluation) -> EvaluationTable:
    columns = ("other sound", "false alarms", "hours", "an hour", "95 %")
    rows = [
        (
            one.folder,
            str(one.alarms),
            f"{one.hours:.3f}",
            f"{one.alarms_per_hour:.3g}",
            _range(one.alarms_interval),
        )
        for one in found.sources[:_SOURCES_MAX]
    ]
    return EvaluationTable("false alarms by folder", columns, columns[1:], rows)


def _point_rows(found: SoundEvaluation) -> Iterator[tuple[str, ...]]:
    yield ("in use", *_point_cells(found.in_use))
    if found.at_target is not None:
        yield ("target", *_point_cells(found.at_target))
    told = set[float]()
    for rate in _CURVE_RATES:
        fitting = [one for one in found.curve if one.alarms_per_hour is not None and one.alarms_per_hour <= rate]
        if fitting and (best := min(fitting, key=lambda one: (one.missed, -one.threshold))).threshold not in told:
            told.add(best.threshold)
            yield (f"≤ {rate:g}", *_point_cells(best))


def _point_cells(point: RatePoint) -> tuple[str, ...]:
    missed = percent(point.reject_rate), span(point.reject_interval)
    return threshold_text(point.threshold), *missed, _rate(point), _range(point.alarms_interval)


def config_line(found: SoundEvaluation) -> str:
    """Return the keys of a stream that set the threshold for the target; empty: there is none."""
    if found.at_target is None:
        return ""
    return f"[streams.NAME.decode]\nscore_threshold = {threshold_text(found.at_target.threshold)}"


def draw_rates(found: SoundEvaluation) -> bytes:
    """Return the curve of missed words against false alarms per hour as PNG.

    Raises:
        ModelError: there is no other sound, or matplotlib is missing.
    """
    if not found.hours:
        raise ModelError("the curve needs false alarms per hour: give other sound by --background")
    try:
        new = importlib.import_module("matplotlib.figure").Figure
    except ImportError as error:
        raise ModelError("charts need matplotlib: pip install '.[charts]' in the clone") from error
    figure = new(figsize=(7.0, 5.0), layout="constrained")
    axis = figure.add_subplot()
    _draw_curve(axis, found)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    return drawn.getvalue()


def _draw_curve(axis: Any, found: SoundEvaluation) -> None:
    """Draw rates; what is zero is drawn at a third of what one alarm or one missed word would be."""
    rates = np.array([one.alarms_per_hour for one in found.curve], np.float64)
    missed = np.array([one.reject_rate for one in found.curve])
    spans = np.array([one.reject_interval for one in found.curve])
    least, few = 1.0 / found.hours / 3.0, 1.0 / found.count / 3.0
    across = np.maximum(rates, least)
    axis.fill_between(across, np.maximum(spans[:, 0], few), spans[:, 1], color="tab:blue", alpha=0.15)
    axis.plot(across, np.maximum(missed, few), color="tab:blue", marker=".", label="by threshold")
    for name, point, colour in (("in use", found.in_use, "tab:red"), ("target", found.at_target, "tab:green")):
        if point is not None:
            at = max(point.alarms_per_hour or 0.0, least), max(point.reject_rate, few)
            axis.plot(*at, "o", color=colour, label=f"{name}: {threshold_text(point.threshold)}")
    axis.set(xscale="log", yscale="log", xlabel=_ACROSS, ylabel=_UP)
    axis.grid(visible=True, which="both", alpha=0.3)
    axis.legend()


def draw_sound_confusion(found: SoundEvaluation) -> bytes:
    """Return the confusion matrix as PNG. Raises ModelError if matplotlib is missing."""
    words = [one.name for one in found.words]
    return draw_confusions(found.confusion, [*words, OTHER], [*words, NOTHING_TOLD])


def sound_to_html(found: SoundEvaluation, examples: SoundExamples, lines: Sequence[str]) -> str:
    """Return the evaluation as one HTML file that loads nothing.

    Args:
        found: to show.
        examples: whose worst errors can be played.
        lines: that come first.
    """
    parts = [html_table(("", ""), [("", line) for line in lines if line])]
    for table in sound_tables(found):
        parts += [f"<h2>{table.title}</h2>", html_table(table.columns, table.rows)]
    parts += _charts(found)
    if found.wrong:
        parts += [
            "<h2>worst errors</h2>",
            html_table(("recording", "second", "is", "told", "score"), _rows(found)),
        ]
        parts += _figures(found, examples)
    return html_page(f"evaluation: {found.model}", parts, sounds=True)


def _charts(found: SoundEvaluation) -> Iterator[str]:
    for title, draw in (("missed words against false alarms", draw_rates), ("confusions", draw_sound_confusion)):
        try:
            yield f"<h2>{title}</h2>{html_picture(title, draw(found), 'png')}"
        except ModelError:
            continue  # no matplotlib, or no other sound


def _rows(found: SoundEvaluation) -> list[tuple[str, ...]]:
    return [(one.name, f"{one.at_s:.2f}", one.truth, one.told, f"{one.score:.3f}") for one in found.wrong]


def _figures(found: SoundEvaluation, examples: SoundExamples) -> Iterator[str]:
    recordings = {one.name: one for one in examples.recordings}
    for one in found.wrong:
        sound = _cut(recordings[one.name], one)
        about = f"{one.name}, second {one.at_s:.2f}: {one.truth}, told {one.told}, {one.score:.3f}"
        shown = html_picture(about, _spectrogram(sound), "png") + _player(sound)
        yield f"<figure>{shown}<figcaption>{html.escape(plain(about))}</figcaption></figure>"


def _cut(recording: Recording, one: WrongSound) -> Samples:
    """Return the sound around an error, 16 kHz, int16."""
    begin = max(0.0, one.at_s - _BEFORE_S)
    first, last = (round(at * _RATE_HZ) for at in (begin, min(one.end_s + _AFTER_S, begin + _LONGEST_S)))
    parts, at = [np.empty(0, np.int16)], 0
    for samples in read_blocks(recording.path, _RATE_HZ):
        if at >= last:
            break
        parts.append(samples[max(0, first - at) : max(0, last - at)])
        at += len(samples)
    return np.concatenate(parts)


def _player(sound: Samples) -> str:
    written = io.BytesIO()
    importlib.import_module("soundfile").write(written, sound, _RATE_HZ, format="FLAC", subtype="PCM_16")
    source = base64.b64encode(written.getvalue()).decode()
    return f'<br><audio controls preload="none" src="data:audio/flac;base64,{source}"></audio>'


def _spectrogram(sound: Samples) -> bytes:
    """Return the spectrogram of a sound as PNG: 10 ms a column, 40 Hz a row, the highest on top."""
    padded = np.pad(sound.astype(np.float64), (0, max(0, _WINDOW - len(sound))))
    count = 1 + (len(padded) - _WINDOW) // _STEP
    rows: NDArray[np.float64] = np.stack([padded[at * _STEP : at * _STEP + _WINDOW] for at in range(count)])
    power = np.square(np.abs(np.fft.rfft(rows * np.hanning(_WINDOW), axis=1)))
    levels = 10.0 * np.log10(np.maximum(power, 1.0))
    shares = np.clip((levels - levels.max()) / _DECIBELS + 1.0, 0.0, 1.0)
    grey = np.ascontiguousarray((255.0 * shares).astype(np.uint8).T[::-1])
    scale = math.ceil(240 / max(1, grey.shape[1]))
    larger = cv2.resize(grey, (grey.shape[1] * scale, grey.shape[0]), interpolation=cv2.INTER_NEAREST)
    return cv2.imencode(".png", larger)[1].tobytes()
