"""Conversion of decoded pictures to BGR, into memory that is used again."""

from __future__ import annotations

from fractions import Fraction

import av
from av.video.frame import VideoFrame


class BgrConverter:
    """Converts pictures to BGR, one at a time, in the calling thread.

    FFmpeg's filters keep the memory of pictures that nobody has any more for the next ones. New memory for each
    picture, as of PyAV's `VideoReformatter`, has to be mapped and cleared page by page: 1080p then takes 3 to
    5 ms instead of 0.8.
    """

    def __init__(self) -> None:
        self._form: tuple[int, int, str] | None = None
        self._graph: av.filter.Graph | None = None
        self._keeps = True

    def convert(self, picture: VideoFrame) -> VideoFrame:
        """Return a picture as BGR.

        Raises:
            av.FFmpegError, ValueError: it cannot be converted.
        """
        form = picture.width, picture.height, picture.format.name
        if self._graph is None or form != self._form:
            self._graph, self._form = _graph(picture), form
        graph, self._graph = self._graph, None  # after an error it may hold half of the work
        graph.vpush(picture)
        converted = graph.vpull()
        self._graph = graph if self._keeps else None
        return converted

    def keep(self, keeps: bool) -> None:
        """Keep memory for the next pictures, as at the beginning, or free it after each."""
        self._keeps = keeps
        if not keeps:
            self._graph = None


def _graph(picture: VideoFrame) -> av.filter.Graph:
    """Return FFmpeg's scaler, without scaling. It takes the colour space and range of each picture from it."""
    graph = av.filter.Graph()
    graph.threads = 1
    source = graph.add_buffer(
        width=picture.width, height=picture.height, format=picture.format, time_base=Fraction(1, 1_000_000)
    )
    nodes = [graph.add("scale", "flags=bilinear"), graph.add("format", "bgr24"), graph.add("buffersink")]
    graph.link_nodes(source, *nodes).configure()
    return graph
