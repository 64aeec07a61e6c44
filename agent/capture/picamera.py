"""Raspberry Pi cameras, through Picamera2."""

from __future__ import annotations

import importlib
from typing import Any, cast

import numpy as np

from agent.capture.source import Source
from agent.config.source_uri import SourceUri
from agent.errors import SourceError
from agent.types import Image

_SIZE = (1280, 720)


class PiCamera(Source):
    """An open Picamera2."""

    # Picamera2 names formats from the last byte to the first: its "RGB888" lies in memory as B, G, R.
    order = "bgr"

    def __init__(self, camera: Any, shown: str, description: str) -> None:
        self._camera, self._shown = camera, shown
        self._request: Any = None
        self.live, self.pace_s, self.period_s = True, 0.0, 0.0
        self.description = description

    def grab(self) -> bool:
        self._release()
        try:
            self._request = self._camera.capture_request()
        except Exception as error:  # Picamera2 passes on whatever libcamera raises
            raise SourceError(f"{self._shown}: expected the next picture; the camera failed: {error}") from error
        return True

    def picture(self, into: Image | None) -> Image:
        image = cast(Image, self._request.make_array("main"))
        self._release()
        if into is None or into.shape != image.shape:
            return np.ascontiguousarray(image)
        np.copyto(into, image)
        return into

    def close(self) -> None:
        self._release()
        self._camera.close()

    def _release(self) -> None:
        """Return the buffer to the camera, which has only a few."""
        if self._request is not None:
            self._request.release()
            self._request = None


def open_picamera(address: SourceUri, stall_s: float) -> PiCamera:
    """Start a camera.

    Raises:
        SourceError: Picamera2 is missing, there is no such camera, or it cannot be started.
    """
    library = _library(address.masked)
    cameras = library.global_camera_info()
    number = int(address.target)
    if number >= len(cameras):
        models = ", ".join(f"{i} ({camera.get('Model', '?')})" for i, camera in enumerate(cameras)) or "none"
        raise SourceError(
            f"{address.masked}: expected camera {number}; found {models}; check cable and config.txt"
        )
    size, fps = address.options.size or _SIZE, address.options.fps
    camera = None
    try:
        camera = library(number)
        _start(camera, size, fps)
    except Exception as error:  # Picamera2 passes on whatever libcamera raises
        if camera is not None:
            camera.close()
        raise SourceError(
            f"{address.masked}: the camera cannot be started: {error}; does a program use it?"
        ) from error
    return PiCamera(camera, address.masked, f"{size[0]}x{size[1]}" + (f" at {fps:g} fps" if fps else ""))


def _start(camera: Any, size: tuple[int, int], fps: float) -> None:
    main = {"size": size, "format": "RGB888"}
    controls = {"FrameRate": fps} if fps else {}
    camera.configure(camera.create_video_configuration(main=main, controls=controls))
    camera.start()


def _library(shown: str) -> Any:
    try:
        return importlib.import_module("picamera2").Picamera2
    except ImportError as error:
        raise SourceError(
            f"{shown}: expected Picamera2; it cannot be imported ({error}): sudo apt install python3-picamera2,"
            " and make the environment with --system-site-packages"
        ) from None
