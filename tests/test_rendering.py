"""Rendering of films: shots, palettes, held frames, interrupted runs, threads."""

import json
import math
import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn import HOLD_LOCK, StubPredictor, draw_film, draw_shots, planes_in, times_and_sound

from resources.draw_episodes import draw_frame

from config import FilmConfig
from dataset import resize
from film.analysis.shot_detection import ChangeDetector, find_gray_cuts, judge_frames
from film.io import video
from film.io.encoding import write_video
from film.io.planes import planes_from_frame
from film.io.thread_pool import prefetch
from film.io.video import VideoFile
from film.render import pipeline, rendering
from film.render.rendering import color_film
from film.render.segments import is_complete
from film.report.consistency import CDC
from film.report.evaluation import score_frame, scoring_step
from utils import UserError

LOSSLESS = {"crf": "0"}  # of libx264
SHOTS = [(60, 20), (200, 15), (110, 22)]


def color(source, output, predictor=None, **settings):
    return color_film(predictor or StubPredictor(), VideoFile(source), output, FilmConfig(**settings))


def same(one, other):
    return len(one) == len(other) and all(
        np.array_equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# Shots


def still(*levels):
    """Return lumas of one pattern at different brightness."""
    pattern = np.random.default_rng(1).integers(0, 30, (256, 256)).astype(np.uint8)
    return [(np.clip(level + pattern.astype(int) - 15, 0, 255) if level else 0 * pattern).astype(np.uint8)
            for level in levels]


FADE_OUT, FADE_IN = list(range(120, 0, -6)), list(range(0, 180, 6))


@pytest.mark.parametrize("levels, cuts", [
    ([90] * 12 + [160] * 12, [12]),
    ([90] * 12 + [160] * 9 + [40] * 12, [12, 21]),
    ([90] * 12 + [250] + [90] * 12, []),  # a flash of one frame
    ([90] * 12 + [250] * 3 + [90] * 12, []),
    ([90] * 12 + [250, 210, 170, 130] + [90] * 12, []),  # a flash that decays
    ([90] * 12 + [250, 90, 250, 90, 250] + [90] * 12, []),
    ([90] * 12 + [0, 0] + [90] * 12, []),  # one or two black frames
    ([90] * 12 + [160] * 20 + [90] * 12, [12, 32]),  # too long to be a flash
    (FADE_OUT + [0] * 12 + FADE_IN + [180] * 12, [len(FADE_OUT) + 12 + 1]),  # one cut, in the fade-in
    (list(range(60, 160)), []),  # slow brightening
    ([round(90 + 14 * math.sin(1.9 * i)) for i in range(12)] + [160] * 3 + [170, 150] * 6, [12]),  # flicker
    ([90] * 20 + [160] * 2, [20]),  # in the last frames of the film
    ([90], []), ([90, 200], [1]), ([], []),
])
def test_cuts_are_found_in_grayscale_films(levels, cuts):
    assert [cut for cuts in find_gray_cuts(iter(still(*levels))) for cut in cuts] == cuts


@pytest.mark.parametrize("changes, cut", [
    ([20, 24, 29, 38, 0.4, 0.4, 0.3], 4),  # fast motion, then a calm shot
    ([0.3, 0.4, 0.4, 38, 29, 24, 20], 4),  # a calm shot, then fast motion
    ([30, 31, 32, 33, 0.4, 0.4, 0.3], None),  # a fast pan that stops
    ([20, 24, 29, 38, 5, 5, 5], None),
])
def test_cuts_next_to_fast_motion_are_found(changes, cut):
    frames = [np.full((2, 2), number, np.uint8) for number in range(len(changes) + 1)]

    def cuts(one_sided):
        detector = ChangeDetector("adaptive", difference=lambda new, _: [0, *changes][new[0, 0]], one_sided=one_sided)
        return [number for number, (_, _, is_cut) in enumerate(judge_frames(iter(frames), detector)) if is_cut]

    assert cuts(True) == ([] if cut is None else [cut]) and cuts(False) == []


def test_each_shot_has_a_palette_a_record_and_a_log_line(tmp_path):
    source = draw_shots(tmp_path / "in.mkv", SHOTS)
    predictor = StubPredictor()
    records = color(source, tmp_path / "out.mkv", predictor, batch_size=4)
    assert [(r.start_frame, r.end_frame) for r in records] == [(0, 20), (20, 35), (35, 57)]
    assert predictor.shots == 3 and sorted(predictor.batches) == [15, 20, 22]  # each shot fits into a window
    assert [round(r.start_time * 12) for r in records] == [0, 20, 35] and round(records[-1].end_time * 12) == 57
    for number, (record, (gray, _)) in enumerate(zip(records, SHOTS, strict=True)):
        assert (record.index, record.slot_ids, record.slot_scores) == (number, [number + 1, 7], [0.9, 0.5])
        assert record.confidence == 0.25 and record.ground_truth is None and not record.left_unchanged
        assert record.gray.shape == record.result.shape == (240, 320, 3) and record.gray.dtype == np.uint8
        assert abs(record.gray.mean() - gray) < 4 and np.ptp(record.gray, 2).max() < 12  # JPEG's noise
        assert record.embedding.dtype == np.float32 and record.embedding.shape == (3,)
    lines = [json.loads(line) for line in (tmp_path / "out_shots.jsonl").read_text().splitlines()]
    assert [line["slot_ids"] for line in lines] == [[1, 7], [2, 7], [3, 7]]
    assert sorted(os.listdir(tmp_path)) == ["in.mkv", "out.mkv", "out_shots.jsonl"]


def test_no_state_crosses_a_cut(tmp_path):
    """A shot gets the same colors when it is colored alone: with hard cuts, a flash and a fade through black."""
    def flash(i):
        return 245 if i == 9 else 100

    def fade(i):
        return max(0, 230 - 12 * i)

    def rise(i):
        return min(190, 8 * i)

    shots = [(60, 16), (flash, 20), (fade, 24), (rise, 40), (200, 14)]
    whole = draw_shots(tmp_path / "whole.mkv", shots, options=LOSSLESS)
    records = color(whole, tmp_path / "whole_out.mkv", crf=0, batch_size=5)
    # The black end of the fade-out belongs to it, and so do the black frames of the fade-in.
    assert [r.start_frame for r in records] == [0, 16, 36, 61, 100]
    source, result = planes_in(whole), planes_in(tmp_path / "whole_out.mkv")
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(source, result, strict=True))  # luma is unchanged
    for record in records:
        part = tmp_path / f"{record.index}.mkv"
        settings = {"start": record.start_time, "end": record.end_time}
        color(whole, part, crf=0, batch_size=5, **settings)
        assert same(planes_in(part), result[record.start_frame:record.end_frame])


