"""Values that several tables of the configuration share, with their limits."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

NAME = {"use": "use letters, digits, - and _, up to 63 characters; begin with a letter or digit"}
"""Text that replaces the pattern in messages, see `agent.config.toml`."""
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$", extra=NAME)]
Seconds = Annotated[float, Meta(gt=0.0, le=1e8)]
Patience = Annotated[float, Meta(ge=0.1, le=1e8)]
Unit = Annotated[float, Meta(ge=0.0, le=1.0)]
Edges = tuple[Unit, Unit, Unit, Unit]
"""Left, top, right, bottom, as fractions 0..1 of the picture."""
Count = Annotated[int, Meta(ge=1)]
