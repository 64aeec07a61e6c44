"""An RTSP server with one H.264 camera, in a process of its own; it says `ready` when it listens.

/usr/bin/python3 rtsp_server.py PORT [USER PASSWORD]
rtsp://127.0.0.1:PORT/cam
rtsp://127.0.0.1:PORT/udp                  the same by UDP alone
rtsp://127.0.0.1:PORT/pcma, /aac, /opus    the same with a tone of 440 Hz
"""

import sys
from typing import Any

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402 - the versions must be asked for first

CAMERA = (
    "( videotestsrc is-live=true pattern=ball ! video/x-raw,width=320,height=240,framerate=15/1"
    " ! x264enc tune=zerolatency speed-preset=ultrafast bitrate=500 key-int-max=15"
    " ! rtph264pay name=pay0 pt=96 config-interval=1 )"
)
TONE = "audiotestsrc is-live=true freq=440 volume=0.3 ! audioconvert ! audioresample"
SOUND = {
    "pcma": f"{TONE} ! audio/x-raw,rate=8000,channels=1 ! alawenc ! rtppcmapay name=pay1 pt=8",
    "aac": f"{TONE} ! audio/x-raw,rate=44100,channels=2 ! voaacenc ! rtpmp4gpay name=pay1 pt=97",
    "opus": f"{TONE} ! audio/x-raw,rate=48000,channels=2 ! opusenc ! rtpopuspay name=pay1 pt=98",
}


def protect(server: Any, factory: Any, user: str, password: str) -> None:
    """Let only this user in."""
    permissions, token = GstRtspServer.RTSPPermissions(), GstRtspServer.RTSPToken()
    permissions.add_role("viewer")
    permissions.add_permission_for_role("viewer", "media.factory.access", True)
    permissions.add_permission_for_role("viewer", "media.factory.construct", True)
    factory.set_permissions(permissions)
    token.set_string("media.factory.role", "viewer")
    auth = GstRtspServer.RTSPAuth()
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
    server.set_auth(auth)


def main(port: str, *account: str) -> None:
    """Serve until killed."""
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    for name in ("cam", "udp", *SOUND):
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_launch(CAMERA.replace(" )", f" {SOUND[name]} )") if name in SOUND else CAMERA)
        factory.set_shared(True)
        if name == "udp":
            factory.set_protocols(GstRtsp.RTSPLowerTrans.UDP)
        if account:
            protect(server, factory, *account)
        server.get_mount_points().add_factory(f"/{name}", factory)
    server.attach(None)
    print("ready", flush=True)
    GLib.MainLoop().run()


main(*sys.argv[1:])
