"""Starts trials of decoders, each in a process of its own, which may hang, crash or write what it likes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from agent.capture.hardware.decoders import SOFTWARE, DecoderTrial, candidates
from agent.errors import NO_JSON, reason_of
from agent.structs import from_json
from agent.text import plain

HEAD = 4
"""Bytes of the length of a request."""
_WITHIN_S = 60.0
_END_S = 2.0
_LARGEST = 16 * 1024
_MODULE = "agent.capture.hardware.trial"


class TrialRequest(Struct, frozen=True):
    """A request to the process of a trial; the clip follows it.

    Attributes:
        decoder: its name.
        codec: FFmpeg's name.
    """

    decoder: str
    codec: str


def measure_decoders(
    codec: str,
    clip: bytes = b"",
    *,
    within_s: float = _WITHIN_S,
    progress: Callable[[str], None] = lambda name: None,
) -> tuple[DecoderTrial, ...]:
    """Try the software decoder and every hardware decoder for a codec, one after the other.

    Args:
        codec: FFmpeg's name.
        clip: file with one track of video, from a key frame on; empty: one is encoded.
        within_s: time limit of each, s.
        progress: called with the name of each before it is tried.
    """
    found = []
    for name in (SOFTWARE, *candidates(codec)):
        progress(name)
        found.append(run_trial(name, codec, clip, within_s))
    return tuple(found)


def run_trial(
    name: str, codec: str, clip: bytes = b"", within_s: float = _WITHIN_S, module: str = _MODULE
) -> DecoderTrial:
    """Try a decoder in a process; whatever happens to that is why the decoder is refused.

    Args:
        name: of the decoder.
        codec: FFmpeg's name.
        clip: see `measure_decoders`.
        within_s: time limit, s.
        module: that the process runs.
    """
    trial = DecoderTrial(name, codec)
    head = msgspec.json.encode(TrialRequest(name, codec))
    command = [sys.executable, "-P", "-m", module]  # `-P`: another user may own the working folder
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError as error:
        return replace(trial, refused=f"its process cannot be started: {reason_of(error)}")
    try:
        written, _ = process.communicate(len(head).to_bytes(HEAD) + head + clip, within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        with suppress(subprocess.TimeoutExpired):  # stuck in a driver
            process.wait(_END_S)
        return replace(trial, refused=f"it hangs: no result within {within_s:g} s")
    if process.returncode < 0:
        return replace(trial, refused=f"it crashed: its process was killed by signal {-process.returncode}")
    return _outcome(trial, written, process.returncode)


def _outcome(trial: DecoderTrial, written: bytes, status: int) -> DecoderTrial:
    if not status and len(written) <= _LARGEST:
        with suppress(*NO_JSON):
            made = from_json(written, DecoderTrial)
            if (made.name, made.codec) == (trial.name, trial.codec):
                return replace(made, refused=plain(made.refused))
    return replace(trial, refused=f"it crashed: its process ended with exit status {status}")
