"""Tests of benchmarks/real_films.py: excerpts, and summaries of shots."""

import numpy as np
import pytest
import torch
from drawn import draw_shots

from benchmarks import training_time
from benchmarks.real_films import (
    FILMS, RESOURCES, ShotScore, by_distance, copy_until, find_film, mean_report, score_shots, summarize, write_excerpt)
from fileio.images import read_image
from film.io.video import VideoFile


def lumas(path):
    return [planes.y.mean() for _, _, planes in VideoFile(path).read()]


def test_excerpts_hold_the_frames_between_two_times(tmp_path):
    film = draw_shots(tmp_path / "film.mkv", [(60, 12), (120, 12), (200, 12)])  # 12 frames per second
    write_excerpt(film, tmp_path / "part.mp4", 1.0, 2.0)
    assert len(lumas(tmp_path / "part.mp4")) == 12
    assert np.allclose(lumas(tmp_path / "part.mp4"), lumas(film)[12:24], atol=2)
    copy_until(film, tmp_path / "copy.mkv", 2.0)
    assert lumas(tmp_path / "copy.mkv") == lumas(film)[:24]


def test_the_films_of_the_repository_are_found(tmp_path):
    assert find_film(tmp_path, FILMS["popeye_1"].file) == RESOURCES / "popeye_1.mkv"
    assert all((RESOURCES / f"popeye_{number}.mkv").is_file() for number in (1, 2, 3))


def test_shots_are_measured_without_their_references(tmp_path):
    film = draw_shots(tmp_path / "film.mkv", [(60, 12), (120, 12)])
    scores = score_shots(film, film, [(0, 12), (12, 24)], [[6], [18]], np.linspace(0, 1, 24), 3, None)
    assert [score.frames for score in scores] == [3, 3], "frames 6 and 18 are references"
    assert [distance for distance, _ in scores[0].distances] == [6, 3, 3]
    assert scores[0].error == 0 and scores[1].claimed == pytest.approx((12 + 15 + 21) / 3 / 23)


def test_summaries_weight_shots_by_frames_and_compare_each_with_its_grayscale():
    shots = [ShotScore(3, 10.0, 4.0, 0.2, 0.9, [(0, 2.0), (5, 4.0), (30, 6.0)]),
             ShotScore(1, 8.0, 9.0, 0.6, 0.5, [(100, 9.0)])]
    summary = summarize(shots)
    assert summary["ours"] == pytest.approx(5.25) and summary["gray"] == pytest.approx(9.5)
    assert summary["right"] == pytest.approx(0.7) and summary["claimed"] == pytest.approx(0.8)
    assert summary["calibration"] == pytest.approx(0.75 * 0.1 + 0.25 * 0.1) and summary["worst_shot"] == 1
    assert by_distance(shots) == [2.0, 4.0, None, 6.0, None, 9.0]
    mean = mean_report([{**summary, "distances": [1.0, None]}, {**summary, "ours": 3.25, "distances": [3.0, None]}])
    assert mean["ours"] == pytest.approx(4.25) and mean["distances"] == [2.0, None]


def test_training_time_lists_the_error_of_each_length(tmp_path, monkeypatch, capsys):
    def checkpoint(film, data, folder, minutes, seed):
        torch.save({"elapsed_seconds": 60 * min(minutes, 3), "step": int(100 * minutes)}, tmp_path / "last.pt")
        return tmp_path / "best.pt"

    monkeypatch.setattr(training_time, "trained_checkpoint", checkpoint)
    monkeypatch.setattr(training_time, "load_checkpoint", torch.load)
    monkeypatch.setattr(training_time, "measure_film", lambda name, protocol, args, seed, lpips: {
        "ours": 9 - args.minutes, "share_above_10": 0.25})
    training_time.main(["--films", "drawn", "bunny_1", "--minutes", "1", "6", "--data", str(tmp_path),
                        "--figure", str(tmp_path / "curve.png")])
    printed = capsys.readouterr()
    assert printed.out.splitlines()[2:] == ["| drawn | 1 | 1.0 | 100 | 8.00 | 25.0% |",
                                            "| drawn | 6 | 3.0 | 600 | 3.00 | 25.0% |"]
    assert "bunny_1 is left out" in printed.err and read_image(tmp_path / "curve.png").ndim == 3
