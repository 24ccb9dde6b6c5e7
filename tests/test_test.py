"""test.py end to end: all kinds of training and coloring, pictures, folders, films and bad input."""

import json
import math
import re
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from drawn import draw_dataset, draw_film, draw_picture, draw_shots, planes_in, times_and_sound
from skimage.color import rgb2lab
from test_train import MODES, flags

import train

from resources.draw_episodes import PALETTE, TWINS, draw_frame

from colorizer.colorizer import Colorizer
from colorizer.palette_classifier import CELL_SIZE
from colorizer.predictor import Predictor
from config import ColorConfig, ModelConfig, SpatialConfig, TrainConfig, restore
from dataset import REFERENCE_ID, color_feature, resize, rgb_to_lab
from fileio.checkpoints import load_checkpoint, save_checkpoint
from fileio.images import read_image, write_image
from film.analysis.cut_lists import read_cut_list
from film.render.worker_group import WorkerGroup
from film.report.evaluation import Evaluation
from film.report.records import ShotRecord
from test import color_inputs, find_inputs, main
from utils import UserError, run_cli


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a drawn dataset and, for each kind of training, <way>/best.pt of a small network."""
    home = draw_dataset(tmp_path_factory.mktemp("home"))
    for way, settings in MODES.items():
        train.main(flags(data_path=home, save_path=home / way, width=4, batch_size=6, epoch_steps=4, end_epoch=1,
                         **settings))
    return home


def color(home, way, output, source=None, **settings):
    """Run test.py with a checkpoint; return its metrics."""
    source = source or home / "test"
    main(flags(checkpoint=home / way / "best.pt", input=source, output=output, **settings))
    folder = output if output.is_dir() else output.parent
    return json.loads(next(folder.glob("*metrics.json")).read_text())


@pytest.mark.parametrize("way, settings, source", [
    ("gan", {}, "none"), ("memory", {}, "memory"), ("memory", {"rank": 2}, "memory"), ("memory", {"rank": 3}, "memory"),
    ("memory", {"color_feature": "ground_truth"}, "ground_truth"), ("integrator", {}, "integrator"),
    ("integrator", {"color_feature": "memory"}, "memory"),
    ("integrator", {"color_feature": "ground_truth"}, "ground_truth"),
    ("spatial", {}, "memory"), ("spatial", {"color_feature": "ground_truth"}, "ground_truth"),
])
def test_every_color_feature_colors_a_folder(home, tmp_path, capsys, way, settings, source):
    metrics = color(home, way, tmp_path, **settings)
    names = sorted(path.name for path in (home / "test").iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "metrics.json", "comparison.png"])
    assert metrics["color_feature"] == source and metrics["pictures"] == metrics["measured_pictures"] == 2
    assert metrics["gray"]["colorfulness"] < 1 and metrics["result"]["ciede2000"] > 0
    assert metrics["gray"]["colorfulness_ground_truth"] == metrics["result"]["colorfulness_ground_truth"] > 10
    printed = capsys.readouterr().out
    assert "CIEDE2000" in printed and f"{metrics['result']['ciede2000']:.3f}" in printed
    for name in names:
        truth, result = read_image(home / "test" / name), read_image(tmp_path / name)
        assert result.shape == truth.shape
    assert read_image(tmp_path / "comparison.png").shape == (2 * (213 + 4) - 4, 3 * (320 + 4) - 4, 3)


def test_color_features_differ_between_the_sources(home, tmp_path, monkeypatch):
    seen = []
    forward = Colorizer.forward
    monkeypatch.setattr(Colorizer, "forward",
                        lambda self, L, v, *rest: (seen.append(v and v[0]), forward(self, L, v, *rest))[1])
    picture = next((home / "test").iterdir())
    other = home / "train" / "raw_image_drawn_1.png"
    for name, way, settings in (("best", "memory", {}), ("second", "memory", {"rank": 2}), ("gan", "gan", {}),
                                ("ground_truth", "memory", {"color_feature": "ground_truth"}),
                                ("itself", "memory", {"reference": picture}),
                                ("other", "memory", {"reference": other})):
        color(home, way, tmp_path / name / "out.png", picture, **settings)
    best, second, gan, truth, itself, reference = seen
    features = [best, second, truth, reference]
    assert gan is None
    assert all(not torch.equal(a, b) for i, a in enumerate(features) for b in features[i + 1:])
    assert all(v.sum().item() == pytest.approx(1, abs=1e-4) for v in features)
    small = resize(rgb_to_lab(read_image(other)), 128, 128)
    assert torch.allclose(reference[0], torch.from_numpy(color_feature(small[..., 1:])))
    results = {name: read_image(tmp_path / name / "out.png") for name in ("ground_truth", "itself", "other")}
    assert torch.equal(truth, itself) and np.array_equal(results["ground_truth"], results["itself"])
    assert not np.array_equal(results["ground_truth"], results["other"])


def test_only_the_lightness_of_the_input_is_used(home, tmp_path):
    """A color picture and its grayscale version get the same colors."""
    picture = draw_picture(8)
    lab = rgb2lab(picture)
    lab[..., 1:] = 0
    from skimage.color import lab2rgb
    gray = np.rint(lab2rgb(lab) * 255).astype(np.uint8)
    write_image(tmp_path / "color.png", picture)
    write_image(tmp_path / "gray.png", gray)
    results = []
    for name in ("color", "gray"):
        color(home, "memory", tmp_path / name / "out.png", tmp_path / f"{name}.png", precision="fp32")
        results.append(read_image(tmp_path / name / "out.png").astype(int))
    assert np.abs(results[0] - results[1]).mean() < 2


@pytest.mark.parametrize("way", MODES)
def test_grayscale_input_keeps_its_lightness_at_full_resolution(home, tmp_path, way):
    coarse = np.random.default_rng(0).random((6, 8)).astype(np.float32) * 255
    for width, height in ((300, 200), (131, 77), (40, 500), (16, 16)):
        gray = np.repeat(resize(coarse, height, width)[..., None], 3, 2)
        write_image(tmp_path / "in" / f"{width}.png", gray.astype(np.uint8))
    (tmp_path / "out").mkdir()
    metrics = color(home, way, tmp_path / "out", tmp_path / "in")
    assert "result" not in metrics  # no ground truth
    assert not (tmp_path / "out" / "comparison.png").exists()
    for path in (tmp_path / "in").iterdir():
        gray, result = read_image(path), read_image(tmp_path / "out" / path.name)
        assert result.shape == gray.shape
        lightness = [rgb2lab(picture)[..., 0] for picture in (result, gray)]
        assert np.abs(lightness[0] - lightness[1]).mean() <= 1


def test_a_film_keeps_its_frames_timestamps_size_and_sound(home, tmp_path):
    source = draw_film(tmp_path / "film.mp4", (66, 50), (0, 1, 2, 5, 6, 7, 8, 12, 13, 14, 15))
    metrics = color(home, "spatial", tmp_path / "out", source, batch_size=4)
    assert metrics["pictures"] == 11 and "result" not in metrics
    assert times_and_sound(tmp_path / "out" / "film.mp4") == times_and_sound(source)


def test_a_film_in_color_is_evaluated(home, tmp_path):
    path = tmp_path / "film.mkv"
    with av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(15):
            picture = resize(draw_frame(1, i), 64, 96)
            film.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        film.mux(stream.encode(None))
    metrics = color(home, "integrator", tmp_path / "new.mkv", path)
    assert metrics["pictures"] == 15 and metrics["measured_pictures"] == 3  # one per second
    assert (tmp_path / "new_comparison.png").exists() and metrics["result"]["ssim"] > 0.5
    page = (tmp_path / "new_report.html").read_text(encoding="utf-8")
    assert f"{metrics['result']['ciede2000']:.3f}" in page and "CDC" in page


def test_a_film_gets_a_report_suggested_frames_and_a_memory_video(home, tmp_path, monkeypatch):
    """Suggested frames that were colored by hand are not overwritten."""
    monkeypatch.chdir(tmp_path)
    source, name = draw_shots(tmp_path / "film.mkv", [(60, 9), (200, 6)]), "new: %d"
    settings = {"overwrite": True, "start": 0.25}
    color(home, "spatial", Path(f"{name}.mkv"), source, memory_video=True, **settings)
    page, folder = (tmp_path / f"{name}_report.html").read_text(encoding="utf-8"), tmp_path / f"{name}_color_these"
    assert "raw_image_drawn_" in page and "film.mkv" in page and folder.name in page
    assert times_and_sound(tmp_path / f"{name}_memory.mp4")[0] == times_and_sound(source)[0][:12]
    suggested = sorted(folder.iterdir())
    lumas = [planes[0] for planes in planes_in(source)[3:]]
    for path in suggested:
        assert path.name in page
        luma = lumas[int(path.stem.rpartition("_")[2])]
        assert np.abs(read_image(path) - (luma[..., None] - 16.0) * 255 / 219).max() <= 1
    write_image(suggested[0], draw_picture(0))
    color(home, "spatial", Path(f"{name}.mkv"), source, **settings)
    assert np.array_equal(read_image(suggested[0]), draw_picture(0))
    color(home, "spatial", tmp_path / "none.mkv", source, suggest=0)
    assert not (tmp_path / "none_color_these").exists() and not (tmp_path / "none_memory.mp4").exists()


def test_written_cut_lists_give_the_same_film(home, tmp_path):
    source = draw_shots(tmp_path / "film.mkv", [(60, 9), (200, 6), (60, 8)], rate=24)
    main([*flags(checkpoint=home / "memory" / "best.pt", input=source, output=tmp_path / "one.mkv"),
          "--write_cuts", "csv", "edl", "otio"])
    ends = [[shot.end for shot in read_cut_list(tmp_path / f"one.{suffix}", Fraction(24))]
            for suffix in ("csv", "edl", "otio")]
    assert ends == [[9, 15, 23]] * 3
    color(home, "memory", tmp_path / "two.mkv", source, cuts=tmp_path / "one.edl", overwrite=True)
    assert (tmp_path / "two.mkv").read_bytes() == (tmp_path / "one.mkv").read_bytes()
    (tmp_path / "mine.csv").write_text("Start Frame,End Frame\n1,4\n5,23\n")
    color(home, "memory", tmp_path / "two.mkv", source, cuts=tmp_path / "mine.csv", overwrite=True)
    lines = [json.loads(line) for line in (tmp_path / "two_shots.jsonl").read_text().splitlines()]
    assert [line["end_frame"] for line in lines] == [4, 23]


def test_cut_lists_of_a_part_count_the_frames_of_the_film(home, tmp_path):
    source = draw_shots(tmp_path / "film.ts", [(60, 15), (200, 10), (60, 6), (200, 9)], rate=24)  # starts at 1.4 s
    part = {"start": 20 / 24, "end": 1.5}
    main([*flags(checkpoint=home / "memory" / "best.pt", input=source, output=tmp_path / "part.mkv", **part),
          "--write_cuts", "csv", "edl", "otio"])
    for suffix in ("csv", "edl", "otio"):
        ends = [shot.end for shot in read_cut_list(tmp_path / f"part.{suffix}", Fraction(24))]
        assert ends == [20, 25, 31, 36]
    for settings, expected in ((part, [5, 11, 16]), ({"start": 26 / 24}, [5, 10, 14])):
        color(home, "memory", tmp_path / "two.mkv", source, cuts=tmp_path / "part.csv", overwrite=True, **settings)
        lines = [json.loads(line) for line in (tmp_path / "two_shots.jsonl").read_text().splitlines()]
        assert [line["end_frame"] for line in lines] == expected


def test_networks_without_memory_name_the_flags_that_reduce_it(home, tmp_path, monkeypatch, capsys):
    def run_out_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a capacity of 7.79 "
                                     "GiB of which 1.02 GiB is free. Of the memory, 6 GiB is in use by PyTorch")

    monkeypatch.setattr(Colorizer, "forward", run_out_of_memory)
    with pytest.raises(SystemExit):
        run_cli(main, flags(checkpoint=home / "memory" / "best.pt", input=home / "test", output=tmp_path / "out"))
    *_, printed = capsys.readouterr().err.splitlines()
    assert re.match("error: the memory is full .*2.00 GiB.*--batch_size.*--img_size", printed) and len(printed) < 260
    for name in "ab":
        draw_shots(tmp_path / f"{name}.mkv", [(60, 2)])
    config = ColorConfig(checkpoint=home / "memory" / "best.pt", output=tmp_path / "out")
    with pytest.raises(UserError, match="2 of 2 films failed"):
        color_inputs(WorkerGroup(), config, find_inputs(tmp_path, tmp_path / "out"))
    printed = capsys.readouterr().err
    assert printed.count("the memory is full") == 2 and "Traceback" not in printed


def test_a_report_that_cannot_be_written_is_written_by_the_next_run(home, tmp_path):
    source = draw_film(tmp_path / "film.mp4", times=range(3))
    (tmp_path / "out_report.html").mkdir()
    with pytest.raises(UserError, match="out_report.html exists already"):
        color(home, "memory", tmp_path / "out.mp4", source)
    assert not (tmp_path / "out.mp4").exists()
    with pytest.raises(UserError, match="cannot write .*out_report.html.* the film itself is complete"):
        color(home, "memory", tmp_path / "out.mp4", source, overwrite=True)
    assert times_and_sound(tmp_path / "out.mp4") == times_and_sound(source)
    before = (tmp_path / "out.mp4").stat().st_mtime_ns
    (tmp_path / "out_report.html").rmdir()
    color(home, "memory", tmp_path / "out.mp4", source)  # the same command continues
    assert (tmp_path / "out_report.html").is_file() and (tmp_path / "out.mp4").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="out.mp4 exists already"):
        color(home, "memory", tmp_path / "out.mp4", source)


def test_finished_films_and_pictures_of_a_folder_are_skipped(home, tmp_path, capfd):
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    draw_film(folder / "a.mp4", times=range(3))
    draw_film(folder / "b.avi", times=range(3), sound=None)
    write_image(folder / "c.png", draw_picture(0))
    (folder / "bad.mkv").write_text("not a film")
    settings = {"checkpoint": home / "memory" / "best.pt", "input": folder, "output": output}
    with pytest.raises(UserError, match="1 of 3 films failed"):
        main(flags(**settings))
    assert "bad.mkv as a video" in capfd.readouterr().err
    assert {"a.mp4", "b.mkv", "c.png"} <= {path.name for path in output.iterdir()}
    before = {name: (output / name).stat().st_mtime_ns for name in ("a.mp4", "c.png")}
    (output / "b.mkv").unlink()
    (folder / "bad.mkv").unlink()
    main(flags(**settings))
    assert "3 of" not in (printed := capfd.readouterr().out) and "2 of" in printed and "skipped" in printed
    assert (output / "b.mkv").exists()
    draw_film(folder / "a.mkv", times=range(3))
    with pytest.raises(UserError, match="a.mkv and .*a.mp4 would both be written to .*a_report.html; rename"):
        main(flags(**settings))
    assert before == {name: (output / name).stat().st_mtime_ns for name in before}


def test_metrics_are_those_of_all_pictures_of_a_folder(home, tmp_path):
    """Also after a second run that colors only an added picture."""
    whole, folder = color(home, "memory", tmp_path / "whole"), tmp_path / "in"
    folder.mkdir()
    for path in sorted((home / "test").iterdir()):
        shutil.copy(path, folder)
        metrics = color(home, "memory", tmp_path / "out", folder)
    expected = {**whole, "input": str(folder), "colored_by_earlier_runs": 1}
    assert {**metrics, "seconds": 0} == {**expected, "seconds": 0}
    assert (tmp_path / "out" / "comparison.png").read_bytes() == (tmp_path / "whole" / "comparison.png").read_bytes()


def test_all_frames_of_a_shot_share_one_palette(home):
    """The memory is queried once, with the mean embedding of some frames."""
    content = load_checkpoint(home / "spatial" / "best.pt")
    colorizer = Colorizer(restore(ModelConfig, content["model_config"])).eval()
    colorizer.load_state_dict(content["colorizer"])
    predictor = Predictor(colorizer, torch.device("cpu"), "fp32")
    labs = [resize(rgb_to_lab(draw_picture(i)), predictor.side, predictor.side) for i in range(3)]
    palette = predictor.palette(labs)
    alone = [predictor.palette([lab]) for lab in labs]
    assert torch.allclose(palette.embedding, torch.stack([p.embedding for p in alone]).mean(0), atol=1e-5)
    with torch.inference_mode():
        recall = colorizer.recall(palette.embedding[None])
    assert palette.slot_ids == recall.ids[0].tolist() and palette.slot_scores == recall.scores[0].tolist()
    assert torch.equal(palette.color_feature, colorizer.conditioning(recall, 1).color_feature)
    assert palette.score == palette.slot_scores[0]
    ab, known = predictor.predict(np.stack([lab[..., 0] for lab in labs]), palette)
    assert ab.shape == (3, 192, 192, 2)
    places = predictor.config.palette_classifier.input_size // CELL_SIZE // 2
    assert all(x.shape == (3, places, places) and ((x >= 0) & (x < 1 + 1e-6)).all() for x in known)
    assert known.probability.min() > 0
    one, _ = predictor.predict(labs[1][None, ..., 0], palette)
    assert np.abs(one[0] - ab[1]).max() < 0.1


def test_predictors_with_different_colors_have_different_identities(home, tmp_path):
    def identity(way="memory", **settings):
        return Predictor.load(home / way / "best.pt", device="cpu", precision="fp32", **settings).identity

    first = identity()
    assert first == identity() and len({first, identity(rank=2), identity(color_feature="ground_truth"),
                                        identity("integrator"),
                                        identity(reference=next((home / "train").glob("*.png")))}) == 5


def test_the_gray_row_measures_the_ground_truth_without_color():
    evaluation = Evaluation()
    truth = draw_picture(3)
    evaluation.add(evaluation.measure(truth, truth))
    result, gray = evaluation.scores["result"].summary(), evaluation.scores["gray"].summary()
    assert result["ciede2000"] == 0 and result["psnr_ab"] == math.inf
    lab = rgb2lab(truth)
    assert gray["psnr_ab"] == pytest.approx(10 * math.log10(220**2 / (lab[..., 1:] ** 2).mean()), abs=0.1)


def test_large_pictures_are_measured_at_a_smaller_size():
    truth, result = (np.kron(draw_picture(i, (640, 480)), np.ones((2, 2, 1), np.uint8)) for i in (3, 5))
    large, small = (Evaluation.measure(*(resize(picture, *size) for picture in (truth, result)))
                    for size in ((960, 1280), (558, 744)))
    assert large.gray == small.gray and large.result == small.result and large.result["ciede2000"] > 0.1
    assert [picture.shape for picture in large.thumbnails] == [(240, 320, 3)] * 3


def test_the_comparison_has_few_rows_that_are_evenly_spaced():
    evaluation = Evaluation()
    for i in range(100):
        picture = np.full((8, 8, 3), (i, 200, 0), np.uint8)
        evaluation.add(evaluation.measure(picture, picture))
    shown = [int(row[2][0, 0, 0]) for row in evaluation.rows]
    assert len(shown) < 2 * evaluation.ROWS and shown == list(range(0, 100, evaluation.stride))


def test_the_comparison_of_a_film_shows_evenly_spaced_shots():
    def shot(index, scores, truth=True):
        pictures = [np.full((8, 16, 3), index, np.uint8)] * 3
        return ShotRecord(index, index, index + 1, index, index + 1, *pictures[:2], pictures[2] if truth else None, [],
                          [], math.nan, np.zeros(0, np.float32), scores=scores)

    scores = [{"gray": {"ciede2000": 9.0}, "result": {"ciede2000": error}} for error in (1.0, 2.0)]
    records = [shot(index, scores[index % 2:][:1], truth=index != 4) for index in range(12)] + [shot(12, [])]
    evaluation = Evaluation()
    evaluation.add_film(records)
    assert [row[0][0, 0, 0] for row in evaluation.rows] == [0, 2, 5, 7, 9, 11]  # of the 11 that are shown
    assert evaluation.count == 12 and evaluation.scores["result"].rows == [each["result"] for each in scores] * 6


def test_nothing_is_overwritten(home, tmp_path):
    picture = next((home / "test").iterdir())
    (tmp_path / "out.png").write_bytes(b"foreign")
    with pytest.raises(UserError, match="exists already; pass --overwrite True"):
        color(home, "gan", tmp_path / "out.png", picture)
    assert (tmp_path / "out.png").read_bytes() == b"foreign"
    color(home, "gan", tmp_path / "out.png", picture, overwrite=True)
    assert read_image(tmp_path / "out.png").shape == (64, 96, 3)
    before = picture.read_bytes()
    with pytest.raises(UserError, match="is the input itself"):
        color(home, "gan", picture, picture, overwrite=True)
    with pytest.raises(UserError, match="is the input itself"):
        color(home, "gan", home / "test", overwrite=True)
    assert picture.read_bytes() == before


def test_an_unreadable_picture_of_a_folder_is_skipped_with_a_warning(home, tmp_path, capsys):
    write_image(tmp_path / "in" / "good.png", draw_picture(0))
    (tmp_path / "in" / "bad.png").write_bytes(b"not a picture")
    assert color(home, "gan", tmp_path / "out", tmp_path / "in")["pictures"] == 1
    assert "bad.png" in capsys.readouterr().err
    (tmp_path / "in" / "good.png").unlink()
    with pytest.raises(UserError, match="no picture could be read in .*in"):
        color(home, "gan", tmp_path / "other", tmp_path / "in")


def bad_checkpoint(home, path, change):
    content = load_checkpoint(home / "memory" / "best.pt")
    change(content)
    content.pop("format")
    save_checkpoint(path, content)


@pytest.fixture(scope="module")
def bad_input(home, tmp_path_factory):
    """A folder with input and checkpoints that cannot be used, and some that can. Nothing else may be written to it."""
    folder = tmp_path_factory.mktemp("bad_input")
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("notes")
    (folder / "text.mp4").write_text("not a film")
    (folder / "bad.png").write_bytes(b"")
    write_image(folder / "gray.png", np.full((32, 32, 3), 99, np.uint8))
    write_image(folder / "color.png", draw_picture(1))
    draw_film(folder / "film.mp4", times=range(3))
    (folder / "gan.pt").write_bytes((home / "gan" / "best.pt").read_bytes())
    bad_checkpoint(home, folder / "part.pt", lambda content: content["colorizer"].popitem())
    bad_checkpoint(home, folder / "shape.pt", lambda content: content["model_config"].update(width=8))
    bad_checkpoint(home, folder / "names.pt", lambda content: content.pop("frames"))
    bad_checkpoint(home, folder / "config.pt", lambda content: content["model_config"].update(new_setting=1))
    return folder


@pytest.mark.parametrize("settings, message", [
    ({"input": "missing"}, "missing does not exist"),
    ({"input": "empty"}, "empty contains neither a picture"),
    ({"input": "notes.txt"}, "neither a picture .* nor a video"),
    ({"input": "text.mp4"}, "cannot read text.mp4 as a video"),
    ({"input": "bad.png"}, "no picture could be read"),
    ({"input": "gray.png", "color_feature": "ground_truth"}, "no colors of its own"),
    ({"input": "gray.png", "reference": "gray.png"}, "reference gray.png is grayscale"),
    ({"input": "gray.png", "reference": "bad.png"}, "cannot read bad.png"),
    ({"input": "gray.png", "reference": "gray.png", "color_feature": "ground_truth"}, "leave --color_feature out"),
    ({"input": "gray.png", "color_feature": "integrator"}, "trained without an integrator"),
    ({"input": "gray.png", "checkpoint": "missing.pt"}, "there is no checkpoint missing.pt"),
    ({"input": "gray.png", "checkpoint": "notes.txt"}, "notes.txt is not a checkpoint"),
    ({"input": "gray.png", "checkpoint": "part.pt"}, "does not hold a complete colorizer"),
    ({"input": "gray.png", "checkpoint": "shape.pt"}, "does not hold a complete colorizer"),
    ({"input": "gray.png", "checkpoint": "names.pt"}, "names of its frames"),
    ({"input": "gray.png", "checkpoint": "config.pt"}, "does not hold a complete colorizer"),
    ({"input": "gray.png", "checkpoint": "gan.pt", "reference": "color.png"}, "is a plain GAN"),
    ({"input": "gray.png", "checkpoint": "gan.pt", "color_feature": "memory"}, "is a plain GAN"),
    ({"input": "gray.png", "rank": 4}, "invalid choice"),
    ({"input": "gray.png", "batch_size": 0}, "batch_size is 0"),
    ({"input": "film.mp4", "output": "out.avi"}, "pass a .mp4, .mkv, .mov or .webm"),
    ({"input": "gray.png", "output": "notes.txt/out.png"}, "cannot write notes.txt/out.png"),
    ({"input": "film.mp4", "output": "notes.txt/out.mp4"}, "cannot write notes.txt/out.mp4"),
    ({"input": "film.mp4", "suggest": -1}, "suggest is -1"),
    ({"input": "film.mp4", "checkpoint": "gan.pt", "memory_video": True}, "memory, which is not used here"),
    ({"input": "film.mp4", "reference": "color.png", "memory_video": True}, "memory, which is not used here"),
])
def test_bad_input_gives_a_message_of_one_line(home, bad_input, tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(bad_input)
    before = sorted(Path().rglob("*"))
    with pytest.raises(UserError, match=message) as error:
        main(flags(**{"checkpoint": home / "memory" / "best.pt", "output": tmp_path / "out", **settings}))
    assert "\n" not in str(error.value)
    assert sorted(Path().rglob("*")) == before


def test_a_loaded_colorizer_colors_exactly_like_the_saved_one(home):
    content = load_checkpoint(home / "integrator" / "best.pt")
    colorizers = []
    for _ in range(2):
        colorizer = Colorizer(restore(ModelConfig, content["model_config"])).eval()
        colorizer.load_state_dict(content["colorizer"])
        colorizers.append(colorizer)
        content = {**content, "colorizer": colorizer.state_dict()}
    pictures = [draw_picture(i) for i in range(3)]
    one, other = (Predictor(c, torch.device("cpu"), source="integrator").colorize(pictures) for c in colorizers)
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_checkpoint_of_another_format_is_refused(home, tmp_path):
    content = torch.load(home / "spatial" / "best.pt", weights_only=True)
    torch.save({**content, "format": content["format"] - 1}, tmp_path / "old.pt")
    with pytest.raises(UserError, match="old.pt has checkpoint format"):
        Predictor.load(tmp_path / "old.pt")


def test_the_configuration_is_that_of_the_checkpoint(home, tmp_path):
    """Values with a wrong type and values that are not finite are refused."""
    content = torch.load(home / "spatial" / "best.pt", weights_only=True)
    content["model_config"]["spatial"]["skip_attention_above"] = 0.5
    torch.save(content, tmp_path / "other.pt")
    assert Predictor.load(tmp_path / "other.pt").config.spatial == SpatialConfig(skip_attention_above=0.5)
    for name, value in (("inverse_temperature", math.nan), ("attended_frames", 2.5), ("warped_frames", 0),
                        ("reference_bias", -0.5), ("reference_bias", "much"), ("new", 1.0), ("picture_size", 64)):
        content["model_config"]["spatial"] = {name: value}
        torch.save(content, tmp_path / "bad.pt")
        with pytest.raises(UserError, match="bad.pt does not hold a complete colorizer"):
            Predictor.load(tmp_path / "bad.pt")


# ---------------------------------------------------------------------------------------------------------------------
# References


RUBY_WALKS, BO_WALKS, TWINS_TALK = 28, 172, 216  # frames of different shots of the sample film
GUESSED = SpatialConfig(color_weight=0.1)  # for a generator that is almost untrained and predicts gray


def half_frame(frame, **settings):
    """Return a frame of the sample film, or a mask of it, at half its width and height."""
    return np.ascontiguousarray(draw_frame(1, frame, **settings)[::2, ::2])


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """A folder with run/, a network trained for two steps on frames of the sample film, and corrected/.

    corrected/ has a grayscale frame, and a frame in which the red character has the teal of another one, with the same
    lightness.
    """
    folder = tmp_path_factory.mktemp("sample")
    for frame in (8, RUBY_WALKS, 48, 160, 190, 290):
        write_image(folder / "data" / "train" / f"frame_{frame}.png", half_frame(frame))
    with pytest.MonkeyPatch.context() as patch:
        train.train(TrainConfig(data_path=str(folder / "data"), save_path=str(folder / "run"), width=4, end_epoch=1,
                                spatial=GUESSED))
        patch.setitem(PALETTE, "ruby", PALETTE["tilo"])
        write_image(folder / "corrected" / "ruby_is_teal.png", half_frame(RUBY_WALKS))
        write_image(folder / "corrected" / "waits.png", np.full((32, 32, 3), 99, np.uint8))
    return folder


def share_of_teal(path, frame):
    """Return the share of the red character that is nearer to teal than to red in a colored frame."""
    ab = rgb_to_lab(read_image(path))[half_frame(frame, mask_of="ruby")][:, 1:]
    red, teal = (np.linalg.norm(ab - rgb_to_lab(np.uint8([[PALETTE[name]]]))[0, 0, 1:], axis=1)
                 for name in ("ruby", "tilo"))
    return (teal < red).mean()


def test_a_reference_changes_similar_frames_without_training(sample, tmp_path, capsys):
    """The corrected frame and a later frame of its shot follow the reference, another shot stays the same, and the
    saved checkpoint gives the same colors."""
    for frame in (RUBY_WALKS, RUBY_WALKS + 4, BO_WALKS):
        write_image(tmp_path / "in" / f"{frame}.png", half_frame(frame))
    asked = {"input": tmp_path / "in", "precision": "fp32"}
    main(flags(checkpoint=sample / "run" / "last.pt", output=tmp_path / "before", **asked))
    main(flags(checkpoint=sample / "run" / "last.pt", output=tmp_path / "after", references=sample / "corrected",
               save_checkpoint=tmp_path / "kept.pt", **asked))
    assert "waits.png is grayscale, not colored yet" in capsys.readouterr().err
    main(flags(checkpoint=sample / "run" / "last.pt", output=tmp_path / "after", references=sample / "corrected",
               save_checkpoint=tmp_path / "again.pt", **asked))  # only the checkpoint is missing
    assert (tmp_path / "again.pt").stat().st_size == (tmp_path / "kept.pt").stat().st_size
    main(flags(checkpoint=tmp_path / "kept.pt", output=tmp_path / "kept", **asked))
    for frame, least in ((RUBY_WALKS, 0.95), (RUBY_WALKS + 4, 0.85)):  # a thin limb stays red
        assert share_of_teal(tmp_path / "before" / f"{frame}.png", frame) < 0.3
        assert share_of_teal(tmp_path / "after" / f"{frame}.png", frame) > least
    before, after = (read_image(tmp_path / name / f"{BO_WALKS}.png").astype(int) for name in ("before", "after"))
    assert np.abs(before - after).mean() < 1
    for path in (tmp_path / "in").iterdir():
        assert np.array_equal(read_image(tmp_path / "after" / path.name), read_image(tmp_path / "kept" / path.name))


def right_hue(path, frame):
    """Return the share of the twins' pixels that have the hue of the right twin in a colored frame."""
    ab, right = rgb_to_lab(read_image(path))[..., 1:], []
    hues = {name: rgb_to_lab(np.uint8([[PALETTE[name]]]))[0, 0, 1:] for name in TWINS}
    truth = rgb_to_lab(half_frame(frame))[..., 1:]
    for name, other in (TWINS, TWINS[::-1]):
        body = half_frame(frame, mask_of=name) & (np.linalg.norm(truth - hues[name], axis=-1) < 10)
        right.append(np.linalg.norm(ab[body] - hues[name], axis=1) < np.linalg.norm(ab[body] - hues[other], axis=1))
    return np.concatenate(right).mean()


