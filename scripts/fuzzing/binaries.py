"""Parsers of what no person writes: models, sound, bundles, answers of worker processes."""

from __future__ import annotations

import io
import os
import random
import shutil
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

from target import FOLDER, ROOT

from agent.capture.audio_file import read_whole
from agent.child import Failed, encode
from agent.compute.decode.completion import complete, facts_of
from agent.compute.infer import worker
from agent.compute.infer.chain import TimingRun
from agent.compute.infer.litert import load_runtime
from agent.compute.infer.session import SessionOptions
from agent.compute.infer.vetting import KNOWN, VettingLimits, identity, outcome
from agent.compute.manifest import Manifest, Model, OutputManifest, Variant
from agent.compute.tflite.model import ModelFile, TensorSpec
from agent.compute.tflite.read import Runtime, incompatibilities, read_modelfile
from agent.errors import ModelError, VedetteError
from agent.update import bundle as archive
from agent.update.bundle import Description, Migration, Target, parse, render

SHORT_MODELS = 200_000
"""Bytes: longer models are left out, for they make everything slow and say no more."""

_RUNTIMES: tuple[Runtime, ...] = ("litert", "tflite-runtime")


RUN: Counter[str] = Counter()
"""Counts of outcomes of accepted models in the runtime that is installed here."""
_NEIGHBOURS = 4
_NUMBERS = (0, 1, 2, 5, 0x100, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_LIMITS = VettingLimits(within_s=15.0, cpu_s=3, memory=3 * 2**30)
"""Below the time that one input may take."""


def modelfile(data: bytes) -> None:
    """Read a model; what a runtime would not be known to refuse is opened and run, as the daemon's models are.

    So are some of its neighbours: coverage leads to what our reader has not seen, not to what crashes a runtime.
    """
    _read(data)
    for other in _neighbours(data):
        with suppress(VedetteError):
            _read(other)


def _neighbours(data: bytes) -> Iterator[bytes]:
    """Models of the same length with numbers changed in one to four places, most of which the reader accepts."""
    chance = random.Random(zlib.crc32(data))
    for _ in range(_NEIGHBOURS):
        changed = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 4))):
            at = chance.randrange(8, len(data) - 4)
            if chance.random() < 0.6:
                changed[at] = chance.randrange(256)
            else:
                changed[at : at + 4] = chance.choice(_NUMBERS).to_bytes(4, "little")
        yield bytes(changed)


def _read(data: bytes) -> None:
    model = read_modelfile(data)
    refused = {runtime: incompatibilities(model, runtime) for runtime in _RUNTIMES}
    with suppress(VedetteError):  # it need not be a kind of model that can be guessed
        complete({}, facts_of(data, model), "model")
    if not refused[load_runtime()[0]]:
        _run(data, model)


def _vet(model: Model, *, threads: int) -> None:
    """Vet a model, even if its outcome is known, and cache nothing."""
    try:
        reason = outcome(model, SessionOptions(threads=threads), _LIMITS, None).result()
    finally:
        KNOWN.pop(identity(model), None)
    if reason:
        raise ModelError(f"{model.path}: {reason}")


def _run(data: bytes, file: ModelFile) -> None:
    """Have a model vetted, and vetted again by another process if it runs: it must not crash the runtime then."""
    variants = tuple(Variant(f"{n}", signature.name) for n, signature in enumerate(file.signatures)) or (
        Variant("full"),
    )
    model = Model(data, "", Manifest("fuzzed", OutputManifest("classify"), variants=variants), "fuzzed.tflite")
    try:
        _vet(model, threads=1)
    except ModelError as error:
        RUN[_kind(error)] += 1
        return
    RUN["ran"] += 1
    try:
        _vet(model, threads=2)
    except ModelError as error:
        if " crashed " in str(error):
            raise AssertionError(f"ran, and then {error}") from error
        RUN[f"ran, and then {_kind(error)}"] += 1


def _kind(error: ModelError) -> str:
    """`crashed … (SIGSEGV)`, or the like; what the runtime itself refuses is one kind."""
    words = str(error).partition(": ")[2].partition(";")[0]
    return words if words.startswith(("crashed", "hung", "cannot be vetted")) else "refused by the runtime"


