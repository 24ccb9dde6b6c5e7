"""Tests of dataset_generator.py on drawn films with known shots: flat colors with a moving square."""

import csv
import itertools
import os
import subprocess
import sys
from array import array
from collections import Counter
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from drawn import HOLD_LOCK
from PIL import ImageColor
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector, ContentDetector

import dataset_generator as generator
from config import GeneratorConfig
from fileio.images import read_image
from film.analysis import dataset_files, training_frames
from film.analysis.dataset_files import split_shots
from film.analysis.detected_shots import SPLITS
from film.analysis.shot_detection import ChangeDetector, HistogramDetector, detect_shots, detector_input
from film.analysis.training_frames import FramePool, make_detector
from film.io import frame_index, video
from film.io.planes import ColorEncoding, Planes, plane_array
from film.io.video import VideoFile
from film.report import shot_figures as figures
from utils import UserError, evenly_spaced

SCRIPT = Path(generator.__file__)
RED, GREEN, BLUE, WHITE = (20, 20, 220), (20, 70, 20), (220, 40, 30), (255, 255, 255)  # BGR
LIGHT, LIGHTER = (150, 150, 150), (165, 165, 165)


def draw(spec, width=96, height=64):
    """Yield BGR frames of [(color, number of frames), ...] with a moving square: all frames of a shot differ."""
    for color, count in spec:
        for i in range(count):
            frame = np.full((height, width, 3), color, np.uint8)
            x, y = 8 * (i % 10), 8 * (i // 10 % 6)
            frame[y:y + 8, x:x + 8] = 90
            yield frame


def write_clip(path, spec, codec="ffv1", fps=24, pixels="yuv444p", **options):
    """Write a film. ffv1 in .mkv is lossless with only I-frames; libx264 has long groups of pictures and B-frames."""
    header_first = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", container_options=header_first) as container:
        stream = None
        for frame in draw(spec):
            if stream is None:
                stream = container.add_stream(codec, rate=fps, options=options)
                stream.height, stream.width, stream.pix_fmt = frame.shape[0], frame.shape[1], pixels
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "bgr24")))
        container.mux(stream.encode())
    return path


def decode(path):
    """Decode a film as test.py does; return RGB frames."""
    return [planes.rgb_uint8() for _, _, planes in VideoFile(path).read()]


def run(video_path, save_path, **options):
    """Make a dataset; return the summaries of the readable films."""
    return generator.generate(GeneratorConfig(video_path=video_path, save_path=save_path, **options))[0]


