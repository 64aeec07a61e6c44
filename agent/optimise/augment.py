"""Random changes of training pictures: shifts, flips and turns by one gather, and light.

Pictures stay uint8 until they are normalised. With one integer mean and one standard deviation for all channels,
the normalisation becomes the quantisation of a model's input, and costs nothing on a board.
"""

from __future__ import annotations

from typing import Any

import torch
from msgspec import Struct
from numpy.typing import NDArray

from agent.errors import ModelError


class Normalisation(Struct, frozen=True, forbid_unknown_fields=True):
    """`(pixel - mean) / std`.

    Attributes:
        mean: pixel value, one for all channels or one for each.
        std: the same, in pixel values.
    """

    mean: float | tuple[float, ...] = 128.0
    std: float | tuple[float, ...] = 64.0

    def __post_init__(self) -> None:
        if not all(0 <= one <= 255 for one in _each(self.mean)):
            raise ValueError(f"mean: expected pixel values, 0 to 255, got {self.mean}")
        if not all(0 < one < float("inf") for one in _each(self.std)):
            raise ValueError(f"std: expected more than 0, got {self.std}")

    def check(self, channels: int) -> None:
        """Check that it fits pictures of so many channels.

        Raises:
            ModelError: it does not.
        """
        for name, values in (("mean", _each(self.mean)), ("std", _each(self.std))):
            if len(values) not in (1, channels):
                raise ModelError(f"normalisation: {len(values)} values of {name} for {channels} channels")

    def apply(self, pictures: Any) -> Any:
        """Normalise pictures.

        Args:
            pictures: a uint8 or float32 tensor [pictures, height, width, channels].

        Returns:
            A float32 tensor [pictures, channels, height, width], channels last in memory.
        """
        mean, std = (torch.tensor(_each(one), device=pictures.device) for one in (self.mean, self.std))
        return ((pictures.float() - mean) / std).permute(0, 3, 1, 2)


def _each(values: float | tuple[float, ...]) -> tuple[float, ...]:
    return values if isinstance(values, tuple) else (float(values),)


class Augmentation(Struct, frozen=True, forbid_unknown_fields=True):
    """Changes of each picture.

    Attributes:
        shift: largest shift in each direction, pixels; what comes in is the picture's own edge, mirrored.
        flip: mirror every other epoch, half of the pictures in even ones and the others in odd ones.
        turn: turn by 0, 90, 180 or 270 degrees; for square pictures.
        light: largest change of the brightness and of the contrast, as a share of them, 0..1.
    """

    shift: int = 2
    flip: bool = True
    turn: bool = False
    light: float = 0.0

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise ValueError(f"shift: expected 0 or more pixels, got {self.shift}")
        if not 0 <= self.light < 1:
            raise ValueError(f"light: expected 0 to less than 1, got {self.light}")

    def check(self, height: int, width: int) -> None:
        """Check that pictures of this size can be changed so.

        Raises:
            ModelError: they are too small.
        """
        if self.shift >= min(height, width):
            raise ModelError(f"training pictures of {height}×{width} are too small for shifts of {self.shift}")
        if self.turn and height != width:
            raise ModelError(f"training pictures of {height}×{width} cannot be turned: only square ones can")


class Augmenter:
    """Training pictures, from which changed batches are drawn.

    Args:
        pictures: uint8 [pictures, height, width, channels]; or real values, float32, without changes of light.
        augmentation: changes of each picture.
        normalisation: of each batch.
        seed: of all that is random.
        device: a torch device, on which the pictures are kept.
    """

    def __init__(
        self,
        pictures: NDArray[Any],
        augmentation: Augmentation,
        normalisation: Normalisation,
        seed: int,
        device: Any,
    ) -> None:
        self._augmentation, self._normalisation, self._seed, self._device = (
            augmentation,
            normalisation,
            seed,
            device,
        )
        count, self._height, self._width, channels = pictures.shape
        self._pixels = torch.from_numpy(pictures).reshape(-1, channels).to(device)
        self._flipped = torch.rand(count, generator=self._draw(0)) < 0.5

    def batch(self, indices: Any, epoch: int, step: int) -> Any:
        """Return changed and normalised pictures, float32 [indices, channels, height, width], channels last.

        Args:
            indices: of the pictures, an int64 tensor.
            epoch: number of the epoch, which decides the flips.
            step: number of the step, which with the seed decides all else.
        """
        draw = self._draw(step + 1)
        rows = _shifted(len(indices), self._height, self._augmentation.shift, draw)
        columns = _shifted(len(indices), self._width, self._augmentation.shift, draw)
        if self._augmentation.flip:
            flip = self._flipped[indices] ^ bool(epoch % 2)
            columns = torch.where(flip[:, None], columns.flip(1), columns)
        first = indices[:, None, None] * (self._height * self._width)
        places = first + rows[:, :, None] * self._width + columns[:, None, :]
        if self._augmentation.turn:
            places = _turned(places, draw)
        chosen = self._pixels[places.to(self._device).view(-1)].view(*places.shape, -1)
        if self._augmentation.light:
            chosen = lit(chosen, self._augmentation.light, draw)
        return self._normalisation.apply(chosen)

    def _draw(self, number: int) -> Any:
        return torch.Generator().manual_seed(self._seed * 1_000_003 + number)


def lit(pictures: Any, strength: float, draw: Any) -> Any:
    """Return pictures whose contrast and then brightness is changed, pixel values 0..255 as float.

    Args:
        pictures: a tensor [pictures, height, width, channels].
        strength: largest change, as a share.
        draw: a torch generator.
    """
    factors = 1 + strength * (2 * torch.rand((2, len(pictures), 1, 1, 1), generator=draw) - 1)
    contrast, brightness = factors.to(pictures.device)
    values = pictures.float()
    mean = values.mean((1, 2, 3), keepdim=True)
    return (((values - mean) * contrast + mean) * brightness).clamp(0, 255)


def _shifted(count: int, size: int, shift: int, draw: Any) -> Any:
    """Return the source of each row after a random shift, int64 [count, size]; beyond the edge it is mirrored."""
    offsets = torch.randint(-shift, shift + 1, (count, 1), generator=draw)
    places = (torch.arange(size) + offsets).abs()
    return torch.where(places >= size, 2 * (size - 1) - places, places)


def _turned(places: Any, draw: Any) -> Any:
    """Return the source of each pixel after quarter turns, int64 [count, side, side]."""
    quarters = torch.randint(0, 4, (len(places),), generator=draw)
    found = places.clone()
    for number in (1, 2, 3):
        chosen = quarters == number
        found[chosen] = torch.rot90(places[chosen], number, (1, 2))
    return found