def test_held_frames_get_the_color_of_their_keyframe(tmp_path):
    source = draw_shots(tmp_path / "in.mp4", [(90, 40)], hold=2, options=LOSSLESS, noise=2)
    predictor = StubPredictor()
    color(source, tmp_path / "out.mp4", predictor, crf=0)
    frames, sources = planes_in(tmp_path / "out.mp4"), planes_in(source)
    assert predictor.frames == 20  # half of them
    assert all(not np.array_equal(sources[i][0], sources[i + 1][0]) for i in range(39))  # each frame has its own noise
    for i in range(0, 40, 2):  # noise of the luma affects Cb and Cr by rounding and the gamut
        assert all(np.abs(frames[i][c].astype(int) - frames[i + 1][c]).mean() < 0.5 for c in (1, 2))


def test_a_slow_change_is_not_a_held_frame(tmp_path):
    source = draw_shots(tmp_path / "in.mkv", [(lambda i: 60 + i, 60)], hold=100, options=LOSSLESS)
    predictor = StubPredictor()
    color(source, tmp_path / "out.mkv", predictor)
    assert 12 <= predictor.frames <= 20  # a new color every 4 steps of lightness


def cdc(path, record):
    """Return the CDC of a shot in a 64 x 48 film."""
    import av
    measure = CDC()
    with av.open(str(path)) as film:
        for index, frame in enumerate(film.decode(video=0)):
            if record.start_frame <= index < record.end_frame:
                measure.add(planes_from_frame(frame).subsample(240, 320).rgb_uint8())
    return measure.value()


def decoded(path):
    return [planes for _, _, planes in VideoFile(path).read()]


