from __future__ import annotations

from pathlib import Path

import pytest

from agent.capture.decoder_trial import encode_clip, run_trial, try_decoder
from agent.capture.hardware_decoder import DECODERS, SOFTWARE, DecoderTrial, best_decoder
from tests.support.decoders import Tamper, failing, green, opener, right, silent

NAME = "h264_v4l2m2m"


def trial(name: str, cpu_ms: float, ms: float = 5.0, refused: str = "") -> DecoderTrial:
    return DecoderTrial(name, "h264", 60, ms, cpu_ms, 0.0, refused)


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_the_software_decoder_is_measured_in_its_process(codec: str) -> None:
    found = run_trial(SOFTWARE, codec)
    assert found.refused == ""
    assert found.pictures == 60
    assert found.cpu_ms > 0


def test_a_decoder_that_is_right_is_accepted(h264: bytes) -> None:
    found = try_decoder(NAME, "h264", h264, opener(right))
    assert (found.refused, found.pictures, found.difference) == ("", 60, 0.0)


@pytest.mark.parametrize(
    ("tamper", "why"), [(failing(9), "Input/output error"), (silent(20), "20 of 60"), (green, "wrong")]
)
def test_a_decoder_is_refused_with_the_reason(h264: bytes, tamper: Tamper, why: str) -> None:
    assert why in try_decoder(NAME, "h264", h264, opener(tamper)).refused


def test_a_clip_without_video_refuses_every_decoder() -> None:
    assert try_decoder(SOFTWARE, "h264", b"nonsense").refused
    assert "no clip of mpeg4" in try_decoder(SOFTWARE, "mpeg4", b"").refused


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import time; time.sleep(60)", "hangs"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
        ("raise SystemExit(3)", "exit status 3"),
        ("print('x' * 100000)", "exit status 0"),
        ("import os, sys; os.write(int(sys.argv[2]), b'xxxx')", "invalid answer"),
    ],
)
def test_whatever_happens_to_the_process_is_why_the_decoder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, why: str
) -> None:
    (tmp_path / "pretend_trial.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert why in run_trial(NAME, "h264", b"", 1.0 if why == "hangs" else 60.0, "pretend_trial").refused


@pytest.mark.skipif(any(Path("/dev").glob("video*")), reason="this machine has V4L2 devices")
def test_a_machine_without_devices_refuses_each_hardware_decoder() -> None:
    for name, codec in DECODERS.items():
        assert "no such device" in run_trial(name, codec, encode_clip(codec)).refused


def test_the_decoder_that_takes_least_of_the_processor_is_best() -> None:
    software = trial(SOFTWARE, 4.0)
    assert best_decoder([software, trial(NAME, 1.0), trial("other", 2.0)]) == NAME
    assert best_decoder([software, trial(NAME, 1.0, refused="green"), trial("other", 2.0)]) == "other"
    assert best_decoder([software, trial(NAME, 3.9)]) == "", "not worth it"
    assert best_decoder([software, trial(NAME, 1.0, ms=50.0)]) == "", "too slow"
    assert best_decoder([trial(SOFTWARE, 4.0, refused="crashed"), trial(NAME, 1.0)]) == ""
