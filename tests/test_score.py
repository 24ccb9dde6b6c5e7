"""Tests of the scoring benchmark against scores computed by hand, of the baselines and of the degraded films."""

import math
import shutil
from fractions import Fraction

import av
import numpy as np
import pytest
from drawn import draw_film, draw_picture, draw_shots

from benchmarks import baselines, degraded_films, score
from benchmarks.score import COLUMNS, body_errors, main, measure, measure_consistency
from resources.draw_episodes import HEIGHT, PALETTE, WIDTH, draw_frame

from colorizer.metrics import ciede2000
from dataset import rgb_to_lab
from fileio.images import write_image
from film.io.planes import planes_from_frame
from film.io.video import read_frames
from film.report.consistency import CDC
from utils import UserError

RED, BLUE = (200, 60, 40), (60, 90, 210)


def flat(color, size=(48, 64)):
    return np.full((*size, 3), color, np.uint8)


def write(folder, pictures):
    for number, picture in enumerate(pictures):
        write_image(folder / f"{number}.png", picture)
    return folder


def pictures_of(film):
    return [planes_from_frame(frame).rgb_uint8() for _, frame in read_frames(film)]


def test_scores_of_two_pictures_by_hand(tmp_path):
    """One is equal to its ground truth; the left half of the other is gray."""
    half = flat(BLUE)
    half[:, :32] = 128
    truth = write(tmp_path / "ground_truth", [flat(RED), flat(BLUE)])
    result = write(tmp_path / "ours", [flat(RED), half])
    values, bodies = measure(result, truth, 1, lpips=lambda ours, true: float((ours != true).any(-1).mean()))
    distance = ciede2000(*(rgb_to_lab(flat(color, (1, 1))) for color in (128, BLUE)))
    assert values["ciede2000"] == pytest.approx(distance / 4, abs=0.02) and distance > 10
    assert values["share_above_10"] == values["lpips"] == 0.25 and bodies == {}
    error = (68**2 + 38**2 + 82**2) / 3 / 4
    assert values["psnr_rgb"] == pytest.approx(10 * math.log10(255**2 / error), abs=1e-4)
    # colorfulness of a flat picture: 0.3 times the length of (R - G, (R + G) / 2 - B)
    expected = (0.3 * math.hypot(140, 90) + 0.3 * math.hypot(-30, -135)) / 2
    assert values["colorfulness_ground_truth"] == pytest.approx(expected, abs=1e-3)
    first, _ = measure(result, truth, 2)
    assert first["ciede2000"] == 0 and first["psnr_rgb"] == math.inf and "lpips" not in first


def test_a_changed_lightness_counts(tmp_path):
    truth, result = write(tmp_path / "ground_truth", [flat(RED)]), write(tmp_path / "ours", [flat((150, 45, 30))])
    assert measure(result, truth)[0]["ciede2000"] > 5


def test_small_pictures_have_no_lpips(tmp_path):
    folder = write(tmp_path / "small", [flat(RED, (24, 24))])
    assert "lpips" not in measure(folder, folder, lpips=lambda ours, true: 0.0)[0]


def test_a_folder_of_the_frames_of_a_film_scores_like_the_film(tmp_path, capsys):
    film = tmp_path / "film.mkv"
    with av.open(str(film), "w") as output:
        stream = output.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for _ in range(14):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(draw_picture(1), format="rgb24")))
        output.mux(stream.encode(None))
    folder = write(tmp_path / "frames", pictures_of(film))
    main([str(folder), "--ground_truth", str(film)])
    titles, _, cells = ([cell.strip() for cell in line.split("|")[2:-1]] for line in
                        capsys.readouterr().out.splitlines())
    assert titles == [title for title, _ in COLUMNS.values()]
    assert cells[:6] == ["0.00", "0.0%", "-", "-", "inf", "1.000"]
    assert cells[7] == cells[8] and cells[9:11] == ["0.0000"] * 2 and cells[11] == cells[12]
    main([str(folder), "--ground_truth", str(folder)])
    # The pictures of a folder need not be consecutive.
    assert capsys.readouterr().out.splitlines()[-1].endswith("| - | - | - | - |")


def test_consistency_is_the_mean_over_the_shots_weighted_by_their_frames(tmp_path):
    film = draw_shots(tmp_path / "film.mkv", [(60, 9), (lambda i: 150 + 5 * i, 7)], options={"crf": "0"})
    values, pictures = measure_consistency(film, film), pictures_of(film)
    cdcs = CDC(), CDC()
    for index, picture in enumerate(pictures):
        cdcs[index >= 9].add(score.resize(picture, 240, 320))
    expected = (9 * cdcs[0].value() + 7 * cdcs[1].value()) / 16
    assert values["cdc"] == values["cdc_ground_truth"] == pytest.approx(expected)
    assert values["warp_error"] == values["warp_error_ground_truth"]
    flicker = [picture.astype(int) + (20 * (index % 2), 0, 0) for index, picture in enumerate(pictures)]
    other = write(tmp_path / "flicker", [picture.clip(0, 255).astype(np.uint8) for picture in flicker])
    flickering = measure_consistency(other, film)
    assert flickering["cdc"] > values["cdc"] and flickering["warp_error"] > 10 + values["warp_error"]


# ---------------------------------------------------------------------------------------------------------------------
# Characters of a drawn episode


def test_a_character_in_gray_has_large_errors():
    """A frame that equals its ground truth except for a gray character."""
    frame, ruby = draw_frame(2, 0), draw_frame(2, 0, mask_of="ruby")
    wrong = frame.copy()
    wrong[ruby] = 128
    found = body_errors(2, 0, wrong, frame)
    assert list(found) == ["bodies", *PALETTE] and len(found["ruby"]) == ruby.sum()
    assert (found["ruby"] > 10).all() and np.array_equal(found["ruby"], found["bodies"]) and not len(found["tilo"])


