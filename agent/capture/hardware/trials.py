"""Starts trials of decoders, each in a process of its own, which may hang, crash or write what it likes."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct
from msgspec.structs import replace

from agent.capture.hardware.decoders import SOFTWARE, DecoderTrial, candidates
from agent.child import ChildError, ChildProcess, encode
from agent.errors import NO_JSON, reason_of
from agent.structs import from_json
from agent.text import plain

_WITHIN_S = 60.0
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
    try:
        process = ChildProcess(module)
    except OSError as error:
        return replace(trial, refused=f"its process cannot be started: {reason_of(error)}")
    try:
        request = encode(TrialRequest(name, codec))
        answer = process.ask(request, clip, within_s=within_s, what="the trial", largest=_LARGEST)
        made = from_json(answer, DecoderTrial)
    except ChildError as error:
        return replace(trial, refused=f"it {plain(str(error))}")
    except NO_JSON as error:
        return replace(trial, refused=f"it sent an invalid answer: {plain(str(error))}")
    finally:
        process.end()
    return replace(made, name=name, codec=codec, refused=plain(made.refused))
