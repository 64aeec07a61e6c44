"""Audio front ends, and the input tensor that gets their rows, quantised.

Log-mel, MFCC, TensorFlow Lite Micro's, and raw samples: each turns a stream of samples into rows, one per hop, so
that a hop of sound costs a hop of work. Training and the daemon use the same code. Sources: MFCC, Davis and
Mermelstein, IEEE Trans. ASSP 28 (1980), with the orthonormal DCT-II; TFLM's front end,
https://github.com/tensorflow/tflite-micro, `experimental/microfrontend`.
"""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, Protocol, TypeVar

import msgspec
import numpy as np
from msgspec import Meta, Struct
from msgspec.structs import asdict
from numpy.typing import NDArray

from agent.compute.manifest import AudioManifest
from agent.compute.tflite.model import TensorSpec
from agent.config.wording import plain_fault
from agent.errors import ModelError
from agent.structs import convert
from agent.types import Array, Samples

Rows = NDArray[np.float32]
Chosen = TypeVar("Chosen", bound=Struct)


class FrontEnd(Protocol):
    """Turns samples into rows of features. For one thread: it keeps the samples that the next row needs.

    Attributes:
        columns: values in a row.
        hop_s: from one row to the next, s.
        floor: value of a row in digital silence.
        is_stateful: its rows depend on all earlier samples (a noise floor, a gain), so it must get every sample.
    """

    columns: int
    hop_s: float
    floor: float
    is_stateful: bool

    def __call__(self, samples: Samples) -> Rows:
        """Return the finite rows, float32 [n, columns], that these samples, int16 [n], complete."""
        ...

    def reset(self) -> None:
        """Forget the samples so far: the next ones do not continue them."""
        ...


class AudioInput:
    """Fills one input tensor. For one thread.

    Attributes:
        rows: of the tensor.
        every: rows from one inference to the next.
    """

    def __init__(self, spec: TensorSpec, audio: AudioManifest, frontend: FrontEnd) -> None:
        """Prepare the buffer for a tensor.

        Raises:
            ModelError: the tensor does not hold whole rows of this front end, or has another dtype.
        """
        size = int(np.prod(spec.shape))
        columns = frontend.columns
        sides = [side for side in spec.shape if side > 1]
        if size < columns or size % columns or (columns > 1 and len(sides) > 1 and sides[-1] != columns):
            raise ModelError(
                f"input {spec} does not hold rows of front end {audio.frontend!r}: expected [1,rows,{columns}]"
            )
        if spec.dtype not in ("int8", "uint8", "int16", "float32"):
            raise ModelError(f"input {spec} does not take sound: expected int8, uint8, int16 or float32")
        self.rows = size // columns
        if size == 1:
            raise ModelError(
                f"input {spec} holds one sample: its length was left open; export it for a fixed one"
            )
        self.every = max(1, round(audio.every_s / frontend.hop_s)) if audio.every_s else self.rows
        self._kind = np.dtype(spec.dtype)
        self._fold_scale(spec, audio)
        self._silence = np.float32(frontend.floor)
        self._floor = self._stored(np.full((1, columns), frontend.floor, np.float32))
        # Each row is stored twice, so that the newest ones are always contiguous.
        self._ring = np.empty((2 * self.rows, columns), self._kind)
        self.reset()

    def reset(self) -> None:
        """Fill the buffer with silence."""
        self._ring[:] = self._floor
        self._at = self._fresh = 0

    def keep_newest(self, keep: int) -> None:
        """Replace all rows by silence, except the newest `keep`."""
        newest = self.newest.copy()
        newest[: max(0, self.rows - keep)] = self._floor
        self._ring[: self.rows] = self._ring[self.rows :] = newest
        self._at = 0

    def feed(self, rows: Rows) -> Iterator[int]:
        """Add rows, float32 [n, columns]; values that are not finite count as silence.

        Yields:
            The number of rows still to be added, whenever an inference is due and the tensor can be filled.
        """
        stored = self._stored(rows)
        done = 0
        while done < len(stored):
            take = min(len(stored) - done, self.every - self._fresh)
            self._push(stored[done : done + take])
            done += take
            self._fresh += take
            if self._fresh == self.every:
                self._fresh = 0
                yield len(stored) - done

    @property
    def newest(self) -> Array:
        """View of the newest rows as the tensor takes them, [rows, columns]."""
        return self._ring[self._at : self._at + self.rows]

    def fill(self, tensor: Array) -> None:
        """Write the newest rows into the tensor's memory."""
        np.copyto(tensor, self.newest.reshape(tensor.shape))

    def _push(self, stored: Array) -> None:
        rows = self.rows
        if len(stored) >= rows:
            self._ring[:rows] = self._ring[rows:] = stored[-rows:]
            self._at = 0
            return
        for part in (stored[: rows - self._at], stored[rows - self._at :]):
            if len(part):
                end = self._at + len(part)
                self._ring[self._at : end] = self._ring[rows + self._at : rows + end] = part
                self._at = end % rows

    def _fold_scale(self, spec: TensorSpec, audio: AudioManifest) -> None:
        """Fold normalising and quantising into `stored = slope * row + offset`."""
        scale = audio.std * (spec.scale or 1.0)
        self._slope = np.float32(1.0 / scale)
        self._offset = np.float32(spec.zero_point - audio.mean / scale)
        if self._kind.kind != "f":
            limits = np.iinfo(self._kind)
            self._least, self._most = np.float32(limits.min), np.float32(limits.max)
        self._plain = self._slope == 1.0 and self._offset == 0.0

    def _stored(self, rows: Rows) -> Array:
        if not math.isfinite(np.add.reduce(rows, axis=None)):
            rows = np.where(np.isfinite(rows), rows, self._silence)
        real = rows if self._plain else rows * self._slope + self._offset
        if self._kind.kind == "f":
            return real
        # Two ufuncs cost a fifth of `np.clip`.
        cut = np.minimum(np.maximum(np.rint(real), self._least), self._most)
        return cut.astype(self._kind)


