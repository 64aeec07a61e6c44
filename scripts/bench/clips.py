"""Measure recording: CPU of a camera whose packets are copied, and what players make of the clips.

The camera is a 1080p film of walking people at 15 pictures a second and 4 Mbit/s, with two B-frames and sound.
In the first fifth of each second its upper edge is white and a tone sounds, by which pictures and sound are
compared. An RTSP server in another process serves it, alone and with sound as G.711, and only the processor
time of the process that records counts, in turns with and without the recorder. Clips around events at random
times are recorded from the same packets, opened by FFmpeg and by headless Chromium, cut off at random bytes,
given their names as after a crash, and opened again.
"""

from __future__ import annotations

import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import common
import cv2
import numpy as np

sys.path.insert(0, str(common.ROOT))

from agent.capture.media import Media
from agent.capture.streams import PacketStream
from agent.compute.av_encoding import PictureEncoder, SoundTranscoder
from agent.config import CaptureConfig, ClipsConfig, StorageConfig, StreamConfig
from agent.features.clips.part import StreamClips
from agent.storage.clips.file import part_of, read_boxes, recover
from agent.storage.clips.recorder import Recorder
from agent.types import Clip, Event, Frame, MediaPacket, Track
from tests.support.browser import chromium, play_in_browser
from tests.support.packet_camera import PacketCamera, Unit

FPS, SIZE, GROUP_S = 15, (1920, 1080), 2
BEFORE_S, AFTER_S = 3.0, 2.0
SECOND = 1_000_000_000
CUTS = 100


def main() -> None:
    args = common.arguments(__doc__ or "").parse_args()
    if chromium() is None:
        raise SystemExit("no browser: apt-get install chromium")
    seconds, turns, events = (12, 2, 3) if args.quick else (60, 4, 25)
    with tempfile.TemporaryDirectory(dir=common.ON_DISK) as name:
        folder = Path(name)
        seen = film_video(folder / "film.mov", seconds)
        films = {sound: film(folder / f"{sound}.mov", seen, seconds, sound) for sound in ("aac", "pcm_alaw")}
        figures = cpu(films["aac"], folder / "cpu", turns, 4.0 if args.quick else 20.0)
        figures |= encoding(films["aac"], films["pcm_alaw"])
        clips = {sound: recorded(path, folder / sound, events, seconds) for sound, path in films.items()}
        figures |= players(clips, folder)
    targets = {
        "recording_core_percent": "<= 0.5 of a core, more than reading the camera; packets are copied",
        "unopened_ffmpeg": "0",
        "unopened_browser": "0",
        "unopened_cut_ffmpeg": "0 of 100, once named",
        "unopened_cut_browser": "0 of 100, once named",
        "preroll_missing": "0 clips",
        "sound_apart_ms": "<= 50",
    }
    meets = figures["recording_core_percent"] <= 0.5 and figures["sound_apart_ms"] <= 50.0
    meets = meets and not any(figures[name] for name in targets if name.startswith(("unopened", "preroll")))
    common.conclude("clips", figures, targets, meets)


def film_video(path: Path, seconds: int) -> Path:
    """Write the film without its sound."""
    with av.open(str(path), "w") as file:
        video: Any = file.add_stream("libx264", rate=FPS)
        video.width, video.height = SIZE
        video.pix_fmt, video.bit_rate = "yuv420p", 4_000_000
        every = GROUP_S * FPS
        fixed = f"keyint={every}:min-keyint={every}:scenecut=0:bframes=2"
        video.options = {"preset": "ultrafast", "x264-params": fixed}
        for number, picture in enumerate(pictures(seconds * FPS)):
            planes: Any = cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420)
            shown = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            shown.pts, shown.time_base = number, Fraction(1, FPS)
            file.mux(video.encode(shown))
        file.mux(video.encode(None))
    return path


def film(path: Path, seen: Path, seconds: int, sound: str) -> Path:
    """Write the film with sound."""
    with av.open(str(path), "w") as file, av.open(str(seen)) as source:
        video = file.add_stream_from_template(source.streams.video[0])
        rate = 8000 if sound.startswith("pcm") else 48000
        heard: Any = file.add_stream(sound, rate=rate, layout="mono")
        heard.codec_context.open(strict=False)
        frame_size = heard.codec_context.frame_size or None
        resampler = av.AudioResampler(heard.codec_context.format, "mono", rate, frame_size=frame_size)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = video
                file.mux(packet)
        for number in range(seconds * FPS):
            for piece in resampler.resample(tone(number, rate)):
                file.mux(heard.encode(piece))
        file.mux(heard.encode(None))
    return path


