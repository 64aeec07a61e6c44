"""Options of FFmpeg's demultiplexers for sources on the network."""

from __future__ import annotations

from agent.config.source_uri import SourceUri

ASK_S = 2.0
"""Longest time to ask a server why it gives no stream, s."""
_PROBING = {"analyzeduration": "300000", "probesize": "100000"}
"""Looking at 0.3 s (µs here) instead of 5 s of the stream opens a camera in 0.5 s instead of 2."""
NO_DATAGRAM = "no datagram arrives over UDP: check the firewall (ports 5000 to 65000)"
_UDP_BYTES = 1024 * 1024
"""Buffer to ask the kernel for: a key frame comes at once."""
_RTSP = {"format_whitelist": "rtsp", "protocol_whitelist": "tcp,tls,udp,rtp,srtp"}
_HTTP_FORMATS = (
    *("mpjpeg", "mjpeg", "jpeg_pipe", "png_pipe"),
    *("mpegts", "mpeg", "flv", "live_flv", "hls", "h264", "hevc", "matroska", "mov", "asf", "avi"),
    *("ogg", "mp3", "aac", "flac", "wav"),
)
_HTTP = {
    "format_whitelist": ",".join(_HTTP_FORMATS),
    "protocol_whitelist": "http,https,httpproxy,tcp,tls,crypto",
}
"""A server may answer with any format. Lists of other addresses, such as SDP, would have this machine open ports
or files of the server's choice. HLS is the only one that cameras use, and its parts come by HTTP."""


def demuxer_options(address: SourceUri) -> dict[str, str]:
    """Return the options with which a source on the network is opened."""
    if not address.scheme.startswith("rtsp"):
        return {**_PROBING, **_HTTP}
    options = {**_PROBING, **_RTSP, "rtsp_transport": address.rtsp_transport}
    return options | {"buffer_size": str(_UDP_BYTES)} if address.rtsp_transport == "udp" else options
