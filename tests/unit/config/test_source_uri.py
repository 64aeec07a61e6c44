from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config.source_uri import SCHEMES, SourceOptions, holds_secret, mask, parse, parse_picture, parse_sound
from agent.errors import SourceError

_words = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("uri", "target", "options"),
    [
        (
            "v4l2:/dev/video0?size=1280x720&fps=30&format=mjpg",
            "/dev/video0",
            SourceOptions((1280, 720), 30.0, "MJPG"),
        ),
        ("libcamera:0?size=640x480&fps=12.5", "0", SourceOptions((640, 480), 12.5)),
        ("file:clip.mp4", "clip.mp4", SourceOptions()),
        (
            "file:///media/my%20clip.mp4?pace=fast&loop=1",
            "/media/my clip.mp4",
            SourceOptions(pace="fast", loop=True),
        ),
        ("file:a#b.mp4", "a#b.mp4", SourceOptions()),
        ("dir:images/", "images/", SourceOptions(pace="fast")),
        ("dir:images/?loop=1", "images/", SourceOptions(loop=True)),
        ("dir:images/?loop=1&pace=fast", "images/", SourceOptions(pace="fast", loop=True)),
        ("dir:images/?pace=realtime&fps=2&loop=0", "images/", SourceOptions(fps=2.0)),
        ("test:?frames=3", "", SourceOptions(frames=3)),
        ("mic:default?rate=48000&channel=0", "default", SourceOptions(rate=48000, channel=0)),
        ("mic:USB PnP Sound: Audio (hw:1,0)", "USB PnP Sound: Audio (hw:1,0)", SourceOptions()),
        ("mic:3?channel=mix", "3", SourceOptions()),
        ("wav:a.wav?pace=fast&loop=1&channel=right", "a.wav", SourceOptions(pace="fast", loop=True, channel=1)),
        ("test:", "", SourceOptions()),
    ],
)
def test_a_uri_is_read(uri: str, target: str, options: SourceOptions) -> None:
    address = parse(uri)
    assert (address.target, address.options) == (target, options)


@pytest.mark.parametrize("uri", ["rtsp://u:p@h:8554/a?tcp=1&x", "rtsps://h/", "http://h/v?size=3", "https://h"])
def test_a_streams_query_belongs_to_its_server(uri: str) -> None:
    address = parse(uri)
    assert address.target == uri
    assert address.live
    assert not address.lossless


@pytest.mark.parametrize(
    ("uri", "wants"),
    [
        ("rstp://host/a", "found rstp:"),
        ("gopher://host", "expected one of v4l2:"),
        ("/dev/video0", "such as v4l2:/dev/video0"),
        ("mic:", "found nothing"),
        ("mic:default?rate=99", "rate: expected samples per second"),
        ("wav:a.wav?channel=middle", "channel: expected mix, left, right"),
        ("wav:a.wav?rate=16000", "expected a key among pace, loop, channel"),
        ("", "found none"),
        ("v4l2:video0", "found video0"),
        ("v4l2:", "found nothing"),
        ("file:", "found nothing"),
        ("libcamera:front", "a camera's number"),
        ("test:x", "found x"),
        ("rtsp:///path", "it names no host"),
        ("rtsp://host:99999/path", "not a URI"),
        ("http://[::1/", "not a URI"),
        ("rtsp://camera..local/path", "parts between dots have 1 to 63 characters"),
        (f"rtsp://u:p@{'a' * 64}.local/path", "parts between dots have 1 to 63 characters"),
        ("v4l2:/dev/video0?fsp=30", "found fsp"),
        ("v4l2:/dev/video0?zzz=30", "found zzz"),
        ("file:a.mp4?size=640x480", "expected a key among pace, loop"),
        ("v4l2:/dev/video0?fps=30&fps=15", "found it twice"),
        ("v4l2:/dev/video0?size=640", "size: expected WIDTHxHEIGHT"),
        ("v4l2:/dev/video0?size=1x1", "found '1x1'"),
        ("v4l2:/dev/video0?fps=0", "fps: expected a number"),
        ("v4l2:/dev/video0?fps=nan", "found 'nan'"),
        ("v4l2:/dev/video0?format=MJPEG", "four characters"),
        ("file:a.mp4?pace=slow", "pace: expected realtime or fast"),
        ("file:a.mp4?loop=", "loop: expected 1 or 0"),
        ("test:?frames=0", "frames: expected"),
    ],
)
def test_a_wrong_uri_names_what_is_right(uri: str, wants: str) -> None:
    with pytest.raises(SourceError) as caught:
        parse(uri)
    assert wants in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sound_is_told_from_pictures() -> None:
    assert {scheme for scheme in SCHEMES if not SCHEMES[scheme].opener} == {"mic", "wav"}
    assert not parse("mic:default").gives_pictures
    assert not parse("test:").gives_sound
    assert all(parse(f"{one}://camera/1").gives_sound for one in ("rtsp", "rtsps", "http", "https"))
    assert parse_sound("file:clip.mp4").gives_pictures
    assert parse_sound("wav:a.wav").target == "a.wav"
    sources = "rtsp:, rtsps:, http:, https:, file:, mic:, wav:"
    with pytest.raises(
        SourceError, match=f"test:: expected a source of sound, one of {sources}; test: gives pictures only"
    ):
        parse_sound("test:")
    with pytest.raises(SourceError, match="expected a source of pictures; mic: gives sound"):
        parse_picture("mic:default")


