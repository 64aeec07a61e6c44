"""`[[secondary]]`: another model that is run on each object which the first model finds.

It stands in a stream (`[[streams.NAME.secondary]]`) or in the manifest of the first model. A manifest of a
secondary model may name further ones, which are run on what that finds: vehicle → plate → text.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from agent.config.toml import Name, Unit


class SecondaryConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[[secondary]]`: a model that tells more about each object, as an attribute of its track.

    It is run on the part of the picture that an object covers, when the object appears, then every `every_s`, and
    sooner when it is seen larger. While its answers are the same the time between two grows to `settled_every_s`.

    Attributes:
        name: of the attribute in messages, such as `plate`.
        model: name of a bundled model, or path of a `.tflite` or of its manifest; in a manifest the name of a
            file beside it.
        variant: size of the model; empty: its first.
        labels: only objects with these labels; empty: all.
        answers: only these results of the model count; empty: all.
        pattern: regular expression that a text must match, of a model that reads; overrides its manifest's.
        gallery: folder of pictures of known things, one sub-folder for each; its name is told of what looks like
            its pictures. For models of embeddings.
        margin: share of the box's sides that is added on each side.
        square: extend the shorter side to the longer one's length, as models of faces and hands expect.
        min_pixels: objects whose shorter side has fewer pixels are left out.
        score_threshold: overrides that of the model's manifest.
        every_s: time between two runs on one object, s; 0: each picture.
        settled_every_s: longest time between two runs while the answers are the same, s.
        max_objects: most objects of one picture on which it is run; the others wait for the next one.
    """

    name: Name
    model: Annotated[str, Meta(min_length=1)]
    variant: str = ""
    labels: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    pattern: Annotated[str, Meta(max_length=1000)] = ""
    gallery: str = ""
    margin: Unit = 0.1
    square: bool = False
    min_pixels: Annotated[int, Meta(ge=1, le=10_000)] = 16
    score_threshold: Unit | None = None
    every_s: Annotated[float, Meta(ge=0.0, le=3600.0)] = 1.0
    settled_every_s: Annotated[float, Meta(ge=0.0, le=3600.0)] = 10.0
    max_objects: Annotated[int, Meta(ge=1, le=100)] = 4