def modelfile_seeds() -> list[bytes]:
    import numpy as np

    from tests.support import tflite_builder as build

    boxes = {"boxes": np.zeros((1, 2, 4), np.float32), "scores": np.zeros((1, 2), np.float32)}
    made = [
        build.add_model(signature="serve"),
        build.fully_connected_model(hybrid=True),
        build.constant_model(boxes, signature="serve"),
        build.custom_model("Odd"),
        build.write([build.T("x", (1, 4)), build.T("y", (1, 4))], [build.Op("LOGISTIC", (0,), (1,))], (0,), (1,)),
        build.write(
            [build.T("x", (1, 4)), build.T("y", (1, 4))],
            [build.Op("SOFTMAX", (0,), (1,))],
            (0,),
            (1,),
            metadata={"TFLITE_METADATA": b"\x10\0\0\0M001" + bytes(40), "min_runtime_version": b"1.5.0"},
        ),
    ]
    zoo = [path.read_bytes() for path in sorted((ROOT / "agent" / "models" / "zoo").glob("*.tflite"))]
    return [*made, *(content for content in zoo if len(content) <= SHORT_MODELS)]


def sound(data: bytes) -> None:
    path = FOLDER / "sound.wav"
    path.write_bytes(data)
    read_whole(path, 16_000)


def sound_seeds() -> list[bytes]:
    import numpy as np
    import soundfile

    sound = (np.sin(np.arange(800) / 8) * 8000).astype(np.int16)
    made = []
    for kind, subtype in (("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("FLAC", "PCM_16")):
        with io.BytesIO() as file:
            soundfile.write(file, np.stack([sound, sound], 1), 8000, subtype, format=kind)
            made.append(file.getvalue())
    return made


def bundle(data: bytes) -> None:
    """A bundle, which is unpacked into its folder and nowhere else; or its description alone."""
    if data.startswith(b"schema"):
        found = parse(data)
        assert parse(render(found)) == found
        return
    path, slot = FOLDER / "x.vedette", FOLDER / "slot"
    path.write_bytes(data)
    before = sorted(FOLDER.iterdir())
    try:
        archive.unpack(path, archive.read_description(path), slot)
    except VedetteError:
        assert sorted(FOLDER.iterdir()) == before, "something was left"
        raise
    assert sorted(FOLDER.iterdir()) == sorted([*before, slot]), "something was written beside"
    shutil.rmtree(slot)


def bundle_seeds() -> list[bytes]:
    files = {"wheels/vedette-1.0-py3-none-any.whl": b"a wheel", "config/vedette.toml": b"[mqtt]\n"}
    for name, content in files.items():
        (FOLDER / "seeds" / name).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / "seeds" / name).write_bytes(content)
    sources = {name: FOLDER / "seeds" / name for name in files}
    described = Description(
        schema=1,
        name="vedette",
        version="1.0",
        counter=7,
        kind="full",
        target=Target("aarch64", "3.11", boards=["pi4b"]),
        migrations=[
            Migration("rename", "mqtt.server", to="mqtt.host"),
            Migration("set", "device.name", value="x"),
        ],
        files={name: archive.listed(path) for name, path in sources.items()},
    )
    archive.write(FOLDER / "seeds.vedette", described, sources)
    return [(FOLDER / "seeds.vedette").read_bytes(), render(described)]


def answer(data: bytes) -> None:
    """Decode an answer of a worker process; tensors that are accepted can be mapped."""
    said = worker.decode_answer(data)
    region = said.region if isinstance(said, worker.ModelOpened) else said
    if isinstance(region, worker.TensorRegion):
        memory = worker.create_shared_memory()
        try:
            worker.map_tensors(memory, region)
        finally:
            os.close(memory)


def answer_seeds() -> list[bytes]:
    specs = TensorSpec("image", (1, 4, 4, 3), "uint8", 0.5, -1), TensorSpec("scores", (1, 8), "float32")
    region = worker.TensorRegion(specs[:1], specs[1:], 4096, worker.region_bytes(specs))
    made = (
        region,
        worker.ModelOpened("litert 2.3.0", 12, 3, region),
        worker.Usage(1.5, 40.0),
        TimingRun((1.5, 2.5), 4.0),
        Failed("no such operation", model=True),
    )
    return [encode(one) for one in made]