_FULL_SCALE = 32768.0
_BLOCK = 128
"""Most rows computed at once."""
_LONGEST = 32_768
"""Most samples of a window: its spectrum and filters must fit into a small board's memory."""

Span = Annotated[float, Meta(gt=0.0, le=1000.0)]
Count = Annotated[int, Meta(ge=1)]


class LogMelOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the log-mel front end.

    Attributes:
        rate_hz: samples a second.
        window_ms: length of sound in one row, at most 1 s and 32,768 samples.
        hop_ms: from one row to the next; at most a window.
        mels: bands of a row, evenly spread over the mel scale.
        low_hz, high_hz: start of the lowest and end of the highest band; at least 1 Hz apart, and at most half
            the rate.
        offset: added to a band's energy before the logarithm, so that silence is finite. An energy of 1 is that
            of full-scale noise in one bin of the spectrum; 1e-7 lies 70 dB below.
        magnitude: bands sum magnitudes of samples in -1..1 under a Hann window of height 1, not energies, and all
            coefficients of `mfcc` have one factor, as recipes of TensorFlow's `tf.signal` have it.
        preemphasis: share of the sample before that is subtracted from each sample.
    """

    rate_hz: Count = 8000
    window_ms: Span = 25.0
    hop_ms: Span = 10.0
    mels: Annotated[int, Meta(ge=1, le=512)] = 40
    low_hz: Annotated[float, Meta(ge=0.0)] = 60.0
    high_hz: Annotated[float, Meta(gt=0.0)] = 3800.0
    offset: Annotated[float, Meta(ge=1e-30, le=1e6)] = 1e-7
    magnitude: bool = False
    preemphasis: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.0

    def __post_init__(self) -> None:
        if not self.low_hz + 1.0 <= self.high_hz <= self.rate_hz / 2:
            raise ValueError(
                f"bands from {self.low_hz:g} to {self.high_hz:g} Hz do not fit into sound of {self.rate_hz} Hz"
            )
        if not 1 <= self.hop <= self.window:
            raise ValueError(f"a hop of {self.hop_ms:g} ms is not within a window of {self.window_ms:g} ms")
        if self.window > _LONGEST:
            raise ValueError(f"a window of {self.window} samples is longer than {_LONGEST}")

    @property
    def window(self) -> int:
        """Samples of a window."""
        return round(self.window_ms * self.rate_hz / 1000)

    @property
    def hop(self) -> int:
        """Samples from one row to the next."""
        return round(self.hop_ms * self.rate_hz / 1000)


class LogMel:
    """Log-mel front end. The rows do not depend on how the stream is cut into pieces."""

    is_stateful = False

    def __init__(self, chosen: LogMelOptions) -> None:
        self.options = chosen
        self.columns, self.hop_s = chosen.mels, chosen.hop / chosen.rate_hz
        self.floor = float(np.log(chosen.offset))
        size = 1 << (chosen.window - 1).bit_length()
        self._taper = _taper(chosen.window, is_unit_energy=not chosen.magnitude)
        self._filters = mel_filters(chosen, size)
        self._tapered = np.zeros((_BLOCK, size), np.float32)
        self._energy = np.empty((_BLOCK, 1, size // 2 + 1), np.float32)
        self._square = np.empty_like(self._energy)
        self._kept = np.empty(chosen.window + chosen.hop, np.int16)
        self.reset()

    def reset(self) -> None:
        self._have = 0

    def __call__(self, samples: NDArray[np.int16]) -> NDArray[np.float32]:
        """Return the rows [n, mels] that these samples complete: natural logarithms of energy, always finite.

        The first row of a stream comes with its first full window, and every hop of samples then gives one.
        `samples` are int16 [any length] and need not be contiguous.
        """
        stream = np.concatenate((self._kept[: self._have], samples))
        count = max(0, (len(stream) - self.options.window) // self.options.hop + 1)
        rows = np.empty((count, self.options.mels), np.float32)
        for start in range(0, count, _BLOCK):
            self._fill(rows[start : start + _BLOCK], stream[start * self.options.hop :])
        rest = stream[count * self.options.hop :]
        self._have = len(rest)
        self._kept[: self._have] = rest
        return rows

    def _fill(self, rows: NDArray[np.float32], stream: NDArray[np.int16]) -> None:
        """Fill up to a block of rows from the start of `stream`."""
        count, window = len(rows), self.options.window
        windows = np.lib.stride_tricks.as_strided(
            stream, (count, window), (stream.strides[0] * self.options.hop, stream.strides[0]), writeable=False
        )
        np.multiply(windows, self._taper, out=self._tapered[:count, :window])
        spectrum: NDArray[Any] = np.fft.rfft(self._tapered[:count])[:, None]
        energy, square = self._energy[:count], self._square[:count]
        np.square(spectrum.real, out=energy, casting="same_kind")
        np.square(spectrum.imag, out=square, casting="same_kind")
        energy += square
        if self.options.magnitude:
            np.sqrt(energy, out=energy)
        # One product per row: a product for the block would round differently with the number of rows.
        np.matmul(energy, self._filters, out=rows[:, None])
        rows += np.float32(self.options.offset)
        np.log(rows, out=rows)


def _taper(window: int, *, is_unit_energy: bool) -> NDArray[np.float32]:
    """Return a periodic Hann window of unit energy, or of height 1, that also scales int16 to -1..1."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(window) + 0.5) / window)
    norm = np.sqrt(np.square(hann).sum()) if is_unit_energy else 1.0
    return np.asarray(hann / (norm * _FULL_SCALE), np.float32)


