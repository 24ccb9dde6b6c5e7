"""Image sequences: detection, and coloring like a video file."""

import json
import os
from fractions import Fraction

import numpy as np
import pytest
from drawn import StubPredictor, draw_film, draw_picture, draw_shots, planes_in

from config import FilmConfig
from fileio.images import read_image, write_image
from film.io.image_sequence import find_sequences
from film.io.video import VideoFile, read_frames
from film.render.rendering import color_film
from film.render.segments import is_complete
from test import find_inputs
from utils import UserError, list_files

SHOTS = [(60, 16), (200, 12)]


def bars(i, level=60, size=(64, 48)):
    """Return a frame of a film of moving bars, RGB uint8."""
    return np.repeat((level + 20 * np.sin((np.arange(size[0]) + i) / 3)).astype(np.uint8)[None].repeat(size[1], 0)
                     [..., None], 3, 2)


def write_frames(folder, frames, name="shot.v2_{:04d}.png", numbers=None):
    for number, frame in zip(numbers or range(1, len(frames) + 1), frames, strict=True):
        write_image(folder / name.format(number), frame)
    return folder


def found(folder):
    sequences, others = find_sequences(list_files(folder, (".png", ".jpg")))
    return [len(sequence.paths) for sequence in sequences], len(others)


@pytest.fixture
def shots(tmp_path):
    """Return a folder with the frames of two shots, and their luma."""
    film = draw_shots(tmp_path / "film.mkv", SHOTS, options={"crf": "0"})
    frames = [frame.to_ndarray(format="rgb24") for _, frame in read_frames(film)]
    return write_frames(tmp_path / "in", [frame.mean(-1, keepdims=True).repeat(3, 2).astype(np.uint8)
                                          for frame in frames])


def color(folder, output, predictor=None, overwrite=False, on_complete=None, **settings):
    (sequence,), _ = find_sequences(list_files(folder, (".png",)))
    return color_film(predictor or StubPredictor(), sequence, output / sequence.stem, FilmConfig(**settings),
                      overwrite=overwrite, on_complete=on_complete)


def pictures(folder):
    return {path.name: read_image(path) for path in list_files(folder, (".png",))}


# ---------------------------------------------------------------------------------------------------------------------
# Detection


MOVING = [bars(i) for i in range(14)]


@pytest.mark.parametrize("name, frames, numbers, expected", [
    ("{:04d}.png", MOVING, None, ([14], 0)),
    ("film{}.jpg", MOVING, range(995, 1009), ([14], 0)),  # not padded
    ("film_{:03d}.png", MOVING, range(1, 29, 2), ([14], 0)),  # every second number
    ("film_{:03d}.png", MOVING, range(1, 43, 3), ([], 14)),  # too few of the numbers in the range
    ("film_{:03d}.png", MOVING[:11], None, ([], 11)),
    ("film_{:03d}_x.png", MOVING, None, ([14], 0)),  # the number is not at the end
    ("frame ({}).png", MOVING, None, ([14], 0)),
    ("2nd_{:03d}_v2.png", MOVING, None, ([14], 0)),
    ("{0:03d}_{0:03d}.png", MOVING, None, ([], 14)),  # two numbers change
    ("a film\n{:03d}.png", MOVING, None, ([14], 0)),  # names may contain newlines
    ("film_{:03d}.png", [draw_picture(i % 2, (64, 48)) if i % 2 else bars(i) for i in range(14)], None, ([], 14)),
    ("film_{:03d}.png", [bars(i, size=(64 + i, 48)) for i in range(14)], None, ([], 14)),
])
def test_which_images_form_a_sequence(tmp_path, name, frames, numbers, expected):
    assert found(write_frames(tmp_path, frames, name, numbers)) == expected


def test_the_last_number_that_forms_a_sequence_counts(tmp_path):
    """Scenes with numbered frames are not taken for frames with numbered scenes."""
    for scene in range(12):
        write_frames(tmp_path, MOVING[:12], f"scene{scene}_{{:03d}}_v1.png")
    sequences, others = find_sequences(list_files(tmp_path), Fraction(25))
    assert not others and [sequence.stem for sequence in sequences] == [f"scene{scene}_v1" for scene in range(12)]
    assert sequences[0].path.name == "scene0_*_v1.png" and sequences[0].info.rate == 25
    result = sequences[3].colored_film(tmp_path / "out" / "x", [0, 5])
    assert [path.name for path in result.paths.values()] == ["scene3_001_v1.png", "scene3_006_v1.png"]
    assert (result.info.rate, result.stem) == (25, "scene3_v1")


def test_a_folder_may_hold_sequences_and_other_images(tmp_path):
    write_frames(tmp_path, MOVING, "one_{:02d}.png")
    write_frames(tmp_path, MOVING[:12], "two_{:02d}.png")
    write_image(tmp_path / "poster.png", draw_picture(0))
    (tmp_path / "one_03.png").write_bytes(b"damaged")  # still part of the sequence
    assert found(tmp_path) == ([14, 12], 1)
    write_image(tmp_path / "one_1.png", MOVING[0])  # the same number twice: ambiguous
    assert found(tmp_path) == ([12], 16)


