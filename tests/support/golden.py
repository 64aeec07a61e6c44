"""Results of the bundled model on stored pictures, variant by variant.

Run as a program (scripts/build_models/golden) it writes `tests/golden` anew: pictures out of the bundled clip
and what the model of today sees on them; and the golden picture of the model itself.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path

import cv2
import msgspec

from agent.capture.source import open_source
from agent.compute.vision import VideoPerception
from agent.config import DecodeConfig, GateConfig, StreamConfig
from agent.models.files import ZOO
from agent.models.library import open_manifest, open_model
from agent.types import Detection, Frame, Image

GOLDEN = Path(__file__).parent.parent / "golden"
MODEL = "nanodet"
WEAKEST = 0.3
"""Score from which detections are kept: below the 0.4 that counts, so that one on the edge finds its match."""

_CUTS = {"walkers-020": (20, 340, 100), "walkers-150": (150, 270, 100), "walkers-280": (280, 100, 100)}
"""Picture → number of the clip's frame, and left and top of what is cut out of it, pixels."""
_SIDE = 320

Golden = dict[str, dict[str, list[Detection]]]
"""Picture → variant → detections."""


def variants() -> tuple[str, ...]:
    """Names of the model's variants."""
    return tuple(variant.name for variant in open_manifest(MODEL).variants)


def picture(name: str) -> Image:
    """A picture that is kept, BGR."""
    read = cv2.imread(str(GOLDEN / f"{name}.png"))
    assert read is not None, f"no picture {name} in {GOLDEN}"
    return read.astype("uint8", copy=False)


def expected() -> Golden:
    """Return the stored results."""
    return msgspec.json.decode((GOLDEN / f"{MODEL}.json").read_bytes(), type=Golden)


def seen(variant: str, image: Image) -> list[Detection]:
    """Return the detections of the model."""
    config = StreamConfig(
        "test:", MODEL, gate=GateConfig(motion=False), decode=DecodeConfig(score_threshold=WEAKEST)
    )
    vision = VideoPerception("golden", config, open_model(MODEL, variant))
    found = vision.process(Frame(image, "golden", 0, time.monotonic_ns(), datetime.now(UTC))).detections
    vision.close()
    assert found is not None
    return found


def remake() -> None:
    """Write the pictures and what is seen on them."""
    _cut()
    # The one that comes with the model, for `agent.models.library`.
    cv2.imwrite(str(ZOO / "nanodet-golden.jpg"), picture("walkers-150"), [cv2.IMWRITE_JPEG_QUALITY, 85])
    golden = {name: {variant: seen(variant, picture(name)) for variant in variants()} for name in _CUTS}
    plain = json.loads(msgspec.json.encode(golden), parse_float=lambda text: round(float(text), 3))
    (GOLDEN / f"{MODEL}.json").write_text(json.dumps(plain, indent=1) + "\n")


def _cut() -> None:
    clip = open_source(f"file:{ZOO / 'walkers.mp4'}?pace=fast", stall_s=10.0)
    number = 0
    while (frame := clip.read(None)) is not None:
        for name, (wanted, left, top) in _CUTS.items():
            if number == wanted:
                cut = frame[top : top + _SIDE, left : left + _SIDE]
                cv2.imwrite(str(GOLDEN / f"{name}.png"), cut, [cv2.IMWRITE_PNG_COMPRESSION, 9])
        number += 1
    clip.close()


if __name__ == "__main__":
    remake()
