"""Models of others that can be fetched: where they are, what they do, and under which licence."""

from __future__ import annotations

import difflib
import functools
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from agent.config.toml import read_toml
from agent.errors import ModelError
from agent.structs import convert
from agent.text import plain

_FILE = Path(__file__).with_name("catalogue.toml")
_Bytes = Annotated[int, Meta(gt=0)]

TASKS: dict[str, tuple[str, ...]] = {
    "nanodet": ("detection",),
    "yolo": ("detection",),
    "ssd": ("detection",),
    "fomo": ("detection",),
    "blazeface": ("face detection",),
    "classify": ("classification",),
    "segment": ("segmentation",),
    "keypoints": ("pose",),
    "landmarks": ("landmarks", "pose"),
    "keyword": ("keywords",),
    "anomaly": ("anomalies",),
    "ctc": ("text",),
    "regression": ("measurement",),
    "raw": ("raw outputs",),
    "features": ("features",),
}
"""Tasks that a model may have, by its decoder."""

SAME_TASKS = {
    "detect": "detection",
    "classify": "classification",
    "face": "face detection",
    "segment": "segmentation",
    "speech": "keywords",
    "wakeword": "keywords",
    "inspect": "anomalies",
}
"""Words of `agent.models.recommend.TASKS` for tasks that are called otherwise here."""


class CatalogueModel(Struct, frozen=True, forbid_unknown_fields=True):
    """A model that can be fetched.

    Attributes:
        name: under which it is fetched, and of the file that is written.
        task: what it does.
        description: of what, and with which input.
        licence: SPDX identifier.
        url: of the archive.
        sha256: of the archive.
        fetched_bytes: of the archive.
        member: name of the model in it.
        bytes: of the model.
        accuracy: as published; empty: nothing is.
        about: URL of its description.
        decoder: of its outputs.
        labels: of its classes.
        int8: bundled model that is this one as INT8; empty: none is.
    """

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    task: str
    description: str
    licence: str
    url: Annotated[str, Meta(pattern="^https://")]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    fetched_bytes: _Bytes
    member: str
    bytes: _Bytes
    accuracy: str
    about: str
    decoder: str
    labels: tuple[str, ...]
    int8: str = ""


@functools.cache
def catalogue() -> tuple[CatalogueModel, ...]:
    """Return the models that can be fetched, by name."""
    return convert(read_toml(_FILE, "the catalogue").data["models"], tuple[CatalogueModel, ...])


def find_in_catalogue(name: str) -> CatalogueModel:
    """Return a model of the catalogue.

    Raises:
        ModelError: there is none of this name.
    """
    known = {one.name: one for one in catalogue()}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else "`vedette models pull` lists them; a URL is fetched as well"
    raise ModelError(f"{plain(name)}: there is no such model in the catalogue; {hint}")


def with_task(task: str) -> tuple[CatalogueModel, ...]:
    """Return what the catalogue has for a task; empty: all.

    Raises:
        ModelError: no model has this task.
    """
    wanted = check_task(task)
    return tuple(one for one in catalogue() if wanted in ("", one.task))


def known_tasks() -> list[str]:
    """Return the tasks of all decoders and of the catalogue."""
    listed = {one.task for one in catalogue()}
    return sorted({task for some in TASKS.values() for task in some} | listed)


def check_task(task: str) -> str:
    """Return a task as it is called here. Raise ModelError if no model can have it; an empty one is right."""
    task = SAME_TASKS.get(task, task)
    if task and task not in known_tasks():
        raise ModelError(f"{plain(task)}: there is no such task: expected {', '.join(known_tasks())}")
    return task