# ---------------------------------------------------------------------------------------------------------------------
# Coloring


def test_sequence_is_colored_like_a_video_file(tmp_path, shots):
    """Shots, palettes and held frames equal those of the same film in a file; luma and names are kept."""
    film, predictor = StubPredictor(), StubPredictor()
    expected = color_film(film, VideoFile(tmp_path / "film.mkv"), tmp_path / "out.mkv", FilmConfig(crf=0))
    records = color(shots, tmp_path / "out", predictor)
    assert [(r.start_frame, r.end_frame, r.slot_ids) for r in records] == [
        (r.start_frame, r.end_frame, r.slot_ids) for r in expected] and len(records) == 2
    assert predictor.shots == 2 and predictor.frames == film.frames
    assert [round(24 * r.end_time) for r in records] == [16, 28]
    before, after = pictures(shots), pictures(tmp_path / "out")
    assert list(before) == list(after)
    luma = np.float32([0.299, 0.587, 0.114])
    for (name, picture), result in zip(before.items(), planes_in(tmp_path / "out.mkv"), strict=True):
        assert after[name].shape == picture.shape
        assert np.ptp(after[name].astype(int), -1).mean() > 5  # in color
        clipped = (after[name] == 0) | (after[name] == 255)
        assert np.abs(after[name] @ luma - picture[..., 0])[~clipped.any(-1)].max() <= 1.5
        assert result[0].shape == picture.shape[:2]
    lines = (tmp_path / "out" / "shot_v2_shots.jsonl").read_text().splitlines()
    assert [json.loads(line)["end_frame"] for line in lines] == [16, 28]
    assert len(os.listdir(tmp_path / "out")) == 28 + 2  # also the log and the folder with the manifest


def test_interrupted_run_continues_with_the_first_unfinished_shot(tmp_path, shots):
    def stop():
        raise KeyboardInterrupt

    color(shots, tmp_path / "whole", batch_size=4)
    with pytest.raises(KeyboardInterrupt):
        color(shots, tmp_path / "out", StubPredictor(24, stop), batch_size=4)
    begun = {path: path.stat().st_mtime_ns for path in list_files(tmp_path / "out", (".png",))}
    assert 16 <= len(begun) < 28
    predictor = StubPredictor()
    color(shots, tmp_path / "out", predictor, batch_size=4)
    assert predictor.shots == 0 and predictor.frames == 12
    whole, out = pictures(tmp_path / "whole"), pictures(tmp_path / "out")
    assert list(whole) == list(out) and all(np.array_equal(whole[name], out[name]) for name in whole)
    assert all(path.stat().st_mtime_ns == before for path, before in begun.items())


def test_existing_images_are_kept(tmp_path, shots):
    (work, target), = find_inputs(shots, tmp_path / "out")[1]
    write_image(tmp_path / "out" / "shot.v2_0003.png", draw_picture(0))
    assert not is_complete(work, target)
    color(shots, tmp_path / "out")
    assert is_complete(work, target)
    assert np.array_equal(read_image(tmp_path / "out" / "shot.v2_0003.png"), draw_picture(0))
    color(shots, tmp_path / "out", overwrite=True)
    assert not np.array_equal(read_image(tmp_path / "out" / "shot.v2_0003.png"), draw_picture(0))

    def fail(_):
        raise UserError("the report cannot be written")

    with pytest.raises(UserError, match="the report"):
        color(shots, tmp_path / "out", on_complete=fail)
    assert not is_complete(work, target)


def test_start_and_end_and_unreadable_images(tmp_path, shots, capsys):
    (shots / "shot.v2_0010.png").write_bytes(b"damaged")
    records = color(shots, tmp_path / "out", start=0.25, end=0.82)
    said = capsys.readouterr().err
    assert said.count("warning") == 1 and "shot.v2_0010.png" in said
    assert list(records.pts) == [6, 7, 8, *range(10, 20)]
    assert list(pictures(tmp_path / "out")) == [f"shot.v2_{pts + 1:04d}.png" for pts in records.pts]


def test_bad_sequences_raise_user_errors(tmp_path, shots):
    with pytest.raises(UserError, match="the output .*in is the input itself"):
        find_inputs(shots, shots)
    draw_film(shots / "shot_v2.mp4", times=range(3))
    with pytest.raises(UserError, match="would both be written to .*shot_v2_report.html"):
        find_inputs(shots, tmp_path / "out")
    write_image(shots / "shot.v2_0017.png", bars(0))
    with pytest.raises(UserError, match="shot.v2_0017.png is 64x48, but the frames before it are 128x96"):
        color(shots, tmp_path / "out")