def test_shots_in_color_can_be_kept(tmp_path):
    import av
    source = tmp_path / "in.mkv"
    with av.open(str(source), "w") as film:
        stream = film.add_stream("libx264", rate=10, options=LOSSLESS)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(30):
            picture = np.full((48, 64, 3), 40, np.uint8) if i < 15 else cv2.resize(draw_frame(1, i), (64, 48))
            film.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        film.mux(stream.encode(None))
    records = color(source, tmp_path / "out.mkv", crf=0, keep_color_shots=True)
    assert [record.left_unchanged for record in records] == [False, True]
    assert records[0].ground_truth is None and records[1].ground_truth is not None
    before, after = planes_in(source), planes_in(tmp_path / "out.mkv")
    assert same(before[15:], after[15:]) and not np.array_equal(before[3][1], after[3][1])
    records = color(source, tmp_path / "all.mkv", crf=0)
    assert not any(record.left_unchanged for record in records)
    for record in records:
        assert record.cdc == pytest.approx(cdc(tmp_path / "all.mkv", record))
    assert math.isnan(records[0].cdc_ground_truth) and records[1].cdc_ground_truth > 0
    assert records[1].cdc_ground_truth == pytest.approx(cdc(source, records[1]))
    assert json.loads((tmp_path / "all_shots.jsonl").open().readline())["cdc"] is not None
    assert not np.array_equal(before[20][1], planes_in(tmp_path / "all.mkv")[20][1])


def test_one_frame_a_second_is_scored_as_it_is_in_the_output(tmp_path):
    """With a lossless codec, the scores of the planes before encoding are those of the file."""
    source = tmp_path / "in.mkv"
    frames = ((100 * i, resize(draw_frame(1, i), 48, 64)) for i in range(35))
    write_video(source, VideoFile(draw_film(tmp_path / "rate.mkv")), frames)
    records = color(source, tmp_path / "out.mkv", crf=0)
    step = scoring_step(35, 35 / 10)
    truths, results = decoded(source), decoded(tmp_path / "out.mkv")
    assert step == 10 and len(truths) == 35
    expected = [score_frame(truths[i], results[i]) for i in (5, 15, 25)]
    assert [scores for record in records for scores in record.scores] == expected
    assert expected[0]["result"]["ciede2000"] > 1 and expected[0]["gray"] != expected[1]["gray"]
    assert not any(record.scores for record in color(source, tmp_path / "chroma.mkv", color_only=True))


@pytest.mark.parametrize("frames, seconds, step", [
    (24 * 60, 60, 24), (15, 3, 5), (24 * 1320, 1320, 159), (7, 7, 1), (1, 0.04, 1), (10, 0.4, 10), (3, 30, 1)])