def pictures(count: int) -> Iterator[np.ndarray[Any, Any]]:
    """The packaged clip, scaled up, with camera noise."""
    noise = np.random.default_rng(3).integers(0, 4, (SIZE[1], SIZE[0], 3), np.uint8)
    with av.open(str(common.CLIP)) as file:
        small = [one.to_ndarray(format="bgr24") for one in file.decode(video=0)]
    for number in range(count):
        picture = cv2.add(cv2.resize(small[number * 10 // FPS % len(small)], SIZE), np.roll(noise, number * 7, 1))
        picture[:100] = 255 if number % FPS < FPS // 5 else 0
        yield picture


def tone(number: int, rate: int) -> av.AudioFrame:
    """The sound of one picture."""
    begin, end = number * rate // FPS, (number + 1) * rate // FPS
    at = np.arange(begin, end) / rate
    wave = np.where(at % 1.0 < 0.2, np.sin(2 * np.pi * 1000 * at) * 16000, 0.0).astype(np.int16)
    made = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
    made.sample_rate, made.pts, made.time_base = rate, begin, Fraction(1, rate)
    return made


def cpu(path: Path, folder: Path, turns: int, turn_s: float) -> dict[str, float]:
    """CPU of reading and of recording the camera, % of a core, and what is written."""
    figures = {}
    for sound, name in ((False, ""), (True, "with_g711_")):
        port = common.free_port()
        arguments = str(path), port, sound
        server = multiprocessing.get_context("spawn").Process(target=serve, args=arguments, daemon=True)
        server.start()
        common.wait_for(port, "the RTSP server")
        shares: dict[bool, list[float]] = {False: [], True: []}
        written = 0
        for turn in range(2 * turns):
            records = turn % 2 == 0
            place = folder / f"{sound}{turn}"
            share, size = one_turn(f"rtsp://127.0.0.1:{port}/cam", place, turn_s, records=records)
            shares[records].append(share)
            written += size
        server.kill()
        figures[f"recording_{name}core_percent"] = statistics.median(
            both - reading for both, reading in zip(shares[True], shares[False], strict=True)
        )
        figures[f"reading_{name}core_percent"] = statistics.median(shares[False])
    return {**figures, "written_mb_per_minute": written / 1e6 / (turns * turn_s) * 60.0}


def serve(path: str, port: int, sound: bool) -> None:
    """Serve the film's pictures, with start codes, and perhaps silence as G.711, until killed."""
    units = []
    with av.open(path) as file:
        stream = file.streams.video[0]
        base = stream.time_base or Fraction(1)
        lengths = av.BitStreamFilterContext("h264_mp4toannexb", stream)
        for packet in file.demux(stream):
            found = lengths.filter(packet if packet.size else None)
            units += [Unit(bytes(one), one.is_keyframe, float((one.pts or 0) * base)) for one in found]
    with PacketCamera(units, fps=FPS, sound=sound, port=port):
        time.sleep(3600.0)


def one_turn(uri: str, folder: Path, seconds: float, *, records: bool) -> tuple[float, int]:
    """Return the CPU of some seconds, % of a core, and the bytes that were written."""
    recorder = Recorder(folder, StorageConfig(clips_keep_free_bytes=0), lambda clip: None)
    config = ClipsConfig(record="continuous" if records else "events", events=False, record_source=uri)
    clips = StreamClips("bench", StreamConfig(uri, "", clips=config), recorder)
    on_packet = clips.add_packet if records else (lambda packet: None)
    stream = PacketStream("bench", uri, CaptureConfig(), on_packet=on_packet, on_change=lambda state, why: None)
    stream.start()
    time.sleep(3.0)
    began, spent, before = time.monotonic(), time.process_time(), recorder.stats.written
    time.sleep(seconds)
    share = (time.process_time() - spent) / (time.monotonic() - began) * 100.0
    size = recorder.stats.written - before
    stream.stop()
    clips.close()
    recorder.close(10.0)
    return share, size


def encoding(film_path: Path, g711: Path) -> dict[str, float]:
    """CPU of what cannot be copied: pictures that are encoded at five a second, and sound that is made AAC."""
    with av.open(str(film_path)) as file:
        shown: list[Any] = [
            frame.to_ndarray(format="bgr24") for frame, _ in zip(file.decode(video=0), range(90), strict=False)
        ]
    found = {}
    for width in (1280, 1920):
        encoder, size = PictureEncoder(width, 75, 5.0), 0
        spent = 0.0
        for number in range(30):
            frame = Frame(shown[number * 3], "bench", number, number * SECOND // 5, datetime.now(UTC))
            began = time.thread_time()
            made = encoder.encode(frame)
            spent += time.thread_time() - began
            size += sum(len(packet.data) for packet in made)
        found[f"encoding_{width}_core_percent"] = spent / 6.0 * 100.0
        found[f"encoding_{width}_mb_per_minute"] = size / 6.0 * 60.0 / 1e6
    sound = [packet for packet in packets_of(g711) if packet.track.kind == "sound"]
    transcoder, began = SoundTranscoder(sound[0].track), time.thread_time()
    for packet in sound:
        transcoder.transcode(packet)
    length_s = (sound[-1].captured_ns - sound[0].captured_ns) / 1e9
    return {**found, "g711_core_percent": (time.thread_time() - began) / length_s * 100.0}


def packets_of(path: Path) -> list[MediaPacket]:
    """The packets of a film, each captured when it is due."""
    media, found = Media(f"file:{path}", {}), []
    for packet in media.packets():
        if packet.size and packet.dts is not None and packet.time_base is not None:
            at_ns = SECOND + max(0, round(float(packet.dts * packet.time_base) * SECOND))
            found.append(media.media_packet(packet, at_ns))
    media.close()
    return sorted(found, key=lambda packet: packet.captured_ns)


def recorded(path: Path, folder: Path, count: int, seconds: int) -> list[tuple[Clip, float]]:
    """Record clips around events at random times; return each with the time of its event in the film, s."""
    chance, found = random.Random(f"{path.name}"), list[tuple[Clip, float]]()
    packets = packets_of(path)
    for number in range(count):
        at_s, done = chance.uniform(BEFORE_S + GROUP_S, seconds - AFTER_S - 2.0), list[Clip]()
        recorder = Recorder(
            folder / str(number), StorageConfig(clips_keep_free_bytes=0), done.append, turn_s=0.02
        )
        config = ClipsConfig(before_s=BEFORE_S, after_s=AFTER_S)
        clips = StreamClips("bench", StreamConfig("test:?pace=fast", "", clips=config), recorder)
        at_s = play(packets, clips, at_s)
        clips.close()
        recorder.close(30.0)
        found += [(clip, at_s) for clip in done]
    return found


def play(packets: Sequence[MediaPacket], clips: StreamClips, at_s: float) -> float:
    """Give the packets to the clips of a stream, with an event at about that time; return when it was, s."""
    picture, due, was_s = np.zeros((8, 8, 3), np.uint8), True, at_s
    for packet in packets:
        clips.add_packet(packet)
        if due and packet.captured_ns >= SECOND + at_s * SECOND:
            due, now, was_s = False, datetime.now(UTC), packet.captured_ns / SECOND - 1.0
            track = Track("1", "person", 0.9, 0.9, 1, now, now)
            events = [Event("new", track, "appeared"), Event("end", track, "lost")]
            clips.add_frame(Frame(picture, "bench", 0, packet.captured_ns, now), events)
    return was_s


def players(clips: dict[str, list[tuple[Clip, float]]], folder: Path) -> dict[str, float]:
    """Open every clip, whole and cut off."""
    every = [one for found in clips.values() for one in found]
    paths, seen = [Path(clip.path) for clip, _ in every], dict[str, Shown]()
    for path in paths:
        try:
            seen[str(path)] = watch(path)
        except av.FFmpegError as error:
            print(f"{path}: {error}", file=sys.stderr)
    figures = {"clips": float(len(every)), "unopened_ffmpeg": float(len(paths) - len(seen))}
    figures["unopened_browser"] = unplayed(paths)
    figures["preroll_missing"] = float(sum(not has_preroll(seen[clip.path], at_s) for clip, at_s in every))
    cut, as_it_is = cut_off(paths, folder / "cut")
    figures["unopened_cut_ffmpeg"] = float(sum(not opens(path) for path in cut) + CUTS - len(cut))
    figures["unopened_cut_browser"] = unplayed(cut) + CUTS - len(cut)
    figures["unopened_cut_before_named_ffmpeg"] = float(as_it_is)
    for sound, found in clips.items():
        figures[f"sound_apart_{sound}_ms"] = max(sound_apart_ms(seen[clip.path]) for clip, _ in found)
    figures["sound_apart_ms"] = max(figures[f"sound_apart_{sound}_ms"] for sound in clips)
    return figures


def unplayed(paths: Sequence[Path]) -> float:
    shown = play_in_browser(paths, 300.0)
    return float(len(paths) - sum(not one.error and one.length_s > 0 for one in shown))


def has_preroll(shown: Shown, at_s: float) -> bool:
    """Whether a clip begins at the key frame before the wanted time, by the flashes of the seconds."""
    at_s += 2 / FPS  # what comes then is shown so much later: pictures between wait for it
    wanted_s = (at_s - BEFORE_S + 1e-6) // GROUP_S * GROUP_S
    begins_with_second = abs(shown.flashes[0] - shown.times[0] - 1.0) < 0.01  # the first flash has no dark before
    length_s = shown.times[-1] - shown.times[0]
    wanted_length_s = at_s + AFTER_S - wanted_s
    return begins_with_second and abs(length_s - wanted_length_s) < 3.5 / FPS


def cut_off(paths: Sequence[Path], folder: Path) -> tuple[list[Path], int]:
    """Cut clips at random bytes, and name them as after a crash; return how many did not open before, too."""
    folder.mkdir()
    chance, named, unopened = random.Random(11), list[Path](), 0
    for number in range(CUTS):
        path = paths[number % len(paths)]
        data = path.read_bytes()
        with path.open("rb") as file:
            first = next(box.end for box in read_boxes(file) if box.type == b"mdat")
        target = folder / f"2026-01-01T00-00-00Z-cut-{number}.mp4"
        part_of(target).write_bytes(data[: chance.randint(first, len(data) - 1)])
        unopened += not opens(part_of(target))
        try:
            named += [target] if recover(part_of(target)) is not None else []
        except ValueError as error:
            print(f"cut {number}: {error}", file=sys.stderr)
    return named, unopened


def opens(path: Path) -> bool:
    """Whether FFmpeg opens it and decodes a picture."""
    try:
        with av.open(str(path), format="mp4") as file:
            first = next(file.decode(video=0), None)
            return first is not None and sum(1 for _ in file.demux(video=0)) > 0
    except av.FFmpegError:
        return False


class Shown(NamedTuple):
    """A clip as FFmpeg decodes it: times of its pictures, and at which flashes and tones begin, s."""

    times: list[float]
    flashes: list[float]
    tones: list[float]


def watch(path: Path) -> Shown:
    """Decode all of a clip."""
    times, flashes, before = list[float](), list[float](), True
    with av.open(str(path)) as file:
        for shown in file.decode(video=0):
            plane = shown.planes[0]
            bright = bool(np.frombuffer(memoryview(plane), np.uint8)[: 90 * plane.line_size].mean() > 128)
            times.append(float(shown.time or 0.0))
            flashes += [times[-1]] if bright and not before else []
            before = bright
    return Shown(times, flashes, tone_onsets(path))


def tone_onsets(path: Path) -> list[float]:
    """Times at which tones begin in a clip, s."""
    waves, begin_s, rate = list[Any](), 0.0, 1
    with av.open(str(path)) as file:
        for heard in file.decode(audio=0):
            if not waves:
                begin_s, rate = float(heard.time or 0.0), heard.sample_rate
            waves.append(heard.to_ndarray()[0].astype(np.float64))
    level = np.convolve(np.abs(np.concatenate(waves)), np.ones(rate // 200) / (rate // 200), "same")
    loud, found, last = level > level.max() / 2, list[float](), -1.0
    for at_s in begin_s + np.flatnonzero(loud[1:] & ~loud[:-1]) / rate:
        found += [float(at_s)] if at_s - last > 0.5 else []
        last = at_s
    return found


def sound_apart_ms(shown: Shown) -> float:
    """How far a tone is from its flash, at most, ms; the last may lack its tone."""
    flashes = [one for one in shown.flashes if one < shown.times[-1] - 0.5]
    return max(min(abs(flash - tone_s) for tone_s in shown.tones) for flash in flashes) * 1e3


if __name__ == "__main__":
    main()
