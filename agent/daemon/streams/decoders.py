"""Chooses the hardware decoder of streams with `capture.decoder = "auto"`, and keeps what was measured.

A measurement holds for the codec, the board, its kernel, its devices, and the versions of Vedette and PyAV.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from agent import __version__
from agent.board.identity import read_board
from agent.capture.decoder_trial import measure_decoders
from agent.capture.hardware_decoder import DECODERS, NODES, SOFTWARE, DecoderTrial, best_decoder, candidates
from agent.errors import NO_JSON, StorageError
from agent.storage.state import MeasurementFiles
from agent.structs import from_json

log = logging.getLogger(__name__)
_VERSION = 1
"""Version of the method of measuring; measurements of another version are void."""
_FOLDER = "decoders"


class StoredDecoders(Struct, frozen=True):
    """Measurements of the decoders of one codec; `about` is the digest of what they depend on."""

    version: int
    about: str
    trials: tuple[DecoderTrial, ...]


class DecoderSelection:
    """Best decoders of this board by codec. Any thread may call it; nothing is measured before it is asked."""

    def __init__(
        self, state: Path, measure: Callable[[str], tuple[DecoderTrial, ...]] = measure_decoders
    ) -> None:
        """Prepare; `state` is the state folder, `measure` tries all decoders of a codec."""
        self._files, self._measure = MeasurementFiles(state, _FOLDER), measure
        self._lock = threading.Lock()
        self._best: dict[str, str] = {}

    def best(self, codec: str) -> str:
        """Return the best hardware decoder for a codec; empty: none, or it is being measured. Does not wait."""
        with self._lock:
            if (known := self._best.get(codec)) is not None:
                return known
            self._best[codec] = ""
        if candidates(codec):
            threading.Thread(target=self._find, args=(codec,), name=f"decoders-{codec}", daemon=True).start()
        return ""

    def _find(self, codec: str) -> None:
        about = _about(codec)
        trials = self._read(codec, about)
        if trials is None:
            trials = self._measure(codec)
            self._write(codec, about, trials)
        chosen = best_decoder(trials)
        _tell(codec, chosen, trials)
        with self._lock:
            self._best[codec] = chosen

    def _read(self, codec: str, about: str) -> tuple[DecoderTrial, ...] | None:
        try:
            content = self._files.read(codec, about)
            kept = from_json(content, StoredDecoders) if content else None
        except (StorageError, *NO_JSON) as error:
            log.warning("%s: %s; measuring again", self._files.path(codec, about), error)
            return None
        if kept is None or (kept.version, kept.about) != (_VERSION, about):
            return None
        known = all(one.name in (SOFTWARE, *DECODERS) for one in kept.trials)
        return kept.trials if known else None

    def _write(self, codec: str, about: str, trials: tuple[DecoderTrial, ...]) -> None:
        try:
            self._files.write(codec, about, msgspec.json.encode(StoredDecoders(_VERSION, about, trials)))
        except StorageError as error:
            log.warning("%s; measuring again after the next start", error)


def _tell(codec: str, chosen: str, trials: tuple[DecoderTrial, ...]) -> None:
    """Log the choice with the reason of each refusal."""
    refused = "; ".join(f"{one.name}: {one.refused}" for one in trials if one.refused)
    if chosen:
        times = {one.name: one.cpu_ms for one in trials}
        log.info(
            "%s is decoded by %s: %.2f ms of the processor per picture of a test clip, %.2f in software",
            codec,
            chosen,
            times[chosen],
            times.get(SOFTWARE, 0.0),
        )
    else:
        log.info("%s is decoded in software: %s", codec, refused or "no hardware decoder takes less")


def _about(codec: str) -> str:
    """Return the digest of everything that a measurement depends on."""
    import av  # loaded by whoever asks for a decoder; the package's metadata would take 2 MB more

    board = read_board()
    nodes = sorted(map(str, Path("/dev").glob(NODES)))
    parts = (codec, board.model, board.cpu, board.kernel, __version__, av.__version__, *nodes)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