def test_the_memory_distinguishes_the_twins(sample, tmp_path):
    """Two characters have the same lightness. With one frame of their shot in memory, both get the right hue in another
    frame; a plain GAN with the same training does not distinguish them."""
    write_image(tmp_path / "known" / "twins.png", half_frame(TWINS_TALK))
    write_image(tmp_path / "in.png", half_frame(TWINS_TALK + 8))
    asked = {"input": tmp_path / "in.png", "precision": "fp32"}
    main(flags(checkpoint=sample / "run" / "last.pt", output=tmp_path / "memory.png", references=tmp_path / "known",
               **asked))
    train.main(flags(data_path=sample / "data", save_path=tmp_path / "gan", width=4, end_epoch=1, **MODES["gan"]))
    main(flags(checkpoint=tmp_path / "gan" / "last.pt", output=tmp_path / "gan.png", **asked))
    assert right_hue(tmp_path / "memory.png", TWINS_TALK + 8) > 0.95
    assert 0.25 < right_hue(tmp_path / "gan.png", TWINS_TALK + 8) < 0.75


def test_training_continues_with_the_references(sample, tmp_path):
    picture = next((sample / "data" / "train").iterdir())
    main(flags(checkpoint=sample / "run" / "last.pt", input=picture, output=tmp_path / "out.png",
               references=sample / "corrected", save_checkpoint=tmp_path / "run" / "last.pt"))
    train.main(flags(save_path=tmp_path / "run", resume=True, epoch_steps=4, end_epoch=2))
    before, after = (load_checkpoint(path / "run" / "last.pt")["colorizer"] for path in (sample, tmp_path))
    assert after["memory.ids"].tolist()[len(before["memory.ids"]):] == [REFERENCE_ID]
    assert after["spatial.ids"].tolist()[len(before["spatial.ids"]):] == [REFERENCE_ID]
    corrected = resize(rgb_to_lab(read_image(sample / "corrected" / "ruby_is_teal.png")), 128, 128)
    assert torch.allclose(after["memory.values"][-1], torch.from_numpy(color_feature(corrected[..., 1:])))


@pytest.mark.parametrize("settings, message", [
    ({"references": "missing"}, "there is no folder missing"),
    ({"references": "empty"}, "there is no color picture in empty"),
    ({"references": "gray"}, "there is no color picture in gray"),
    ({"references": "bad"}, "cannot read bad/bad.png"),
    ({"references": "good", "color_feature": "ground_truth"}, "use one of them"),
    ({"references": "good", "checkpoint": "gan"}, "is a plain GAN; leave --references out"),
    ({"save_checkpoint": "new.pt"}, "pass their folder to --references"),
    ({"references": "good", "save_checkpoint": "good/good.png"}, "good.png exists already"),
])
def test_bad_references_give_a_message_of_one_line(home, tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    write_image(Path("gray/gray.png"), np.full((32, 32, 3), 99, np.uint8))
    write_image(Path("good/good.png"), draw_picture(1))
    Path("bad").mkdir()
    Path("bad/bad.png").write_bytes(b"")
    settings = {"checkpoint": "memory", "input": "good/good.png", "output": "out.png", **settings}
    with pytest.raises(UserError, match=message):
        main(flags(**{**settings, "checkpoint": home / settings["checkpoint"] / "best.pt"}))
    assert not Path("out.png").exists() and not Path("new.pt").exists()
