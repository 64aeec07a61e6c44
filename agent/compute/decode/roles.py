"""Which output tensor plays which part. Converters shuffle outputs, so shapes and names decide, not positions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from agent.compute.decode.setting import MisfitError
from agent.compute.tensors import TensorSpec

Shape = tuple[int | None, ...]

_MANY = 16
"""Outputs that are tried against each other at most."""


class Role(Struct, frozen=True):
    """A part that a tensor plays.

    Attributes:
        name: for messages and for the option `tensors`.
        shapes: any of these; None for any size.
        hints: words that its name often contains, in lower case.
    """

    name: str
    shapes: tuple[Shape, ...]
    hints: tuple[str, ...] = ()

    def fits(self, spec: TensorSpec) -> bool:
        """Whether a tensor has one of the shapes."""
        return any(
            len(shape) == len(spec.shape)
            and all(size is None or size == found for size, found in zip(shape, spec.shape, strict=True))
            for shape in self.shapes
        )

    def hinted(self, spec: TensorSpec) -> bool:
        """Whether a tensor's name suggests this part."""
        return any(hint in spec.name.lower() for hint in self.hints)

    def __str__(self) -> str:
        shapes = (",".join("*" if size is None else str(size) for size in shape) for shape in self.shapes)
        return f"{self.name} {' or '.join(f'[{shape}]' for shape in shapes)}"


def cast(
    roles: Sequence[Role], outputs: Sequence[TensorSpec], named: Mapping[str, str] | None = None
) -> tuple[int, ...]:
    """Index of the output for each role: shapes must fit, then hints decide, then the order.

    Args:
        roles: of a decoder.
        outputs: of a model.
        named: role → tensor name, as the manifest insists.

    Raises:
        MisfitError: some role has no tensor.
    """
    places = [_places(role, outputs, (named or {}).get(role.name)) for role in roles]
    best = max(_castings(places), key=lambda casting: _hints(casting, roles, outputs), default=None)
    if best is None:
        raise MisfitError(f"expected {_join(roles)}; the tensors left no choice that fits all: {_join(outputs)}")
    return best


def cast_scores(
    labels: int, outputs: Sequence[TensorSpec], named: Mapping[str, str], hints: tuple[str, ...]
) -> int:
    """Index of the output with one score per class, [1,classes] or [1,1,1,classes].

    Args:
        labels: how many there are; 0: not known.
        outputs: of a model.
        named: see `cast`.
        hints: see `Role`.

    Raises:
        MisfitError: there is none, or it has another number of classes.
    """
    count = labels or None
    try:
        return cast((Role("scores", ((1, count), (1, 1, 1, count)), hints),), outputs, named)[0]
    except MisfitError:
        if not labels:
            raise
    other = outputs[cast_scores(0, outputs, named, hints)]
    raise other_classes(labels, other.shape[-1], other)


def other_classes(labels: int, classes: int, spec: TensorSpec) -> MisfitError:
    """The error for a manifest with another number of labels than the scores in `spec` have classes."""
    found = "1 class" if classes == 1 else f"{classes} classes"
    return MisfitError(f"expected a score for each of {labels} labels, found {found} in {spec}")


def _places(role: Role, outputs: Sequence[TensorSpec], name: str | None) -> list[int]:
    places = [i for i, spec in enumerate(outputs[:_MANY]) if role.fits(spec) and name in (None, spec.name)]
    if not places:
        called = f" named {name!r}" if name else ""
        raise MisfitError(f"expected an output {role}{called}, found {_join(outputs)}")
    return places


def _castings(places: Sequence[Sequence[int]], taken: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    if len(taken) == len(places):
        yield taken
        return
    for place in places[len(taken)]:
        if place not in taken:
            yield from _castings(places, (*taken, place))


def _hints(casting: Sequence[int], roles: Sequence[Role], outputs: Sequence[TensorSpec]) -> int:
    return sum(role.hinted(outputs[i]) for i, role in zip(casting, roles, strict=True))


def _join(items: Sequence[object]) -> str:
    return ", ".join(map(str, items)) or "nothing"
