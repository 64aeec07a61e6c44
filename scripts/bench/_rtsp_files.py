"""An RTSP server of H.264 in Matroska files, each from its beginning for each viewer. Part of the bench `mjpeg`.

/usr/bin/python3 _rtsp_files.py PORT FILE...
rtsp://127.0.0.1:PORT/NAME serves NAME.mkv. It says `ready` when it listens.
"""

import sys
from pathlib import Path

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402 - the versions must be asked for first


def main(port: str, *files: str) -> None:
    """Serve until killed."""
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    for file in files:
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_launch(f"( filesrc location={file} ! matroskademux ! rtph264pay name=pay0 pt=96 )")
        server.get_mount_points().add_factory(f"/{Path(file).stem}", factory)
    server.attach(None)
    print("ready", flush=True)
    GLib.MainLoop().run()


main(*sys.argv[1:])