def test_only_a_fast_replay_keeps_every_picture() -> None:
    assert parse("wav:a.wav?pace=fast").lossless
    assert not parse("mic:default").lossless
    assert parse("file:a.mp4?pace=fast").lossless
    assert not parse("file:a.mp4").lossless
    assert not parse("v4l2:/dev/video0").lossless


_network = st.sampled_from(["rtsp", "rtsps", "http", "https", "RTSP", "rstp", "srt"])
_anything = st.text(st.characters(exclude_categories=["Cs"]))


@given(_network, _anything, _words, st.sampled_from(["", ":554"]), st.sampled_from(["", "/", "?"]), _anything)
def test_only_scheme_and_host_are_shown(
    scheme: str, account: str, host: str, port: str, mark: str, after: str
) -> None:
    """Whatever stands before and behind the host: a password may be anywhere, escaped or not."""
    uri = f"{scheme}://{account}@{host}{port}{mark}{after if mark else ''}"
    assert mask(uri) in (f"{scheme}://{host}{port}", f"{scheme}://***")
    with contextlib.suppress(SourceError):
        assert parse(uri).masked == mask(uri)


@given(_anything, _anything)
def test_no_error_shows_an_account(account: str, path: str) -> None:
    for uri in (
        f"rtsp://§{account}§@cam/§{path}§",
        f"rtsp:§{account}§",
        f"§{account}§@cam/§",
        f"v4l2://§{account}@cam",
    ):
        try:
            shown = parse(uri).masked
        except SourceError as error:
            shown = str(error)
        assert "§" not in shown


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("rtsp://admin:secret@cam:8554/x", "rtsp://cam:8554"),
        ("rtsp://a:p@ss@host/x", "rtsp://host"),
        ("rtsp://a:p/ss@host/x", "rtsp://***"),
        ("rtsp://u:a#b@host/x", "rtsp://***"),
        ("rtsp://u:a?b@host/x", "rtsp://***"),
        ("rtsp://u:12/34@host/x", "rtsp://***"),
        ("rtsp://:only@host/x", "rtsp://host"),
        ("rtsp://token@[fe80::1]:554/x", "rtsp://[fe80::1]:554"),
        (
            "rtsp://192.168.1.10:554/user=admin_password=tlJwpbo6_channel=1_stream=0.sdp?real",
            "rtsp://192.168.1.10:554",
        ),
        ("http://host/v?user=a&pw=b", "http://host"),
        ("admin:secret@cam/x", "***"),
        ("192.168.1.10:554/user=admin_password=tlJwpbo6", "***"),
        ("file:clip.mp4?pace=fast", "file:clip.mp4?pace=fast"),
        ("file:/home/a@b/clip.mp4", "file:/home/a@b/clip.mp4"),
        ("file:rtsp://a:b@cam/x", "file:***"),
        ("v4l2://a:b@cam/x", "v4l2:***"),
        ("mic:admin:secret@cam", "mic:***"),
        ("file:admin:se/cret@cam", "file:***"),
        ("file:./12:30@home.mp4", "file:./12:30@home.mp4"),
        ("v4l2:/dev/video0", "v4l2:/dev/video0"),
        ("clip.mp4", "clip.mp4"),
    ],
)
def test_what_is_shown(uri: str, shown: str) -> None:
    assert mask(uri) == shown


@pytest.mark.parametrize(
    ("uri", "holds"),
    [
        ("rtsp://a:b@cam/x", True),
        ("rtsp://u:a#b@cam/x", True),
        ("http://cam/user=admin_password=x", True),
        ("http://cam/?Token=x", True),
        ("rtsp://admin@cam/x", False),
        ("rtsp://cam/live", False),
        ("file:/home/a@b/key=x.mp4", False),
    ],
)
def test_a_password_in_a_uri_is_known(uri: str, holds: bool) -> None:
    assert holds_secret(uri) is holds


@pytest.mark.parametrize("uri", ["rstp://a:secret@h/x", "rtsp://a:secret@:99999/x", "rtsp://a:secret@/x"])
def test_an_error_does_not_show_the_password(uri: str) -> None:
    with pytest.raises(SourceError) as caught:
        parse(uri)
    assert "secret" not in str(caught.value)


@given(
    st.tuples(st.integers(16, 16384), st.integers(16, 16384)),
    st.floats(0.01, 1000),
    st.sampled_from(["realtime", "fast"]),
    st.integers(1, 10**6),
)
def test_what_is_written_is_read_again(size: tuple[int, int], fps: float, pace: str, frames: int) -> None:
    options = parse(f"test:?size={size[0]}x{size[1]}&fps={fps!r}&pace={pace}&frames={frames}").options
    assert (options.size, options.fps, options.pace, options.frames) == (size, fps, pace, frames)


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_a_clear_error(text: str) -> None:
    with contextlib.suppress(SourceError):
        assert parse(text).scheme in SCHEMES


def test_checking_a_uri_does_not_import_heavy_libraries() -> None:
    code = (
        "import sys, agent.capture.source as s; s.parse('file:a.mp4'); s.parse('mic:default');"
        "import agent.capture.streams, agent.capture.streams;"
        "print([m for m in ('cv2', 'picamera2', 'sounddevice', 'soundfile', 'soxr') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("query", "bounds"),
    [
        ("size=1x1", "each from 16 to 16384"),
        ("fps=1e9", "over 0 and up to 1000"),
        ("fps=0", "over 0 and up to 1000"),
    ],
)
def test_a_value_out_of_range_is_told_its_bounds(query: str, bounds: str) -> None:
    with pytest.raises(SourceError, match=bounds):
        parse(f"test:?{query}")
