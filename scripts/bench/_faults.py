"""Faults of cameras and microphones, made in staged pictures and in recorded sound."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from _staged import SIZE, Picture, Scene, View, finish
from numpy.typing import NDArray

Fault = Callable[[Scene, float, int], Picture]
"""Returns the picture of a faulty camera at a time, s; the number makes each fault another one."""
Sound = NDArray[np.float32]


def dark(scene: Scene, now_s: float, number: int) -> Picture:
    """The lamp is out, or the aperture shut: hardly any light, and the noise of a gain turned up."""
    view = scene.day(now_s) * (0.0, 0.02, 0.05, 0.03)[number % 4]
    return finish(view, scene.random, (1.0, 2.0, 4.0, 6.0)[number % 4], 60)


def frozen(scene: Scene, now_s: float, number: int) -> Picture:
    """One picture again and again; every second camera writes the time into it."""
    if not hasattr(scene, "kept"):
        scene.kept = finish(scene.day(now_s), scene.random, 2.0, 70)  # type: ignore[attr-defined]
    picture: Picture = scene.kept.copy()  # type: ignore[attr-defined]
    if number % 2:
        text = f"2026-11-28 12:{int(now_s) // 60:02d}:{int(now_s) % 60:02d}"
        cv2.putText(picture, text, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1)
    return picture


def blurred(scene: Scene, now_s: float, number: int) -> Picture:
    """Out of focus, by 2.5 to 8 pixels of 448."""
    sigma = (2.5, 4.0, 6.0, 8.0)[number % 4]
    return finish(_blur(scene.day(now_s), sigma), scene.random, 2.0, 70)


def covered(scene: Scene, now_s: float, number: int) -> Picture:
    """A hand, a cloth, tape or paint close to the lens."""
    view = scene.day(now_s)
    colour = ((70, 80, 140), (150, 150, 150), (40, 90, 60), (200, 205, 210))[number % 4]
    cover = np.empty_like(view)
    cover[:] = colour
    x = np.linspace(-1.0, 1.0, SIZE[0])[None, :, None]
    y = np.linspace(-1.0, 1.0, SIZE[1])[:, None, None]
    cover *= 1.0 + 0.25 * x * (-1) ** number + 0.1 * y
    cover += (
        _blur(30.0 * np.random.default_rng(number).standard_normal(view.shape).astype(np.float32), 12.0) * 8.0
    )
    edge = (0.0, 0.08, 0.15, 0.1)[number % 4] * 2.0 - 1.0  # a strip of the view may be left
    alpha = _blur(np.repeat((x > edge).astype(np.float32), SIZE[1], 0), 9.0).reshape(SIZE[1], SIZE[0], 1)
    return finish(view + alpha * (cover - view), scene.random, 2.0, 70)


def moved(scene: Scene, now_s: float, number: int) -> Picture:
    """Shifted by 5 to 25 per cent of the view, or turned to what is elsewhere."""
    right, down = ((0.05, 0.0), (-0.09, 0.06), (0.14, -0.1), (-0.2, 0.03), (0.06, -0.12))[number % 5]
    return finish(scene.day(now_s, right, down), scene.random, 2.0, 70)


def tilted(scene: Scene, now_s: float, number: int) -> Picture:
    """Turned around the lens by 4 to 15 degrees, and shifted a little."""
    degrees = (4.0, -7.0, 11.0, -15.0, 5.5)[number % 5]
    return finish(scene.day(now_s, 0.02 * (number % 3 - 1), 0.0, degrees), scene.random, 2.0, 70)


def _blur(view: View, sigma: float) -> View:
    return np.asarray(cv2.GaussianBlur(view, (0, 0), sigma), np.float32)


CAMERA: dict[str, Fault] = {
    "dark": dark,
    "frozen": frozen,
    "blurred": blurred,
    "covered": covered,
    "moved": moved,
    "tilted": tilted,
}


def silent(sound: Sound, rate_hz: int, number: int) -> Sound:
    """No sample at all, or a broken cable: some noise of the amplifier, and the sound 60 dB down."""
    if number % 2 == 0:
        return np.zeros_like(sound)
    noise = np.random.default_rng(number).standard_normal(sound.size).astype(np.float32)
    return np.asarray(sound * 1e-3 + 2e-5 * noise, np.float32)


def clipped(sound: Sound, rate_hz: int, number: int) -> Sound:
    """A gain that is far too high, before a converter or an amplifier that ends at 100 to 60 %."""
    rail = (1.0, 0.6, 1.0, 1.0, 0.8)[number % 5]
    loud = float(np.sqrt(np.mean(sound**2))) + 1e-6
    return np.asarray(np.clip(sound * (0.8 / loud), -rail, rail), np.float32)


def humming(sound: Sound, rate_hz: int, number: int) -> Sound:
    """The mains and some multiples, as loud as speech or louder."""
    mains = (50.0, 60.0)[number % 2]
    t = np.arange(sound.size) / rate_hz
    shares = ((1.0, 0.5, 0.3), (0.3, 1.0, 0.1, 0.4), (1.0,))[number % 3]
    hum = sum(share * np.sin(2 * np.pi * mains * (k + 1) * t + k) for k, share in enumerate(shares))
    return np.asarray(0.3 * sound + 0.12 * hum, np.float32)


MICROPHONE: dict[str, Callable[[Sound, int, int], Sound]] = {
    "silent": silent,
    "clipped": clipped,
    "humming": humming,
}
