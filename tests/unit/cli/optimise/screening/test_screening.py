"""`vedette optimise screening`: from labelled pictures to reviewed findings, with a real model."""

from __future__ import annotations

import csv
import json
import os
import stat
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from agent.cli.main import vedette
from agent.compute.infer.litert import load_runtime
from agent.errors import VedetteError
from tests.support.blobs import HEIGHT, WIDTH, picture, write_model, write_pictures

if load_runtime()[0] != "litert":
    pytest.skip("the model is written by what comes with LiteRT", allow_module_level=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("labelled"))


@pytest.fixture(scope="module")
def point(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("point") / "cells.toml"
    called("calibrate", model, data, path, "--label", "cell", "--false-positives", "0.02")
    return path


def called(*words: object) -> Result:
    result = CliRunner().invoke(vedette, ["optimise", "screening", *map(str, words)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def as_json(*words: object) -> Any:
    result = called(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*words: object) -> str:
    try:
        result = called(*words)
    except VedetteError as error:
        return str(error)
    assert result.exit_code == 2, result.output
    return result.output


def save(path: Path, cells: list[tuple[int, int, int]], seed: int = 500, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), picture(cells, seed, **more))
    return path


def screened(point: Path, folder: Path, out: Path) -> dict[str, dict[str, Any]]:
    """Screen a folder; return the records of its pictures by name."""
    as_json("run", point, folder, "--out", out)
    names = {row["id"]: Path(row["picture"]).name for row in csv.DictReader((out / "names.csv").open())}
    records = [json.loads(line) for line in (out / "audit.jsonl").read_text().splitlines()]
    return {names[one["id"]]: one for one in records if one["type"] == "picture"}


def test_an_operating_point_tells_what_it_was_chosen_by(point: Path) -> None:
    found = tomllib.loads(point.read_text())
    assert "Not a medical device" in point.read_text()
    assert found["label"] == "cell"
    assert 0 < found["doubt"] <= found["threshold"] < 1
    expected = found["expected"]
    assert (expected["pictures"], expected["objects"]) == (40, 32)
    assert expected["false_positives"] <= 0.02
    assert 0.5 < expected["sensitivity"] < 1
    assert expected["interval"][0] <= expected["sensitivity"] <= expected["interval"][1]
    assert [rate for rate, _ in expected["froc"]] == [0.125, 0.25, 0.5, 1, 2, 4, 8]
    assert (found["pictures"]["height"], found["pictures"]["width"]) == (HEIGHT, WIDTH)


def test_more_false_positives_find_more_and_a_target_is_met_or_refused(
    model: Path, data: Path, point: Path, tmp_path: Path
) -> None:
    first = tomllib.loads(point.read_text())
    more = as_json("calibrate", model, data, tmp_path / "more.toml", "--label", "cell", "--false-positives", "1")
    assert more["threshold"] < first["threshold"]
    assert more["expected"]["sensitivity"] > first["expected"]["sensitivity"]
    wanted = as_json("calibrate", model, data, tmp_path / "s.toml", "--label", "cell", "--sensitivity", "0.95")
    assert wanted["expected"]["sensitivity"] >= 0.95
    told = refused("calibrate", model, data, tmp_path / "s.toml", "--label", "cell")
    assert "exists; --force replaces it" in told
    both = refused(
        "calibrate", model, data, "x.toml", "--label", "c", "--sensitivity", "1", "--false-positives", "1"
    )
    assert "exclude each other" in both


@pytest.mark.parametrize(
    ("label", "target", "why"),
    [
        ("WBC", "p.toml", "has no label 'WBC'; it has cell"),
        ("cell", "p.json", "expected the name of a .toml file"),
        ("cell", "none/p.toml", "there is no folder"),
    ],
)
def test_what_cannot_be_calibrated_is_told(
    model: Path, data: Path, tmp_path: Path, label: str, target: str, why: str
) -> None:
    assert why in refused("calibrate", model, data, tmp_path / target, "--label", label)
    assert list(tmp_path.rglob("p.*")) == []


def test_too_few_pictures_or_objects_are_refused(model: Path, tmp_path: Path) -> None:
    few = write_pictures(tmp_path / "few", 12)
    assert "needs 20 of both" in refused("calibrate", model, few, tmp_path / "p.toml", "--label", "cell")
    for number in range(2):
        save(tmp_path / "classes" / str(number) / "a.png", [])
        for other in range(5):
            save(tmp_path / "classes" / str(number) / f"{other}.png", [], other)
    assert "with boxes" in refused(
        "calibrate", model, tmp_path / "classes", tmp_path / "p.toml", "--label", "cell"
    )


def test_pictures_are_screened_and_each_has_a_record_without_its_name(point: Path, tmp_path: Path) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    save(pictures / "jane-doe.png", [(2, 2, 200)])
    save(pictures / "faint.png", [(2, 2, 124)], 501)
    save(pictures / "nothing.png", [], 502)
    save(pictures / "sub" / "dark.png", [], 503)
    cv2.imwrite(str(pictures / "sub" / "dark.png"), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    (pictures / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (pictures / "empty.png").write_bytes(b"")
    (pictures / "notes.txt").write_text("not a picture")
    found = screened(point, pictures, out)
    assert {name: one["status"] for name, one in found.items()} == {
        "jane-doe.png": "finding",
        "faint.png": "doubt",
        "nothing.png": "clear",
        "dark.png": "unusable",
        "broken.jpg": "unusable",
        "empty.png": "unusable",
    }
    assert "out of focus" in found["dark.png"]["reasons"]
    assert found["broken.jpg"]["reasons"] == ["is no JPEG, PNG or BMP"]
    (best,) = found["jane-doe.png"]["findings"]
    assert np.allclose(best["box"], [16 / WIDTH, 16 / HEIGHT, 32 / WIDTH, 32 / HEIGHT], atol=0.01)
    assert best["probability"] > found["faint.png"]["findings"][0]["probability"]
    audit = (out / "audit.jsonl").read_text() + (out / "review.html").read_text()
    assert "jane" not in audit
    assert str(tmp_path) not in audit
    assert "Not a medical device" in audit
    for name in ("names.csv", "key", "review.html"):
        assert stat.S_IMODE((out / name).stat().st_mode) == 0o600
    kept = {path.stem for path in (out / "review").iterdir()}
    assert kept == {found[name]["id"] for name in ("jane-doe.png", "faint.png", "dark.png")}


def test_the_metadata_of_a_picture_is_not_kept(point: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "pictures" / "scan.jpg", [(2, 2, 210)])
    content = path.read_bytes()
    comment = b"Patient: Jane Doe"
    path.write_bytes(content[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2) + comment + content[2:])
    found = screened(point, path.parent, tmp_path / "out")
    (kept,) = (tmp_path / "out" / "review").iterdir()
    assert found["scan.jpg"]["status"] == "finding"
    assert b"Jane" not in kept.read_bytes()


def test_a_large_picture_is_cut_into_tiles(point: Path, tmp_path: Path) -> None:
    cells = [(1, 1, 200), (11, 1, 200), (20, 9, 200), (28, 14, 200)]  # one lies across two tiles
    save(tmp_path / "pictures" / "large.png", cells, size=(4 * HEIGHT // 2, 5 * WIDTH // 2))
    found = screened(point, tmp_path / "pictures", tmp_path / "out")["large.png"]
    assert found["status"] == "finding"
    corners = sorted((round(one["box"][0] * 30), round(one["box"][1] * 16)) for one in found["findings"])
    assert corners == [(1, 1), (11, 1), (20, 9), (28, 14)]


def test_a_run_goes_on_and_the_same_picture_is_screened_once(point: Path, tmp_path: Path) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    save(pictures / "one.png", [(2, 2, 200)])
    assert as_json("run", point, pictures, "--out", out)["pictures"]["finding"] == 1
    (pictures / "copy.png").write_bytes((pictures / "one.png").read_bytes())
    save(pictures / "two.png", [], 501)
    with (out / "audit.jsonl").open("ab") as file:
        file.write(b'{"type":"picture","id":')  # a power cut
    summary = as_json("run", point, pictures, "--out", out)
    assert (summary["pictures"]["clear"], summary["pictures"]["finding"], summary["known"]) == (1, 0, 2)
    assert summary["queue"] == 1
    assert called("verify", out).exit_code == 0


def test_a_folder_belongs_to_one_operating_point(point: Path, tmp_path: Path) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    save(pictures / "one.png", [(2, 2, 200)])
    as_json("run", point, pictures, "--out", out)
    other = tmp_path / "other.toml"
    other.write_text(point.read_text().replace("[calibration]", "[calibration] # another"))
    assert "another operating point" in refused("run", other, pictures, "--out", out)


def test_findings_are_reviewed_and_leave_the_queue(point: Path, tmp_path: Path) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    save(pictures / "one.png", [(2, 2, 200)])
    save(pictures / "two.png", [(3, 3, 124)], 501)
    as_json("run", point, pictures, "--out", out)
    first, second = as_json("review", out)["queue"]
    assert (first["status"], second["status"]) == ("finding", "doubt")
    table = called("review", out).output
    assert first["id"] in table
    assert "2 pictures to review" in table
    told = called(
        "review", out, first["id"], "--verdict", "confirmed", "--reviewer", "dr", "--note", "large\ncell"
    )
    assert "1 picture to review" in told.output
    assert [one["id"] for one in as_json("review", out)["queue"]] == [second["id"]]
    last = json.loads((out / "audit.jsonl").read_text().splitlines()[-1])
    assert (last["type"], last["verdict"], last["reviewer"], last["note"]) == (
        "review",
        "confirmed",
        "dr",
        "large\ncell",
    )
    assert not (out / "review" / f"{first['id']}.jpg").exists()
    assert first["id"] not in (out / "review.html").read_text()
    # A picture that is given again keeps its review.
    assert as_json("run", point, pictures, "--out", out)["queue"] == 1


def test_reviews_that_cannot_be_are_refused(point: Path, tmp_path: Path) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    assert "has no records" in refused("review", tmp_path)
    save(pictures / "one.png", [(2, 2, 200)])
    as_json("run", point, pictures, "--out", out)
    (one,) = as_json("review", out)["queue"]
    assert "no record of such a picture" in refused("review", out, "../../etc", "--verdict", "rejected")
    assert "both PICTURE and --verdict" in refused("review", out, one["id"])
    assert "both PICTURE and --verdict" in refused("review", out, "--verdict", "rejected")
    assert "500 characters" in refused("review", out, one["id"], "--verdict", "rejected", "--note", "x" * 501)


def test_records_that_were_changed_are_found(point: Path, tmp_path: Path) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    save(pictures / "one.png", [(2, 2, 200)])
    save(pictures / "two.png", [], 501)
    as_json("run", point, pictures, "--out", out)
    found = as_json("verify", out)
    assert found["records"] == 3
    assert called("verify", out, "--head", found["head"]).exit_code == 0
    log = out / "audit.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:-1]))
    assert "last lines were changed or removed" in refused("verify", out)
    (out / "audit.head").write_text(json.loads(lines[-1])["previous"])
    assert called("verify", out).exit_code == 0, "who writes both anew is found by a hash alone"
    assert "no record has the hash" in refused("verify", out, "--head", found["head"])
    assert "no record has the hash" in refused("verify", out, "--head", "12")
    (out / "audit.head").write_text(found["head"])
    log.write_text("".join(lines).replace('"finding"', '"clear"', 1))
    for words in (("verify", out), ("review", out), ("run", point, pictures, "--out", out)):
        assert "does not follow" in refused(*words)


def test_operating_points_that_cannot_be_used_are_told(point: Path, model: Path, tmp_path: Path) -> None:
    pictures, out, bad = tmp_path / "pictures", tmp_path / "out", tmp_path / "bad.toml"
    save(pictures / "one.png", [])
    text = point.read_text()
    sha256 = tomllib.loads(text)["sha256"]
    threshold = f"threshold = {tomllib.loads(text)['threshold']}"
    for content, why in (
        ("", "vedette optimise screening calibrate writes"),
        ("[[[", "not TOML"),
        (text.replace(sha256, "0" * 64), "was changed by hand"),
        (text.replace(threshold, "threshold = 0.0"), "was changed by hand"),
        (text.replace('label = "cell"', 'label = "cells"'), "was changed by hand"),
        (text.replace("slope = ", "slope = 1"), "was changed by hand"),
        (text.replace(threshold, "threshold = 2"), "`threshold`"),
        (text + "\nextra = 1\n", "extra"),
    ):
        bad.write_text(content)
        assert why in refused("run", bad, pictures, "--out", out)
        assert not out.exists()
    assert "there is no such file" in refused("run", point, tmp_path / "none", "--out", out)
    (tmp_path / "bare").mkdir()
    assert "has no pictures" in refused("run", point, tmp_path / "bare", "--out", out)


def test_a_disk_that_refuses_ends_the_run_and_nothing_is_half_done(
    point: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    for number in range(3):
        save(pictures / f"{number}.png", [(2, 2, 200)], number)
    written, real = [], os.fsync

    def full(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) > 12:
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert "No space left" in refused("run", point, pictures, "--out", out)
    summary = as_json("run", point, pictures, "--out", out)
    assert summary["pictures"]["finding"] + summary["known"] == 3
    assert summary["queue"] == 3
    assert called("verify", out).exit_code == 0


@pytest.mark.parametrize("name", ["audit.jsonl", "review", "review.html", "names.csv", "key"])
def test_links_in_the_folder_are_not_followed(point: Path, tmp_path: Path, name: str) -> None:
    pictures, out, other = tmp_path / "pictures", tmp_path / "out", tmp_path / "other"
    save(pictures / "one.png", [(2, 2, 200)])
    as_json("run", point, pictures, "--out", out)
    if name == "review":
        other.mkdir()
        for one in (out / name).iterdir():
            one.unlink()
        (out / name).rmdir()
    else:
        other.write_text("precious")
        (out / name).unlink()
    (out / name).symlink_to(other)
    for words in (("run", point, pictures, "--out", out), ("review", out), ("verify", out)):
        assert "is a symbolic link" in refused(*words)
    assert other.is_dir() or other.read_text() == "precious"


def test_files_that_cannot_be_read_are_told_and_the_others_screened(point: Path, tmp_path: Path) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    save(pictures / "one.png", [(2, 2, 200)])
    os.mkfifo(tmp_path / "pipe.png")
    result = called("run", point, tmp_path / "pipe.png", pictures, "--out", out)
    assert result.exit_code == 1
    assert "pipe.png" in result.output
    assert [one["status"] for one in as_json("review", out)["queue"]] == ["finding"]


def test_the_folder_of_records_is_not_screened(point: Path, tmp_path: Path) -> None:
    save(tmp_path / "one.png", [(2, 2, 200)])
    for _ in range(2):
        summary = as_json("run", point, tmp_path, "--out", tmp_path / "out")
    assert (sum(summary["pictures"].values()), summary["known"], summary["queue"]) == (0, 1, 1)
    other = as_json("run", point, tmp_path, "--out", tmp_path / "other")
    assert sum(other["pictures"].values()) == 1, "what another run has put into review is no picture"
    assert stat.S_IMODE((tmp_path / "out" / "review").stat().st_mode) == 0o700


def test_an_operating_point_works_from_another_folder(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    called("calibrate", "blobs.tflite", data, tmp_path / "p.toml", "--label", "cell")
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "one.png", [(2, 2, 200)])
    assert as_json("run", "p.toml", "one.png", "--out", "out")["pictures"]["finding"] == 1


def test_a_model_whose_manifest_was_changed_is_refused(data: Path, tmp_path: Path) -> None:
    own = write_model(tmp_path)
    called("calibrate", own, data, tmp_path / "p.toml", "--label", "cell")
    save(tmp_path / "one.png", [(2, 2, 200)])
    own.write_text(own.read_text() + "\n[input]\norder = 'bgr'\n")
    told = refused("run", tmp_path / "p.toml", tmp_path / "one.png", "--out", tmp_path / "out")
    assert "another manifest" in told


def test_what_is_left_out_is_told(point: Path, tmp_path: Path) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    save(pictures / "one.png", [(2, 2, 200)])
    for name in ("a.tif", "b.gif", "b.GIF", "notes"):
        (pictures / name).write_bytes(b"x")
    (pictures / "gone.png").symlink_to("nowhere")
    (pictures / "folder").symlink_to(tmp_path)
    (pictures / "link.png").symlink_to(pictures / "one.png")
    result = called("run", point, pictures, "--out", out, "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert told["left_out"] == 4
    assert (told["unread"], told["known"]) == (2, 1)
    assert "gone.png: is gone" in result.stderr
    assert "folder: is a link to a folder" in result.stderr
    assert "4 other files" in called("run", point, pictures, "--out", out).output


def test_names_are_safe_in_the_table_and_copies_are_in_it(point: Path, tmp_path: Path) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    name = 'new\nline, "quoted" <b>.png'
    save(pictures / "one.png", [(2, 2, 200)])
    (pictures / name).write_bytes((pictures / "one.png").read_bytes())
    for _ in range(2):
        as_json("run", point, pictures, "--out", out)
        with (out / "names.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert {Path(row["picture"]).name for row in rows} == {"one.png", name}
        assert len({row["id"] for row in rows}) == 1
        assert len(rows) == 2
    assert "quoted" not in (out / "review.html").read_text()


def test_a_key_or_a_log_that_is_gone_is_told(point: Path, tmp_path: Path) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    save(pictures / "one.png", [(2, 2, 200)])
    as_json("run", point, pictures, "--out", out)
    key = (out / "key").read_bytes()
    (out / "key").unlink()
    assert "key: is gone" in refused("run", point, pictures, "--out", out)
    (out / "key").write_bytes(key[:5])
    assert "expected 32 bytes" in refused("run", point, pictures, "--out", out)
    (out / "key").write_bytes(key)
    (out / "audit.jsonl").unlink()
    for words in (("verify", out), ("review", out), ("run", point, pictures, "--out", out)):
        assert "audit" in refused(*words)
    (out / "audit.jsonl").write_bytes(b"")
    assert "changed or removed" in refused("verify", out)


def test_a_second_review_is_another_record(point: Path, tmp_path: Path) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    save(pictures / "one.png", [(2, 2, 200)])
    as_json("run", point, pictures, "--out", out)
    (one,) = as_json("review", out)["queue"]
    for count, verdict in enumerate(("confirmed", "rejected"), 3):
        told = as_json("review", out, one["id"], "--verdict", verdict, "--note", os.fsdecode(b"caf\xe9"))
        assert told == {"id": one["id"], "verdict": verdict, "queue": 0}
        assert as_json("verify", out)["records"] == count
    assert "are for a --verdict" in refused("review", out, "--note", "x")


def test_an_interrupted_run_leaves_a_page(point: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    for number in range(3):
        save(pictures / f"{number}.png", [(2, 2, 200)], number)
    seen: list[str] = []

    def interrupt(text: str) -> None:
        seen.append(text)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(import_module("agent.cli.optimise.screening.run"), "show_progress", interrupt)
        result = called("run", point, pictures, "--out", out)
    assert result.exit_code == 130
    assert "the same command goes on" in result.output
    assert "1 picture to review" in (out / "review.html").read_text()
    assert as_json("run", point, pictures, "--out", out)["queue"] == 3


def test_a_picture_that_would_unpack_to_gigabytes_is_not_unpacked(point: Path, tmp_path: Path) -> None:
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (30000).to_bytes(4) + (30000).to_bytes(4) + b"\x08\x02\0\0\0"
    (tmp_path / "bomb.png").write_bytes(header)
    (tmp_path / "bomb.jpg").write_bytes(b"II*\0" + bytes(100))  # a TIFF
    found = screened(point, tmp_path, tmp_path / "out")
    assert found["bomb.png"]["reasons"] == ["30000x30000 pixels: expected at most 50 megapixels: cut it up"]
    assert found["bomb.jpg"]["reasons"] == ["is no JPEG, PNG or BMP"]