def rows(save_path):
    with open(save_path / "frames.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pictures(save_path):
    return sorted(str(path.relative_to(save_path).as_posix()) for path in save_path.glob("*/*.png")
                  if path.parent.name != "figures")


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A film of ten shots of 12 to 30 frames and one of 5 frames."""
    colors = itertools.cycle([RED, GREEN, BLUE, WHITE])
    lengths = [30, 12, 14, 5, 20, 13, 15, 16, 17, 18, 25]
    return write_clip(tmp_path_factory.mktemp("film") / "film.mkv", list(zip(colors, lengths, strict=False)))


# ---------------------------------------------------------------------------------------------------------------------
# Shots


EVERYWHERE = [
    ("two colors", [(RED, 20), (GREEN, 15)], [(0, 20), (20, 35)]),
    ("the last of three counts", [(RED, 20), (GREEN, 15), (BLUE, 13)], [(0, 20), (20, 35), (35, 48)]),
    ("a flash of one frame", [(RED, 20), (WHITE, 1), (RED, 20)], [(0, 20), (20, 21), (21, 41)]),
    ("no cut", [(RED, 30)], [(0, 30)]),
    ("cut after the first frame", [(RED, 1), (GREEN, 20)], [(0, 1), (1, 21)]),
    ("cut before the last frame", [(RED, 20), (GREEN, 1)], [(0, 20), (20, 21)]),
    ("one frame", [(RED, 1)], [(0, 1)]),
]
TABLE = [(detector, *row) for row in EVERYWHERE for detector in ("histogram", "adaptive", "content")] + [
    ("histogram", "a little lighter", [(LIGHT, 20), (LIGHTER, 20)], [(0, 20), (20, 40)]),
    ("adaptive", "a little lighter", [(LIGHT, 20), (LIGHTER, 20)], [(0, 40)]),
    ("content", "a little lighter", [(LIGHT, 20), (LIGHTER, 20)], [(0, 40)]),
]


@pytest.mark.parametrize("kind,name,spec,expected", TABLE, ids=[f"{row[0]}: {row[1]}" for row in TABLE])
def test_detectors_find_the_shots_of_drawn_clips(kind, name, spec, expected):
    differences = array("f")
    detector = make_detector(GeneratorConfig(detector=kind))
    assert list(detect_shots(draw(spec), detector, differences)) == expected
    assert len(differences) == sum(count for _, count in spec)
    for first, _ in expected[1:]:
        assert differences[first] >= detector.threshold


def test_only_the_adaptive_detector_tolerates_flicker():
    flicker = [((40, 40, 40), 1), ((200, 200, 200), 1)] * 15
    shots = {kind: len(list(detect_shots(draw(flicker), make_detector(GeneratorConfig(detector=kind)),
                                         array("f")))) for kind in ("adaptive", "content")}
    assert shots["content"] == 30 and shots["adaptive"] < 5


@pytest.mark.parametrize("kind, gray", [("adaptive", False), ("content", False), ("adaptive", True)])
def test_change_detector_returns_the_numbers_of_pyscenedetect(kind, gray):
    rng = np.random.default_rng(0)
    frames = [cv2.resize(frame, (256, 256)) for frame in draw([(RED, 9), (RED, 1), (GREEN, 12), (LIGHT, 5), (BLUE, 2)])]
    frames[5:5] = [np.maximum(frames[4], rng.integers(0, 60 + i, frames[4].shape, np.uint8)) for i in range(8)]
    frames[20:20] = [frames[19]] * 6  # nothing moves
    if gray:
        frames = [np.ascontiguousarray(frame[..., 1]) for frame in frames]
    expected = {}

    class Stats:
        def set_metrics(self, timecode, metrics):
            expected.setdefault(timecode.frame_num, {}).update(metrics)

    its = {"adaptive": AdaptiveDetector, "content": ContentDetector}[kind](min_scene_len=0, luma_only=gray)
    its.stats_manager, cuts = Stats(), set()
    for index, frame in enumerate(frames):
        picture = cv2.merge([frame] * 3) if gray else frame
        cuts |= {cut.frame_num for cut in its.process_frame(FrameTimecode(index, fps=24.0), picture)}
    ours = ChangeDetector(kind)
    judged = [answer for frame in frames
              for answer in ours.process(frame if gray else np.ascontiguousarray(frame[..., ::-1]))] + ours.flush()
    assert len(judged) == len(frames) and len(cuts) >= 2
    name = its.get_metrics()[-1] if kind == "adaptive" else ContentDetector.FRAME_SCORE_KEY
    for index in range(its.event_buffer_length + 1, len(frames) - its.event_buffer_length):
        assert judged[index] == (expected[index][name], index in cuts), index


@pytest.mark.parametrize("depth", [8, 10])
def test_detector_input_is_clipped_and_has_full_range(depth):
    """Luma 0 and 16 are black, 235 and 255 are white, and colors follow BT.601."""
    encoding, step = ColorEncoding(depth, False, 6), 2 ** (depth - 8)
    kind = np.uint8 if depth == 8 else np.uint16
    y, cb, cr = (np.full((64, 64), code * step, kind) for code in (0, 128, 128))
    for code, gray in ((0, 0), (9, 0), (16, 0), (235, 255), (255, 255)):
        y[:] = code * step
        assert np.abs(detector_input(Planes(y, None, None, encoding)).astype(int) - gray).max() == 0
        assert np.abs(detector_input(Planes(y, cb, cr, encoding)).astype(int) - gray).max() <= 1
    for color in PATCHES:
        drawn = [np.full((64, 64), np.rint(codes[0]), kind) for codes in encode_patches(6, False, depth, color[None])]
        assert np.abs(detector_input(Planes(*drawn, encoding)).astype(int) - color).max() <= 4


def test_histogram_difference_matches_a_worked_example():
    detector = HistogramDetector()
    gray, other = np.full((256, 256, 3), 10, np.uint8), np.full((256, 256, 3), 10, np.uint8)
    other[:, :, 1] = 11  # all pixels leave one bin of G for another: 2 * 65536^2 / 256
    other[:128, :, 2] = 12  # half of them in R: 2 * 32768^2 / 256
    assert detector.process(gray) == [(0.0, False)]
    assert detector.process(other) == [(2 * 65536**2 / 256 + 2 * 32768**2 / 256, True)]
    assert detector.process(other) == [(0.0, False)]


def test_histogram_detector_cuts_only_above_the_threshold():
    gray, other = np.full((256, 256, 3), 10, np.uint8), np.full((256, 256, 3), 10, np.uint8)
    other[:8, :8, 0] = 11
    exact = 2 * 64**2 / 256
    for threshold, is_cut in ((exact, False), (exact - 0.1, True)):
        detector = HistogramDetector(threshold)
        detector.process(gray)
        assert detector.process(other) == [(exact, is_cut)]


def test_shots_are_yielded_while_frames_are_read():
    def frames():
        for i, frame in enumerate(draw([(RED, 20), (GREEN, 20), (BLUE, 20)])):
            read_frames.append(i)
            yield frame
    read_frames = []
    shots = detect_shots(frames(), HistogramDetector(), array("f"))
    assert next(shots) == (0, 20) and len(read_frames) == 21
    assert next(shots) == (20, 40) and len(read_frames) == 41


@pytest.mark.parametrize("first,last,count,expected", [
    (10, 20, 3, [10, 15, 20]), (10, 21, 3, [10, 15, 21]), (0, 10, 1, [5]), (0, 9, 2, [0, 9]),
    (0, 12, 5, [0, 3, 6, 9, 12]),
    (7, 8, 3, [7, 8]), (7, 7, 3, [7]), (7, 7, 1, [7]), (4, 6, 3, [4, 5, 6]), (0, 3, 9, [0, 1, 2, 3]), (3, 3, 2, [3]),
])
def test_evenly_spaced_frames_of_a_shot_match_a_worked_example(first, last, count, expected):
    assert [first + i for i in evenly_spaced(last - first + 1, count)] == expected


def test_split_follows_the_shares_and_gives_every_split_a_shot():
    for shares in ((0.7, 0.2, 0.1), (0.98, 0.01, 0.01), (0.5, 0.0, 0.5), (0.0, 1.0, 0.0), (1 / 3, 1 / 3, 1 / 3)):
        active = {name for name, share in zip(SPLITS, shares, strict=True) if share > 0}
        for count in range(1, 60):
            chosen = Counter(split_shots(count, shares, seed=1))
            assert sum(chosen.values()) == count and set(chosen) <= active
            if count >= len(active):
                assert set(chosen) == active
            for name, share in zip(SPLITS, shares, strict=True):
                lent = max(chosen.values()) == chosen[name]  # may have given a shot to an empty split
                assert abs(chosen[name] - share * count) < 1 or chosen[name] == 1 or lent
    assert Counter(split_shots(100, (0.7, 0.2, 0.1), 0)) == {"train": 70, "val": 20, "test": 10}
    assert Counter(split_shots(10, (0.7, 0.2, 0.1), 0)) == {"train": 7, "val": 2, "test": 1}
    assert Counter(split_shots(14, (0.7, 0.2, 0.1), 0)) == {"train": 10, "val": 3, "test": 1}  # 9.8 2.8 1.4
    assert Counter(split_shots(12, (0.7, 0.2, 0.1), 0)) == {"train": 9, "val": 2, "test": 1}  # 8.4 2.4 1.2
    assert Counter(split_shots(4, (0.9, 0.05, 0.05), 0)) == {"train": 2, "val": 1, "test": 1}


def test_split_depends_only_on_the_seed():
    splits = [split_shots(30, (0.7, 0.2, 0.1), seed) for seed in (3, 3, 4)]
    assert splits[0] == splits[1] != splits[2]
    assert splits[0] != sorted(splits[0], key=SPLITS.index)  # shots are shuffled


# ---------------------------------------------------------------------------------------------------------------------
# Frames


@pytest.mark.parametrize("count,delay,budget", itertools.product((1, 2, 3, 5), (0, 2), (10**9, 20 * 300, 0)))
def test_pool_holds_the_selected_frames_of_a_shot_of_any_length(count, delay, budget):
    encoding = ColorEncoding(8, True, 6)
    frames = [Planes(*np.full((3, 10, 10), i % 251, np.uint8), encoding) for i in range(300)]
    pool = FramePool(count, delay, budget)
    starts = iter([1, 2, 5, 12, 100, 101, 260, None])  # first frames of the next shots
    cut, begin, pixels = next(starts), 0, 0
    for index, _ in enumerate(pool.collect(iter(frames))):
        assert pool.bytes == 300 * sum(isinstance(held, Planes) for held in pool.buffered.values())
        assert pool.bytes <= budget + (delay + 3) * 300
        if cut is not None and index == cut + delay:
            for wanted in {*(begin + i for i in evenly_spaced(cut - begin, count)), (begin + cut - 1) // 2}:
                held = pool.buffered[wanted]
                if budget == 10**9 or isinstance(held, Planes):
                    pixels += 1
                    assert held is frames[wanted]
                else:
                    assert held is None
            assert isinstance(pool.buffered[cut - 1], Planes) and isinstance(pool.buffered[cut], Planes)
            pool.start_shot(cut)
            assert min(pool.buffered) == cut
            begin, cut = cut, next(starts)
    assert cut is None and pixels >= (7 if budget else 3) and len(pool.buffered) <= 40


def assert_pictures_are_the_films(save_path, path):
    frames = decode(path)
    table = rows(save_path)
    assert table
    for row in table:
        picture = read_image(save_path / row["file"])
        assert picture.shape == frames[0].shape and np.array_equal(picture, frames[int(row["frame"])]), row


def test_dataset_has_the_expected_files_splits_and_frames(film, tmp_path):
    [summary] = run(film, tmp_path / "data")
    table = rows(tmp_path / "data")
    assert summary == {"video": "film.mkv", "shots": 11, "kept": 10, "dropped": 1,
                       "frames": {"train": 21, "val": 6, "test": 3}}
    assert (tmp_path / "data" / "frames.csv").read_text().splitlines()[0] == "file,video,frame,time,shot,split"
    assert [int(row["frame"]) for row in table[:6]] == [0, 14, 29, 30, 35, 41]
    assert table[-1]["frame"] == "184" and 3 not in {int(row["shot"]) for row in table}  # the shot of 5 frames
    assert pictures(tmp_path / "data") == sorted(row["file"] for row in table)
    assert [row["file"] for row in table] == [f"{row['split']}/raw_image_film_{i}.png" for i, row in enumerate(table)]
    for row in table:
        assert float(row["time"]) == pytest.approx(int(row["frame"]) / 24, abs=6e-4)
    splits = {}
    for row in table:
        splits.setdefault(row["shot"], set()).add(row["split"])
    assert all(len(split) == 1 for split in splits.values())
    assert_pictures_are_the_films(tmp_path / "data", film)
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"train", "val", "test", "figures", "frames.csv"}
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("name,budget,offset", [("film.mkv", 0, 0), ("film.mp4", 10**9, 0), ("film.mp4", 0, 0),
                                                ("film.ts", 0, 0), ("film.mp4", 0, 3)])
def test_images_are_exact_when_frames_are_decoded_again(tmp_path, monkeypatch, name, budget, offset):
    """With a small pool, middle frames are found by seeking, even if seeking ends ``offset`` frames off."""
    codec = {"codec": "ffv1"} if name == "film.mkv" else {"codec": "libx264", "bf": "3", "g": "250", "crf": "20",
                                                         "pixels": "yuv420p", "x264-params": "open-gop=1:scenecut=0"}
    path = write_clip(tmp_path / name, [(RED, 80), (GREEN, 40), (BLUE, 31)], **codec)

    def read_with_offset(self, near):
        again.append(near)
        frames = list(read_near(self, near))
        for (pts, _), (_, planes) in zip(frames, frames[offset:], strict=False):
            yield pts, planes
    read_near, again = VideoFile.read_near, []
    monkeypatch.setattr(training_frames, "POOL_BYTES", budget)
    for module in (video, frame_index):
        monkeypatch.setattr(module, "SEEK_MARGIN", 0.5)
    monkeypatch.setattr(VideoFile, "read_near", read_with_offset)
    run(path, tmp_path / "data", frames_per_shot=5, detector="content")
    monkeypatch.undo()
    assert bool(again) == (budget == 0)
    table = rows(tmp_path / "data")
    assert [int(row["frame"]) for row in table] == [0, 19, 39, 59, 79, 80, 89, 99, 109, 119, 120, 127, 135, 142, 150]
    assert_pictures_are_the_films(tmp_path / "data", path)


PATCHES = np.array([(200, 40, 60), (30, 120, 200), (240, 220, 90), (60, 160, 80), (128, 128, 128), (250, 250, 250)])
MATRICES = {1: (0.2126, 0.0722), 6: (0.299, 0.114)}  # tag: weights of red and blue, of BT.709 and BT.601


def encode_patches(matrix, full, depth, colors=PATCHES):
    """Convert RGB colors to Y', Cb and Cr as defined in ITU-T H.273."""
    red, blue = MATRICES[matrix]
    r, g, b = (colors / 255).T
    y = red * r + (1 - red - blue) * g + blue * b
    cb, cr = (b - y) / (2 * (1 - blue)), (r - y) / (2 * (1 - red))
    top, step = 2**depth - 1, 2 ** (depth - 8)
    if full:
        return y * top, cb * top + 128 * step, cr * top + 128 * step
    return (16 + 219 * y) * step, (128 + 224 * cb) * step, (128 + 224 * cr) * step


@pytest.mark.parametrize("depth", [8, 10])
@pytest.mark.parametrize("matrix, full, tagged, height", [
    (6, False, True, 48), (1, False, True, 48), (6, True, True, 48), (1, True, True, 720), (6, False, True, 720),
    (6, False, False, 48), (1, False, False, 720)])
def test_images_have_the_colors_of_the_film_for_all_matrices_and_depths(tmp_path, depth, matrix, full, tagged, height):
    """A picture of the dataset is the frame as test.py reads it, in the colors that were drawn; an untagged film is
    BT.601, and BT.709 from 720 lines on."""
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=24, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 16 * len(PATCHES), height, f"yuv444p{'10le' * (depth == 10)}"
        if tagged:
            stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 1 + full
        for _ in range(14):
            frame = av.VideoFrame(stream.width, height, stream.pix_fmt)
            for index, codes in enumerate(encode_patches(matrix, full, depth)):
                kind = np.uint8 if depth == 8 else np.uint16
                plane_array(frame, index, kind)[:] = np.rint(np.repeat(codes, 16)).astype(kind)
            if tagged:
                frame.colorspace, frame.color_range = matrix, 1 + full
            film.mux(stream.encode(frame))
        film.mux(stream.encode(None))
    run(path, tmp_path / "data", split=(1.0, 0.0, 0.0))
    assert_pictures_are_the_films(tmp_path / "data", path)
    picture = read_image(tmp_path / "data" / pictures(tmp_path / "data")[0])
    assert np.abs(picture[height // 2, 8::16].astype(int) - PATCHES).max() <= 2


def test_delay_of_the_adaptive_detector_does_not_shift_the_saved_frames(tmp_path):
    path = write_clip(tmp_path / "film.mkv", [(RED, 20), (GREEN, 15), (BLUE, 13)])
    run(path, tmp_path / "data", detector="adaptive")
    assert [int(row["frame"]) for row in rows(tmp_path / "data")] == [0, 9, 19, 20, 27, 34, 35, 41, 47]
    assert_pictures_are_the_films(tmp_path / "data", path)


def test_videos_with_the_same_stem_do_not_collide(tmp_path, capsys):
    spec = [(RED, 12), (GREEN, 12)]
    for name, count in (("a.mkv", 2), ("a.avi", 1), ("b_7.mkv", 3), ("c.mkv", 1)):
        write_clip(tmp_path / name, spec * count)
    generator.main(["--video_path", str(tmp_path), "--video_names", "a", "b_7.mkv", "--save_path", str(tmp_path / "d"),
                    "--frames_per_shot", "2"])
    table = rows(tmp_path / "d")
    assert [(row["video"], row["shot"]) for row in table[::2]] == (
        [("a.avi", str(i)) for i in range(2)] + [("a.mkv", str(i)) for i in range(4)]
        + [("b_7.mkv", str(i)) for i in range(6)])
    assert [int(Path(row["file"]).stem.rsplit("_", 1)[1]) for row in table] == list(range(24))
    assert pictures(tmp_path / "d") == sorted(row["file"] for row in table)
    assert {path.name for path in (tmp_path / "d" / "figures").iterdir()} == {
        f"{name}_{kind}.png" for name in ("a.avi", "a.mkv", "b_7.mkv") for kind in ("curve", "shots_0")}
    printed = capsys.readouterr().out
    assert "a.mkv: shots 4, kept 4, dropped 0; frames: " in printed
    assert "total: shots 12, kept 12, dropped 0; frames: train 18, val 4, test 2" in printed


def test_same_seed_gives_the_same_dataset_and_a_different_seed_a_different_split(film, tmp_path):
    for name, seed in (("one", 5), ("two", 5), ("three", 6)):
        run(film, tmp_path / name, seed=seed, frames_per_shot=1)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert pictures(tmp_path / "one") != pictures(tmp_path / "three")


def test_figures_show_the_shots_and_their_splits(film, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "SHEET_ROWS", 1)
    run(film, tmp_path / "d")
    sheets = [cv2.imread(str(path)) for path in sorted((tmp_path / "d" / "figures").glob("*_shots_*.png"))]
    assert len(sheets) == 2  # 11 shots, 6 on a page
    centers = [sheet[28 + 100, 240 * i + 30].astype(int) for sheet in sheets for i in range(6)][:11]
    colors = [color for color, _ in zip(itertools.cycle([RED, GREEN, BLUE, WHITE]), range(11), strict=False)]
    assert np.abs(np.array(centers) - np.array(colors)).max() < 12
    curve = cv2.imread(str(tmp_path / "d" / "figures" / "film.mkv_curve.png"))
    left, top, right, bottom = figures.CURVE_BOX
    starts = [0, 30, 42, 56, 61, 81, 94, 109, 125, 142, 160, 185]
    for shot, (first, end) in enumerate(zip(starts, starts[1:], strict=False)):  # the ground of each, and the cut
        split = next((row["split"] for row in rows(tmp_path / "d") if int(row["shot"]) == shot), "dropped")
        ground = curve[top + 3, left + round((first + end) / 2 * (right - left) / 185)]
        assert ground[::-1].tolist() == list(ImageColor.getrgb(figures.PALE[split]))
        cut = curve[top + 3:bottom, left + round((first - 1) * (right - left) / 185):][:, :14]
        assert shot == 0 or (cut.max(axis=2) < 60).any(axis=1).sum() > (bottom - top) / 2
    monkeypatch.setattr(figures, "SHEET_PAGES", 1)
    run(film, tmp_path / "e")
    assert len(list((tmp_path / "e" / "figures").glob("*_shots_*.png"))) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Existing files


def test_a_dataset_is_replaced_only_with_overwrite(film, tmp_path):
    run(film, tmp_path / "d")
    before = tree(tmp_path)
    with pytest.raises(UserError, match="already holds a dataset.*--overwrite True"):
        run(film, tmp_path / "d", seed=1)
    assert tree(tmp_path) == before
    (tmp_path / "own" / "val").mkdir(parents=True)
    (tmp_path / "own" / "val" / "photo.JPG").write_bytes(b"mine")
    with pytest.raises(UserError, match="already holds a dataset"):
        run(film, tmp_path / "own")


def test_overwrite_replaces_only_files_of_the_generator(film, tmp_path):
    save = tmp_path / "d"
    run(film, save, frames_per_shot=6)
    mine = [save / "train" / "raw_image_9999.png", save / "notes.txt", save / "figures" / "mine.png",
            save / "train" / "raw_image_film_5000.png", tmp_path / "outside_1.png"]
    picture = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    for path in mine:
        path.write_bytes(picture)
    with open(save / "frames.csv", "a") as file:  # an edited table must not affect files outside of the dataset
        file.write("../outside_1.png,film.mkv,0,0,0,train\nnotes.txt,film.mkv,0,0,0,train\n")
    other = write_clip(tmp_path / "other.mkv", [(RED, 20), (BLUE, 20), (GREEN, 20)])
    run(other, save, overwrite=True)
    assert all(path.read_bytes() == picture for path in mine)
    assert set(pictures(save)) == {row["file"] for row in rows(save)} | {
        "train/raw_image_9999.png", "train/raw_image_film_5000.png"}
    assert {path.name for path in (save / "figures").iterdir()} == {
        "mine.png", "other.mkv_curve.png", "other.mkv_shots_0.png"}
    assert {path.name for path in save.iterdir()} == {"train", "val", "test", "figures", "frames.csv", "notes.txt"}


def test_an_image_of_the_user_is_not_overwritten(film, tmp_path):
    save = tmp_path / "d"
    for split in SPLITS:
        (save / split).mkdir(parents=True)
        (save / split / "raw_image_film_0.png").write_bytes(b"mine")
    before = tree(tmp_path)
    with pytest.raises(UserError, match="raw_image_film_0.png is in the way"):
        run(film, save, overwrite=True)
    assert tree(tmp_path) == before


@pytest.fixture
def films(film, tmp_path):
    """A folder of three films. The second one is unreadable."""
    folder = tmp_path / "films"
    folder.mkdir()
    (folder / "a.mkv").write_bytes(film.read_bytes())
    (folder / "b.mkv").write_text("no film")
    write_clip(folder / "c.mkv", [(RED, 20), (BLUE, 20), (GREEN, 20)])
    return folder


def test_an_interrupted_run_resumes_and_reads_changed_films_again(films, tmp_path, monkeypatch):
    (films / "b.mkv").unlink()
    save = tmp_path / "d"
    with monkeypatch.context() as patch:
        patch.setattr(generator, "make_dataset", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(films, save)
    kept = tmp_path / ".d.parts"
    before = {path.name: path.stat().st_mtime_ns for path in kept.iterdir()}
    write_clip(films / "c.mkv", [(RED, 20), (WHITE, 20)])
    with monkeypatch.context() as patch:
        patch.setattr(generator, "make_dataset", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(films, save)
    after = {path.name: path.stat().st_mtime_ns for path in kept.iterdir()}
    assert len(before) == len(after) == 2 and len(before.items() & after.items()) == 1
    assert [film["shots"] for film in run(films, save)] == [11, 2] and not kept.exists()
    run(films, tmp_path / "one")
    assert tree(save) == tree(tmp_path / "one")


def test_only_one_run_at_a_time_writes_a_dataset(film, tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD_LOCK, str(tmp_path / ".d.lock")],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match="another run is writing .*d; wait for it"):
            run(film, tmp_path / "d")
        other.communicate(b"\n", timeout=60)
    assert run(film, tmp_path / "d")


@pytest.mark.parametrize("stage", ["extract_training_frames", "draw_contact_sheets", "move"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_an_interrupted_run_keeps_the_old_dataset(film, tmp_path, monkeypatch, stage, error):
    save = tmp_path / "d"
    run(film, save)
    before = tree(tmp_path)
    other = write_clip(film.parent / "other.mkv", [(RED, 20), (BLUE, 20), (GREEN, 20)])

    def fail(*_):
        raise error
    if stage == "move":
        replace, calls = os.replace, itertools.count()
        limit = 2 + len(before) + 4  # while new files are moved, after the old ones

        def fail_once(source, target):
            if next(calls) == limit:
                fail()
            replace(source, target)
        monkeypatch.setattr(dataset_files.os, "replace", fail_once)
    else:
        monkeypatch.setattr(generator, stage, fail)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else UserError):
        run(other, save, overwrite=True)
    monkeypatch.undo()
    kept = tree(tmp_path)
    assert {name: content for name, content in kept.items() if not name.startswith(".d.parts")} == before
    assert (kept == before) == (stage == "extract_training_frames")  # otherwise the results are kept for the next run
    run(other, save, overwrite=True)
    assert not list(tmp_path.glob(".*"))
    assert tree(tmp_path) != before


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


@pytest.fixture
def bad(tmp_path, film):
    (tmp_path / "empty").mkdir()
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "one.mkv").write_bytes(film.read_bytes())
    (tmp_path / "text.mp4").write_text("this is no film\n" * 100)
    (tmp_path / "broken").mkdir()
    for name in ("x.mp4", "y.mp4"):
        (tmp_path / "broken" / name).write_text("this is no film\n" * 100)
    (tmp_path / "file").write_text("mine")
    write_clip(tmp_path / "short.mkv", [(RED, 7), (GREEN, 8), (BLUE, 3)])
    header = write_clip(tmp_path / "long.mp4", [(RED, 300)], codec="libx264", pixels="yuv420p").read_bytes()
    (tmp_path / "no_frames.mkv").write_bytes(film.read_bytes()[:700])
    (tmp_path / "no_index.mp4").write_bytes(header[:200])
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "frames.csv").write_text("my,own,table\n1,2,3\n")
    return tmp_path


@pytest.mark.parametrize("arguments,message", [
    (["--video_path", "missing"], r"--video_path .*missing does not exist"),
    (["--video_path", "empty"], r"no video in .*empty; pass a video"),
    (["--video_path", "films", "--video_names", "two"], r"no 'two' in .*films; available are one\.mkv"),
    (["--video_path", "text.mp4"], r"cannot read text\.mp4 as a video"),
    (["--video_path", "no_index.mp4"], r"no_index\.mp4 has no video stream"),
    (["--video_path", "no_frames.mkv"], r"no frame of .*no_frames\.mkv can be decoded"),
    (["--video_path", "broken"], r"none of the 2 videos can be read"),
    (["--video_path", "short.mkv", "--detector", "histogram"],
     r"no shot is long enough: of 3 shots the longest has 8 frames, fewer than "
                                    r"--shots_len_thres 12; lower .* 8 or less, or raise --col_diff_thres \(now 7"),
    (["--video_path", "short.mkv", "--detector", "content"], r"raise --scene_thres \(now 27\)"),
    (["--save_path", "file"], r"file is a file, not a folder"),
    (["--save_path", "file/below"], r"file is a file, not a folder"),
    (["--save_path", "own", "--overwrite", "True"], r"frames\.csv was not written by this program"),
    (["--split", "-0.2", "1.1", "0.1"], r"--split is -0\.2 1\.1 0\.1 but must be three fractions"),
    (["--split", "0", "0", "0"], r"add up to 1"),
    (["--split", "0.7", "0.2", "0.2"], r"add up to 1"),
    (["--split", "nan", "0.5", "0.5"], r"add up to 1"),
    (["--split", "0.7", "0.3"], r"--split"),
    (["--split", "a", "b", "c"], r"--split: invalid float value: 'a'"),
    (["--frames_per_shot", "0"], r"--frames_per_shot is 0; set it to at least 1"),
    (["--shots_len_thres", "0"], r"--shots_len_thres is 0; set it to at least 1"),
    (["--col_diff_thres", "nan"], r"--col_diff_thres is nan; set it to at least 0"),
    (["--detector", "content", "--scene_thres", "0"], r"--scene_thres is 0\.0 but must be above 0"),
    (["--seed", "-1"], r"--seed is -1; set it to at least 0"),
    (["--detector", "other"], r"--detector: invalid choice: 'other'"),
    (["--overwrite", "yes"], r"expected True or False"),
    (["--video_pth", "x"], r"unrecognized arguments"),
])
def test_bad_input_raises_a_one_line_error_and_writes_nothing(bad, monkeypatch, arguments, message):
    monkeypatch.chdir(bad)
    before = tree(bad)
    if "--video_path" not in arguments:
        arguments = ["--video_path", "films", *arguments]
    with pytest.raises(UserError, match=message) as error:
        generator.main(arguments)
    assert "\n" not in str(error.value)
    assert tree(bad) == before and not (bad / "dataset").exists() and not list(bad.rglob(".*"))


def test_the_script_prints_only_the_error(bad):
    done = subprocess.run([sys.executable, str(SCRIPT), "--video_path", "no_frames.mkv"], cwd=bad, capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and len(done.stderr.strip().splitlines()) == 1


def test_an_unreadable_film_is_skipped_with_a_warning(bad, capfd):
    (bad / "films" / "two.mp4").write_bytes((bad / "text.mp4").read_bytes())
    films = run(bad / "films", bad / "d")
    assert [film["video"] for film in films] == ["one.mkv"]
    warnings = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(warnings) == 1 and "two.mp4 as a video: " in warnings[0]
    assert "continuing with the other files" in warnings[0]


@pytest.mark.parametrize("name", ["film.mkv", "film.mp4"])
def test_a_truncated_film_is_used_up_to_its_end(tmp_path, capsys, name):
    options = {} if name == "film.mkv" else {"codec": "libx264", "pixels": "yuv420p"}
    whole = write_clip(tmp_path / name, [(RED, 60), (GREEN, 60), (BLUE, 60)], **options)
    run(whole, tmp_path / "whole", detector="content")
    assert "warning" not in capsys.readouterr().err
    data = whole.read_bytes()
    whole.write_bytes(data[:int(len(data) * 0.75)])
    [summary] = run(whole, tmp_path / "d", detector="content")
    decoded = len(decode(whole))
    assert 60 < decoded < 170
    assert f"film.{name[-3:]} ends early, at frame {decoded} of 180" in capsys.readouterr().err
    assert int(rows(tmp_path / "d")[-1]["frame"]) == decoded - 1


def test_too_few_shots_for_every_split_gives_a_warning(tmp_path, capsys):
    path = write_clip(tmp_path / "film.mkv", [(RED, 20)])
    run(path, tmp_path / "d")
    errors = capsys.readouterr().err
    assert "too few shots (1) for every split: val stays empty" in errors and "test stays empty" in errors
    assert {row["split"] for row in rows(tmp_path / "d")} == {"train"}


def test_the_script_runs_without_flags(tmp_path):
    if not GeneratorConfig().video_path.is_file():
        pytest.skip("the bundled film is not there")
    done = subprocess.run([sys.executable, str(SCRIPT)], cwd=tmp_path, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr
    assert "episode_1.mp4: shots" in done.stdout and "written to dataset" in done.stdout
    assert pictures(tmp_path / "dataset") == sorted(row["file"] for row in rows(tmp_path / "dataset"))
