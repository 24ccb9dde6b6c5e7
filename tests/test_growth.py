"""The benchmark of how cost grows runs, and measures what it says."""

import json
from functools import partial

import pytest
from drawn import draw_shots

from benchmarks import growth, speed

from config import GeneratorConfig, PaletteClassifierConfig, TrainConfig
from dataset_generator import generate


def test_the_whole_benchmark(tmp_path, monkeypatch, capsys):
    small = partial(TrainConfig, width=4, palette_classifier=PaletteClassifierConfig(input_size=128))
    for module, name, value in ((speed, "WIDTH", 4), (speed, "BATCH", 2), (speed, "PICTURES", 4),
                                (speed, "SIZES", (128,)), (growth, "LOOPS", (1, 2)), (growth, "SET_SIZES", (4, 8)),
                                (growth, "SLOTS", (10, 200)), (growth, "READS", 1), (growth, "CLIP_SECONDS", (1,)),
                                (growth, "HEIGHTS", (32, 64)), (growth, "TrainConfig", small)):
        monkeypatch.setattr(module, name, value)
    film = draw_shots(tmp_path / "film.mp4", [(60, 16), (200, 16)])
    growth.main(["--film", str(film), "--quick", "--output", str(tmp_path / "growth.json")])
    report = json.loads((tmp_path / "growth.json").read_text())
    printed = capsys.readouterr().out
    sizes = {}
    for row in report["rows"]:
        sizes.setdefault(row["figure"], []).append(row["size"])
        assert row["figure"] in printed and (row["seconds"] is None or row["seconds"] > 0)
    frames = growth.count_frames(film)
    assert list(sizes.values())[:4] == [[frames, 2 * frames], [4, 8], [10, 200], [10, 200]]
    assert list(sizes.values())[-2:] == [[1], [32, 64]]
    few, many = (row["bytes"] for row in report["rows"] if row["figure"] == "memory, a shot")
    assert many - few > 190 * 4 * (512 + 313)  # keys and color features
    assert 250_000 < next(row for row in report["rows"] if "kept of a frame" in row["figure"])["bytes"] < 270_000


def test_a_joined_film_is_as_long_and_has_the_shots(tmp_path):
    film = draw_shots(tmp_path / "film.mp4", [(60, 16), (200, 16)])
    joined = growth.join_to_itself(film, tmp_path / "joined.mp4", 3)
    assert growth.count_frames(joined) == 3 * growth.count_frames(film)
    [summary], _ = generate(GeneratorConfig(video_path=joined, save_path=tmp_path / "data", detector="content"))
    assert summary["shots"] == 6


@pytest.mark.parametrize("value, unit, text", [(0.5, "s", "500 ms"), (90, "s", "90 s"), (141_000, "B", "141 kB"),
                                               (14.1e9, "B", "14.1 GB"), (None, "s", "")])
def test_numbers(value, unit, text):
    assert growth.number(value, unit) == text
