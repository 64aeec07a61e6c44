"""Privacy of one stream: check what it hides, open the models that find it, and log what it hides."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from agent.config import StreamConfig
from agent.config.places import check_masks
from agent.errors import ConfigError

if TYPE_CHECKING:
    from agent.capture.source import Privacy
    from agent.compute.vision import VideoPerception

log = logging.getLogger("agent.daemon.streams.stream")


def check_privacy(name: str, config: StreamConfig, *, takes_sound: bool) -> None:
    """Check masks and blurs of a stream.

    Raises:
        ConfigError: a mask cannot be used, the stream has no pictures, or `mask_model` changes nothing.
    """
    check_masks(config.privacy)
    if takes_sound and config.hides:
        key = "privacy" if config.privacy else "blur"
        raise ConfigError(f"stream {name}: {key} is for pictures, and {config.model} takes sound", keys=(key,))
    if not config.mask_model and not config.hides:
        text = "is false, and the stream has neither [[privacy]] nor blur: delete it"
        raise ConfigError(f"stream {name}: mask_model {text}", keys=("mask_model",))


def privacy_of(config: StreamConfig, vision: VideoPerception) -> Privacy:
    """Return what capture is to hide of a stream.

    Raises:
        ConfigError: it blurs something, and the models that find it were not opened.
    """
    from agent.capture.source import Privacy

    if config.blur and vision.blur is None:
        raise ConfigError("blur: the models that find what is blurred are not open", keys=("blur",))
    find = vision.blur.find if vision.blur is not None else None
    return Privacy(config.privacy, find, config.mask_model)


def log_privacy(name: str, config: StreamConfig) -> None:
    """Log what a stream hides, and that its clips are of pictures."""
    if not config.hides:
        return
    masks = f"masks: {', '.join(mask.name for mask in config.privacy)}" if config.privacy else ""
    blurs = f"blurs: {', '.join(config.blur)}" if config.blur else ""
    sees = "" if config.mask_model else "; its models see the true picture"
    clips = "; clips are encoded from masked pictures, the camera's packets are not kept" if config.clips else ""
    log.info("stream %s: %s%s%s", name, "; ".join(filter(None, (masks, blurs))), sees, clips)
