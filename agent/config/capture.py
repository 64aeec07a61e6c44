"""`[streams.NAME.capture]`: how a source is opened, watched and decoded."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from agent.config.toml import Patience

DecoderChoice = Literal["software", "auto", "h264_v4l2m2m", "hevc_v4l2m2m", "drm"]
"""Values of `capture.decoder`."""


class CaptureConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[streams.NAME.capture]`: how the source is opened and watched.

    Attributes:
        stall_s: time without a frame after which the source is closed and reopened, s; at least 0.1.
        reopen_max_s: longest pause between two attempts to reopen, s; at least 0.1. Left out: 5 for a camera of
            the local network, 30 for other sources. A device that is plugged in is opened at once.
        max_fps: most frames per second that are processed; 0: all.
        username: user name for a network camera whose URI has none.
        password_file: file whose first line is the camera's password; `$CREDENTIALS_DIRECTORY`, which systemd
            sets, is expanded. It is read each time that the camera is opened.
        decode: which pictures of an encoded network camera are decoded: `auto`, a key frame now and then and all
            while something may happen, or where the sizes of packets would not show it; `saving`, the same also
            there; `full`, all; `keyframes`, key frames alone.
        decoder: what decodes all pictures of such a camera: `software`; `auto`, the hardware decoder that takes
            least of the processor, if one gives the right pictures on this board; or a hardware decoder by name.
            Where a hardware decoder fails, software goes on.
        rtsp_transport: how a camera sends by RTSP: `tcp`, over the connection, or `udp`.
    """

    stall_s: Patience = 10.0
    reopen_max_s: Patience | None = None
    max_fps: Annotated[float, Meta(ge=0.0, le=1000.0)] = 0.0
    username: str = ""
    password_file: str = ""
    decode: Literal["auto", "full", "keyframes", "saving"] = "auto"
    decoder: DecoderChoice = "software"
    rtsp_transport: Literal["tcp", "udp"] = "tcp"