def test_the_table_of_characters(capsys):
    score.print_characters({"ruby": np.array([0.0, 30.0]), "tilo": np.zeros(0)})
    assert capsys.readouterr().out.splitlines()[2:] == ["| CIEDE2000 | 15.00 | - |", "| share > 10 | 50.0% | - |"]


def test_body_errors_are_collected_over_the_frames(monkeypatch):
    monkeypatch.setattr(score, "frame_count", lambda episode: 70)
    frames = {index: draw_frame(2, index) for index in (0, 60)}
    monkeypatch.setattr(score, "read_pairs", lambda *_: ((i, frame, frame) for i, frame in frames.items()))
    values, bodies = measure("ours", "ground_truth", 60, episode=2)
    assert values["bodies"] == values["bodies_share_above_10"] == 0
    assert len(bodies["tilo"]) == draw_frame(2, 60, mask_of="tilo").sum() > 0
    assert len(bodies["bodies"]) == sum(len(bodies[name]) for name in PALETTE)


# ---------------------------------------------------------------------------------------------------------------------
# Errors


@pytest.mark.parametrize("result, message", [
    ([flat(RED)], "ours has 1 frames and .*truth has more"),
    ([flat(RED)] * 3, "truth has 2 frames and .*ours has more"),
    ([flat(RED), flat(RED, (64, 48))], "frame 1 of .* is 48x64 and that of .* is 64x48")])
def test_different_lengths_and_sizes_are_errors(tmp_path, result, message):
    truth = write(tmp_path / "ground_truth", [flat(RED)] * 2)
    with pytest.raises(UserError, match=message):
        main([str(write(tmp_path / "ours", result)), "--ground_truth", str(truth), "--every", "1"])


def test_an_unsuitable_ground_truth_is_an_error(tmp_path):
    gray, color, none = write(tmp_path / "gray", [flat(128)]), write(tmp_path / "color", [flat(RED)]), tmp_path / "none"
    none.mkdir()
    for paths, message in [((color, gray), "is grayscale"), ((none, none), "no picture in"),
                           ((color, tmp_path / "missing.mp4"), "is not a file")]:
        with pytest.raises(UserError, match=message):
            main([str(paths[0]), "--ground_truth", str(paths[1])])
    with pytest.raises(UserError, match="at least 1, got .0."):
        main([str(color), "--ground_truth", str(color), "--every", "0"])
    for size in ((48, 64), (HEIGHT, WIDTH)):  # a different size, and a different length
        folder = write(tmp_path / f"{size[0]}", [flat(RED, size)])
        with pytest.raises(UserError, match="does not have the size and length of episode 2"):
            main([str(folder), "--ground_truth", str(folder), "--episode", "2"])


# ---------------------------------------------------------------------------------------------------------------------
# Baselines and degraded films


def test_baselines_by_hand(tmp_path):
    """The dataset has a red and a blue picture."""
    write(tmp_path / "data" / "train", [flat(RED), flat(BLUE)])
    film, output = draw_film(tmp_path / "film.mp4", times=range(3), sound=None), tmp_path / "out"
    argv = [str(film), "--data_path", str(tmp_path / "data"), "--output", str(output)]
    baselines.main(argv)
    colors = {name: rgb_to_lab(pictures_of(output / f"{name}.mp4")[1])[24, 32:40, 1:].mean(0)
              for name in ("gray", "mean", "nearest")}
    red, blue = (rgb_to_lab(flat(color, (1, 1)))[0, 0, 1:] for color in (RED, BLUE))
    assert colors["gray"] == pytest.approx([0, 0], abs=1) and colors["mean"] == pytest.approx((red + blue) / 2, abs=3)
    assert np.sign(colors["nearest"]).tolist() in (np.sign(red).tolist(), np.sign(blue).tolist())
    with pytest.raises(UserError, match="exists already"):
        baselines.main(argv)
    with pytest.raises(UserError, match="there is no picture in"):
        baselines.main([str(film), "--data_path", str(tmp_path)])


def test_degraded_films_colored_by_another_program_are_measured(tmp_path, capsys):
    """The grayscale films are written, and existing colored films are measured by their colors alone."""
    film = tmp_path / "film.mkv"
    frames = (av.VideoFrame.from_ndarray(draw_frame(1, 30 + i), "rgb24").reformat(format="yuv420p") for i in range(4))
    degraded_films.write_lossless(frames, film, Fraction(24))
    argv = ["--film", str(film), "--folder", str(tmp_path / "films"), "--every", "2", "--rows", "luma", "hard"]
    degraded_films.main(argv)
    hard = tmp_path / "films" / "hard_gray.mkv"
    assert f"color {hard} as {hard.with_name('hard_colored.mkv')}" in capsys.readouterr().err
    shutil.copy(film, tmp_path / "films" / "hard_colored.mkv")
    shutil.copy(tmp_path / "films" / "luma_gray.mkv", tmp_path / "films" / "luma_colored.mkv")
    degraded_films.main(argv)
    luma, equal = (line.split("|")[1:5] for line in capsys.readouterr().out.splitlines()[-2:])
    assert equal[1:] == [" 0.00 ", " 0.0% ", " 1.00 "]
    assert float(luma[1]) > 5 and float(luma[3]) < 0.05
    with pytest.raises(UserError, match="CHECKPOINT"):
        degraded_films.main(["--rows", "luma"])


def test_filter_chains_are_split_outside_of_parentheses():
    assert degraded_films.split_filters("lutyuv=y='16+pow(a,2)':u=128,gblur=sigma=1.5") == [
        ("lutyuv", "y='16+pow(a,2)':u=128"), ("gblur", "sigma=1.5")]