def test_at_most_one_frame_a_second_and_200_frames_of_a_film_are_scored(frames, seconds, step):
    assert scoring_step(frames, seconds) == step
    assert len(range(step // 2, frames, step)) <= 200


def test_color_only_gives_the_chroma_of_the_result_on_middle_gray(tmp_path):
    source = draw_shots(tmp_path / "in.mkv", SHOTS)
    color(source, tmp_path / "out.mkv", crf=0)
    records = color(source, tmp_path / "chroma.mkv", crf=0, color_only=True)
    assert all(math.isnan(record.cdc) for record in records)  # without luma, no comparison with the ground truth
    for result, chroma in zip(planes_in(tmp_path / "out.mkv"), planes_in(tmp_path / "chroma.mkv"), strict=True):
        assert np.array_equal(result[1], chroma[1]) and np.array_equal(result[2], chroma[2])
        assert (chroma[0] == 118).all()  # 16 + 219 * 0.4663, the gray with L = 50


# ---------------------------------------------------------------------------------------------------------------------
# Interrupted runs


class Stop(Exception):
    pass


def stop():
    raise Stop


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_an_interrupted_run_continues(tmp_path, suffix):
    source = draw_shots(tmp_path / "in.mkv", SHOTS)
    whole, output = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    expected = color(source, whole, batch_size=4)
    with pytest.raises(Stop):
        color(source, output, StubPredictor(24, stop), batch_size=4)
    assert not output.exists() and (tmp_path / f".out{suffix}.segments").is_dir()
    predictor = StubPredictor()
    predictor.shots = 100  # palettes are not queried again
    records = color(source, output, predictor, batch_size=4)
    assert predictor.shots == 100 and predictor.frames == 15 + 22  # the first shot was finished
    assert same(planes_in(output), planes_in(whole)) and times_and_sound(output) == times_and_sound(whole)
    assert [r.log_line() | {"seconds": 0} for r in records] == [r.log_line() | {"seconds": 0} for r in expected]
    assert all(np.array_equal(a.result, b.result) for a, b in zip(records, expected, strict=True))
    assert not (tmp_path / f".out{suffix}.segments").exists()
    assert len((tmp_path / "out_shots.jsonl").read_text().splitlines()) == 3


def test_a_run_continues_after_its_process_was_killed(tmp_path):
    source = draw_shots(tmp_path / "in.mkv", SHOTS)
    color(source, tmp_path / "whole.mp4", batch_size=4)
    code = """
import os, signal, sys
from drawn import StubPredictor
from test_rendering import color
color(*sys.argv[1:], StubPredictor(50, lambda: os.kill(os.getpid(), signal.SIGKILL)), batch_size=4)
"""
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code, str(source), str(tmp_path / "out.mp4")],
                          env={**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}, capture_output=True,
                          timeout=120)
    assert done.returncode == -signal.SIGKILL and not (tmp_path / "out.mp4").exists()
    predictor = StubPredictor()
    color(source, tmp_path / "out.mp4", predictor, batch_size=4)
    assert 0 < predictor.frames < 57
    assert same(planes_in(tmp_path / "out.mp4"), planes_in(tmp_path / "whole.mp4"))


@pytest.mark.parametrize("change", ["predictor", "settings", "input", "part", "plan"])
def test_stale_and_damaged_segments_are_not_used(tmp_path, change):
    source, output = draw_shots(tmp_path / "in.mkv", SHOTS), tmp_path / "out.mkv"
    with pytest.raises(Stop):
        color(source, output, StubPredictor(36, stop), batch_size=4)
    parts = tmp_path / ".out.mkv.segments"
    assert (parts / "000000.segment").exists()
    predictor, settings, frames = StubPredictor(), {"batch_size": 4}, 57
    if change == "predictor":
        predictor.identity = "another"
    elif change == "settings":
        settings["crf"] = 30
    elif change == "input":
        draw_shots(source, [(60, 20), (200, 15), (120, 22)])
    elif change == "part":
        (parts / "000000.segment").write_bytes((parts / "000000.segment").read_bytes()[:1500])
        frames = 42  # the second shot is whole
    else:
        (parts / "plan.pt").write_bytes(b"damaged")
    color(source, output, predictor, **settings)
    assert predictor.frames == frames and len(planes_in(output)) == 57


def test_missing_accompanying_files_are_written_by_the_next_run(tmp_path):
    """A run that was interrupted after joining continues; another predictor is another film."""
    source, output, explained = draw_shots(tmp_path / "in.mkv", SHOTS), tmp_path / "out.mp4", []
    with pytest.raises(Stop):
        color_film(StubPredictor(), VideoFile(source), output, FilmConfig(), on_complete=lambda _: stop())
    assert output.exists() and not is_complete(VideoFile(source), output)
    assert not list((tmp_path / ".out.mp4.segments").glob("*.segment"))
    before, predictor, other = output.stat().st_mtime_ns, StubPredictor(), StubPredictor()
    other.identity = "another"
    with pytest.raises(UserError, match="out.mp4 exists already"):
        color_film(other, VideoFile(source), output, FilmConfig(), on_complete=explained.append)
    records = color_film(predictor, VideoFile(source), output, FilmConfig(), on_complete=explained.append)
    assert explained == [records] and len(records) == 3 and predictor.frames == predictor.shots == 0
    assert output.stat().st_mtime_ns == before
    assert sorted(os.listdir(tmp_path)) == ["in.mkv", "out.mp4", "out_shots.jsonl"]
    with pytest.raises(UserError, match="out.mp4 exists already"):
        color(source, output)
    color_film(other, VideoFile(source), output, FilmConfig(), overwrite=True)
    assert other.frames == 57


