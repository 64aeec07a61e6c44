"""Cameras on USB or CSI through V4L2."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import cv2

from agent.capture.opencv import Capture, describe, open_capture
from agent.capture.options import Options
from agent.capture.uri import Address
from agent.errors import SourceError

log = logging.getLogger(__name__)


def open_camera(address: Address, stall_s: float) -> Capture:
    """Open a V4L2 camera, and say so when it gives another size, rate or format than asked.

    Raises:
        SourceError: it is missing, forbidden, busy, or no camera.
    """
    device = Path(address.target)
    _check(device, address.shown)
    capture = open_capture(str(device), cv2.CAP_V4L2)
    if capture is None:
        raise SourceError(
            f"{address.shown}: expected a camera; {device} gives no pictures: another program may use it"
            f" (fuser -v {device}), or it is the camera's second, data node"
        )
    _ask(capture, address.options)
    for name, asked, given in differences(capture, address.options):
        log.warning("%s: asked for %s %s; the camera gives %s", address.shown, name, asked, given)
    log.info("%s: %s %s", address.shown, describe(capture), _fourcc(capture))
    return Capture(capture, address.shown)


def _check(device: Path, shown: str) -> None:
    if not device.exists():
        found = ", ".join(sorted(map(str, Path("/dev").glob("video*")))) or "no camera at all"
        raise SourceError(f"{shown}: expected a camera; there is no {device}; found {found}; is it plugged in?")
    if not os.access(device, os.R_OK | os.W_OK):
        raise SourceError(f"{shown}: this user may not open {device}; add it to the group video")


def _ask(capture: cv2.VideoCapture, options: Options) -> None:
    """Format first: it decides which sizes and rates there are. A refusal shows when reading back."""
    if options.format:
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*options.format))
    if options.size:
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, options.size[0])
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, options.size[1])
    if options.fps:
        capture.set(cv2.CAP_PROP_FPS, options.fps)


def differences(capture: cv2.VideoCapture, options: Options) -> list[tuple[str, str, str]]:
    """What the device does otherwise than asked: name, asked, given."""
    size = capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
    fps = capture.get(cv2.CAP_PROP_FPS)
    found = []
    if options.size and size != options.size:
        found.append(("size", "{}x{}".format(*options.size), "{:.0f}x{:.0f}".format(*size)))
    if options.fps and abs(fps - options.fps) > 0.05 * options.fps:
        found.append(("fps", f"{options.fps:g}", f"{fps:g}"))
    if options.format and _fourcc(capture) != options.format:
        found.append(("format", options.format, _fourcc(capture)))
    return found


def _fourcc(capture: cv2.VideoCapture) -> str:
    code = int(capture.get(cv2.CAP_PROP_FOURCC))
    return "".join(chr(code >> shift & 0x7F) for shift in (0, 8, 16, 24))