def mel_filters(options: LogMelOptions, size: int) -> NDArray[np.float32]:
    """Return triangular filters over the spectrum of `size` samples: [size / 2 + 1, mels].

    A band narrower than the spectrum's bins takes the nearest one. The scale is O'Shaughnessy's, as HTK has it:
    mel = 2595 log10(1 + f / 700).
    """
    low, high = (2595 * np.log10(1 + hz / 700) for hz in (options.low_hz, options.high_hz))
    edges = 700 * (10 ** (np.linspace(low, high, options.mels + 2) / 2595) - 1)
    bins = np.arange(size // 2 + 1)[:, None] * options.rate_hz / size
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    filters = np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clip(0)
    for band in np.flatnonzero(filters.sum(axis=0) == 0):
        filters[np.abs(bins[:, 0] - centre[band]).argmin(), band] = 1
    if options.preemphasis:
        gain = np.abs(1 - options.preemphasis * np.exp(-2j * np.pi * bins / options.rate_hz))
        filters = filters * (gain if options.magnitude else gain**2)
    return np.asarray(filters, np.float32)


class MfccOptions(LogMelOptions, frozen=True, forbid_unknown_fields=True):
    """Options of the MFCC front end: those of `logmel`, and:

    Attributes:
        coefficients: of each row, the first ones; at most as many as mels.
    """

    coefficients: Annotated[int, Meta(ge=1, le=512)] = 13

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coefficients > self.mels:
            raise ValueError(f"{self.coefficients} coefficients of {self.mels} mels")


class Mfcc:
    """MFCC front end: the cosine transform of log-mel rows."""

    is_stateful = False

    def __init__(self, chosen: MfccOptions) -> None:
        fields = asdict(chosen)
        self.columns = fields.pop("coefficients")
        self._logmel = LogMel(LogMelOptions(**fields))
        self.hop_s = self._logmel.hop_s
        n = np.arange(chosen.mels)
        cosine = np.cos(np.pi / chosen.mels * (n + 0.5)[:, None] * n[None, : self.columns])
        first = 2.0 if chosen.magnitude else 1.0
        cosine *= np.sqrt(np.where(n[: self.columns] == 0, first, 2.0) / chosen.mels)
        self._cosine = cosine.astype(np.float32)
        self.floor = float(self._logmel.floor * self._cosine[:, 0].sum())

    def __call__(self, samples: Samples) -> Rows:
        return np.asarray(self._logmel(samples) @ self._cosine, np.float32)

    def reset(self) -> None:
        self._logmel.reset()


_RATE_HZ, _HOP = 16_000, 160


class MicroOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the front end of TensorFlow Lite Micro.

    Attributes:
        hop_ms: from one row to the next. Of 20, every second row of 10 counts.
    """

    hop_ms: Literal[10, 20] = 10


class Micro:
    """TensorFlow Lite Micro's front end, as microWakeWord's models need it: 40 values each 10 or 20 ms.

    Noise reduction, gain control and a logarithm in fixed point, by `pymicro-features` (extra `[wakeword]`).
    """

    columns = 40
    floor = 0.0
    is_stateful = True

    def __init__(self, rate_hz: int = _RATE_HZ, hop_ms: int = 10) -> None:
        if rate_hz != _RATE_HZ:
            raise ModelError(f"front end 'micro' takes {_RATE_HZ} Hz, the manifest says rate_hz = {rate_hz}")
        try:
            library = importlib.import_module("pymicro_features")
        except ImportError as error:
            raise ModelError(
                "front end 'micro' needs the library pymicro-features: pip install '.[wakeword]' in the clone"
            ) from error
        self._frontend = library.MicroFrontend()
        self.hop_s, self._every = hop_ms / 1000, hop_ms // 10
        self._rest, self._count = b"", 0

    def __call__(self, samples: Samples) -> Rows:
        sound, at, rows = self._rest + samples.tobytes(), 0, []
        while at + 2 * _HOP <= len(sound):
            # It reads as many samples as complete one window.
            output = self._frontend.process_samples(sound[at : at + 2 * _HOP])
            at += 2 * output.samples_read
            if output.features:
                self._count += 1
                if self._count % self._every == 0:
                    rows.append(output.features)
        self._rest = sound[at:]
        return np.array(rows, np.float32).reshape(-1, self.columns)

    def reset(self) -> None:
        self._frontend.reset()
        self._rest, self._count = b"", 0


class RawOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """No options."""


class Raw:
    """The samples themselves in -1..1, one per row, for models such as YAMNet that take a waveform."""

    columns = 1
    floor = 0.0
    is_stateful = False

    def __init__(self, rate_hz: int) -> None:
        self.hop_s = 1.0 / rate_hz

    def __call__(self, samples: Samples) -> Rows:
        return (samples.astype(np.float32) / np.float32(32768.0)).reshape(-1, 1)

    def reset(self) -> None:
        pass


BUILDERS: dict[str, tuple[type[Struct], Callable[[Any, int], FrontEnd]]] = {
    "logmel": (LogMelOptions, lambda chosen, _: LogMel(chosen)),
    "mfcc": (MfccOptions, lambda chosen, _: Mfcc(chosen)),
    "micro": (MicroOptions, lambda chosen, rate_hz: Micro(rate_hz, chosen.hop_ms)),
    "raw": (RawOptions, lambda _, rate_hz: Raw(rate_hz)),
}
"""Options and builder, which gets them and the samples a second, by the name in a manifest."""


def build_frontend(audio: AudioManifest) -> FrontEnd:
    """Build the front end that a manifest names.

    Raises:
        ModelError: the name is unknown, an option is wrong, or a library is missing.
    """
    if audio.frontend not in BUILDERS:
        near = difflib.get_close_matches(audio.frontend, BUILDERS, 1)
        meant = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(BUILDERS)}"
        raise ModelError(f"no front end {audio.frontend!r}{meant}")
    kind, build = BUILDERS[audio.frontend]
    return build(options(audio, kind), audio.rate_hz)


def options(audio: AudioManifest, kind: type[Chosen]) -> Chosen:
    """Convert the manifest's options to a front end's struct. Raises ModelError if one is unknown or wrong."""
    known = [field.name for field in msgspec.structs.fields(kind)]
    given = {**audio.options, **({"rate_hz": audio.rate_hz} if "rate_hz" in known else {})}
    try:
        return convert(given, kind)
    except msgspec.ValidationError as error:
        listed = ", ".join(known) or "none"
        raise ModelError(
            f"front end {audio.frontend!r}: options: {plain_fault(str(error))}; known: {listed}"
        ) from None