def test_a_foreign_file_at_the_output_path_is_kept(tmp_path):
    """Our own output is replaced, also if a record is damaged, so that its shot has to be colored again."""
    source, output = draw_shots(tmp_path / "in.mkv", SHOTS), tmp_path / "out.mp4"
    with pytest.raises(Stop):
        color_film(StubPredictor(), VideoFile(source), output, FilmConfig(), on_complete=lambda _: stop())
    (tmp_path / ".out.mp4.segments" / "000001.pt").write_bytes(b"damaged")
    predictor = StubPredictor()
    color_film(predictor, VideoFile(source), tmp_path / "out.mp4", FilmConfig())
    assert predictor.frames == 15 and len(planes_in(output)) == 57
    with pytest.raises(Stop):
        color_film(StubPredictor(), VideoFile(source), output, FilmConfig(), overwrite=True,
                   on_complete=lambda _: stop())
    output.unlink()
    output.write_bytes(b"foreign")
    with pytest.raises(UserError, match="out.mp4 exists already"):
        color(source, output)
    assert output.read_bytes() == b"foreign"


def test_a_second_run_into_the_same_output_is_refused(tmp_path):
    source = draw_film(tmp_path / "in.mp4", times=range(3))
    with subprocess.Popen([sys.executable, "-c", HOLD_LOCK, tmp_path / ".out.mp4.lock"], stdin=subprocess.PIPE,
                          text=True, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == "\n"
        with pytest.raises(UserError, match="another run is writing .*out.mp4; wait for it"):
            color(source, tmp_path / "out.mp4")
        assert not (tmp_path / "out.mp4").exists()
        other.kill()
    color(source, tmp_path / "out.mp4")  # the lock ends with its process
    assert sorted(os.listdir(tmp_path)) == ["in.mp4", "out.mp4", "out_shots.jsonl"]


def test_the_number_of_frames_in_memory_is_bounded(tmp_path, monkeypatch):
    """The bound does not depend on the length of the film and is lower for large frames; the result is the same."""
    class Watched(VideoFile):
        alive, peak = [], 0

        def read(self, *args):
            for pts, duration, planes in super().read(*args):
                self.alive.append(weakref.ref(planes.y))
                self.alive[:] = [frame for frame in self.alive if frame() is not None]
                self.peak = max(self.peak, len(self.alive))
                yield pts, duration, planes

    source, returned = draw_shots(tmp_path / "in.mkv", [(60, 60), (200, 70)]), []
    monkeypatch.setattr(video, "return_freed_memory", lambda: returned.append(True))
    bounds = ("small", rendering.LARGE_FRAME_PIXELS, 2 * pipeline.WINDOW + 12), ("large", 1, 12 + 5 * 4)
    for name, large, bound in bounds:
        film = Watched(source)
        for module in (rendering, video):
            monkeypatch.setattr(module, "LARGE_FRAME_PIXELS", large)
        color_film(StubPredictor(), film, tmp_path / f"{name}.mkv", FilmConfig(batch_size=4))
        assert 4 <= film.peak <= bound and bool(returned) == (name == "large")
    assert (tmp_path / "small.mkv").read_bytes() == (tmp_path / "large.mkv").read_bytes()


# ---------------------------------------------------------------------------------------------------------------------
# Threads


def test_ahead_passes_items_errors_and_the_end():
    assert list(prefetch((i for i in range(100)), 3)) == list(range(100))

    def breaks():
        yield 1
        raise UserError("broken")

    items = prefetch(breaks(), 3)
    assert next(items) == 1
    with pytest.raises(UserError, match="broken"):
        next(items)


def test_closing_ahead_closes_what_it_reads():
    closed = []

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.append(True)

    items = prefetch(prefetch(endless(), 2), 2)
    assert next(items) == 0
    items.close()
    assert closed == [True]


def test_an_error_of_a_thread_ends_the_run(tmp_path, monkeypatch):
    source = draw_film(tmp_path / "in.mp4")

    def broken(*_):
        raise UserError("the reader is broken")

    monkeypatch.setattr(pipeline, "frames_at", broken)
    with pytest.raises(UserError, match="the reader is broken"):
        color(source, tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists()
