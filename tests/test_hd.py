"""The benchmark of large films runs, and measures what it says."""

import json

import pytest
from drawn import draw_shots

import test

from benchmarks import hd
from benchmarks.long_film import OneColor

from film.io.video import VideoFile
from film.render import rendering as episode


def test_the_whole_benchmark(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hd, "in_a_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(test, "load_predictor", lambda config: OneColor())
    scan, film = episode.analyze_film, draw_shots(tmp_path / "film.mp4", [(60, 16), (200, 16)])
    hd.main(["any.pt", "--film", str(film), "--seconds", "1", "--rounds", "2", "--lines", "64", "96", "--depths", "8",
             "10", "--output", str(tmp_path / "hd.json")])
    rows, printed = json.loads((tmp_path / "hd.json").read_text())["rows"], capsys.readouterr().out
    assert [(row["lines"], row["depth"], row["frames"]) for row in rows] == [
        (64, 8, 12), (96, 8, 12), (64, 10, 12), (96, 10, 12)]
    for row in rows:
        assert row["all"] > max(row["scan"], row["color"], row["join"]) > 0 and row["report"] > 0
        ratios = [one["all"] / stages["all"] for one, stages in row["rounds"]]
        assert row["beside alone"] == pytest.approx(sum(ratios) / 2) and 0 < row["of cores"] < 1
        assert f"| {row['lines']} | {row['depth']} |" in printed
    assert episode.analyze_film is scan  # the clocks are gone


def test_a_clip_has_the_size_and_depth_that_is_asked_for(tmp_path):
    film = draw_shots(tmp_path / "film.mp4", [(60, 16)])
    assert hd.scale(film, tmp_path / "clip.mp4", 144, 10, 1) == 12
    frames = [planes for _, _, planes in VideoFile(tmp_path / "clip.mp4").read()]
    assert len(frames) == 12 and frames[0].y.shape == (144, 192) and frames[0].coding.depth == 10
