"""Tests of the scaling benchmark: each part runs and prints its measurements."""

from functools import partial

import pytest
from drawn import draw_shots, times_and_sound

from benchmarks import scaling

from config import PaletteClassifierConfig, SpatialConfig, TrainConfig
from film.io.video import VideoFile


@pytest.fixture
def film(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "run_in_process", lambda function, *arguments: function(*arguments))
    return draw_shots(tmp_path / "film.mp4", [(60, 16), (200, 16)])


def rows(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"][2:]


def test_a_long_film_is_colored_with_sound_and_report(tmp_path):
    film, output = scaling.draw_film(tmp_path / "film.mkv", 5), tmp_path / "film_colored.mkv"
    assert 0.05 < scaling.color_constant(film, output) < 1000
    assert len((tmp_path / "film_colored_shots.jsonl").read_text().splitlines()) == 2  # a shot every four seconds
    assert times_and_sound(output) == times_and_sound(film)
    assert (tmp_path / "film_colored_report.html").exists()


def test_the_growth_of_memory_with_the_length_is_printed(film, monkeypatch, capsys):
    peaks = iter([0.5, 0.6])
    monkeypatch.setattr(scaling, "draw_film", lambda path, seconds: path)
    monkeypatch.setattr(scaling, "color_constant", lambda film, output: next(peaks))
    scaling.main(["film_length", "--minutes", "2"])
    printed = capsys.readouterr().out
    assert [row[:3] for row in rows(printed)] == [["30", "720", "0.500"], ["120", "2880", "0.600"]]
    assert "growth: 100 MB" in printed


def test_frame_sizes_are_measured(film, capsys):
    scaling.main(["frame_size", "--film", str(film), "--seconds", "1", "--rounds", "1", "--lines", "64", "96"])
    table = rows(capsys.readouterr().out)
    assert [row[:2] for row in table] == [["64", "8"], ["96", "8"], ["64", "10"], ["96", "10"]]
    assert all(min(map(float, row[2:])) > 0 for row in table)


def test_a_scaled_film_has_the_requested_size_and_depth(film, tmp_path):
    assert scaling.scale_film(film, tmp_path / "clip.mp4", 144, 10, 1) == 12
    frames = [planes for _, _, planes in VideoFile(tmp_path / "clip.mp4").read()]
    assert len(frames) == 12 and frames[0].y.shape == (144, 192) and frames[0].encoding.depth == 10


@pytest.mark.slow
def test_remembered_frames_are_measured(film, tmp_path, monkeypatch, capsys):
    """The frames of the larger memory are stored in an archive."""
    monkeypatch.setattr(scaling, "PICTURES", 4)
    monkeypatch.setattr(scaling, "TrainConfig", partial(
        TrainConfig, width=4, palette_classifier=PaletteClassifierConfig(input_size=128),
        spatial=SpatialConfig(max_inline_frames=8)))
    path = scaling.write_checkpoint(film, tmp_path / "large", 12)
    assert sum(file.stat().st_size for file in path.parent.iterdir() if file != path) > 12 * 250_000
    loading, one_shot, many_shots, peak = scaling.measure_checkpoint(path, film, 1)
    assert min(loading, one_shot, many_shots, peak) > 0
    scaling.main(["remembered_frames", "--film", str(film), "--frames", "8", "--seconds", "1"])
    assert [row[0] for row in rows(capsys.readouterr().out)] == ["4", "8"]
