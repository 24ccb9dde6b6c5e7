"""Metrics with known values, images, checkpoints and the command line."""

import argparse
import math
import os
import re
import signal
import subprocess
import sys
from fractions import Fraction
from functools import partial

import cv2
import numpy as np
import pytest
import torch

import utils
from colorizer.metrics import Scores, ciede2000, colorfulness, evaluation_size, has_color, metrics_table, psnr
from fileio import checkpoints
from fileio.atomic import atomic_write
from fileio.checkpoints import load_checkpoint, save_checkpoint
from fileio.images import image_grid, list_images, read_image, write_image
from utils import UserError, parse_bool, parse_rate, run_cli


def test_ciede2000_matches_published_pairs():
    # Sharma, Wu and Dalal (2005), test pairs 1, 7 and 25 with their published differences.
    pairs = [((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425), ((50, 0, 0), (50, -1, 2), 2.3669),
             ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644)]
    for one, other, expected in pairs:
        assert ciede2000(np.array([[one]]), np.array([[other]])) == pytest.approx(expected, abs=1e-4)


def test_psnr_matches_worked_examples():
    assert psnr(255**2, 255) == 0
    assert psnr(1.0, 255) == pytest.approx(48.1308, abs=1e-4)
    assert psnr(0.0, 255) == math.inf


def test_psnr_of_a_set_uses_its_mean_squared_error():
    black = np.zeros((16, 16, 3), np.uint8)
    off = np.full((16, 16, 3), 10, np.uint8)
    scores = Scores()
    scores.add(black, black)  # exact: its own PSNR is infinite
    scores.add(off, black)
    assert scores.summary()["psnr_rgb"] == pytest.approx(psnr((0 + 100) / 2, 255))


def test_scores_of_the_ground_truth_are_perfect():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    scores = Scores()
    scores.add(truth, truth)
    summary = scores.summary()
    assert summary["ciede2000"] == 0 and summary["ssim"] == pytest.approx(1)
    assert summary["colorfulness"] == summary["colorfulness_ground_truth"] > 50
    assert "CIEDE2000" in metrics_table({"result": summary})


@pytest.mark.parametrize("size, measured", [
    ((360, 640), (360, 640)), ((480, 854), (480, 854)), ((576, 720), (576, 720)), ((1080, 1920), (483, 859)),
    ((2160, 3840), (483, 859)), ((1, 10**6), (1, 643988))])
def test_measured_size_is_bounded(size, measured):
    assert evaluation_size(*size) == measured


def test_colorfulness_matches_a_worked_example():
    assert colorfulness(np.full((4, 4, 3), 90, np.uint8)) == 0
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 200  # rg = 200, yb = 100 everywhere: 0.3 * sqrt(200^2 + 100^2)
    assert colorfulness(red) == pytest.approx(0.3 * math.hypot(200, 100), rel=1e-5)


def test_has_color_ignores_noise():
    gray = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2).repeat(8, 0)
    assert not has_color(gray)
    noisy = np.clip(gray.astype(int) + np.random.default_rng(0).integers(0, 2, gray.shape), 0, 255).astype(np.uint8)
    assert not has_color(noisy)
    hat = np.zeros((100, 100, 3), np.uint8)
    hat[:10, :10] = (255, 0, 0)
    assert has_color(hat)


def test_image_grid():
    grid = image_grid([[np.zeros((2, 3, 3), np.uint8)] * 2] * 3, gap=1)
    assert grid.shape == (8, 7, 3)
    assert (grid[2] == 255).all() and (grid[0, :3] == 0).all()


@pytest.mark.parametrize("text, value", [("True", True), ("False", False), ("true", True), ("false", False)])
def test_parse_bool(text, value):
    assert parse_bool(text) is value


def test_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file.txt"]


def test_unwritable_path_raises_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_image(tmp_path / "file" / "picture.png", np.zeros((4, 4, 3), np.uint8))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jfif", ".webp", ".avif", ".jp2", ".bmp", ".tga"])
def test_images_round_trip(tmp_path, suffix):
    picture = np.full((20, 30, 3), (10, 200, 90), np.uint8)
    write_image(tmp_path / f"a{suffix}", picture)
    assert np.abs(read_image(tmp_path / f"a{suffix}").astype(int) - picture).max() < 5


def test_files_that_are_not_images_are_named(tmp_path, capsys):
    for name in ("b.TGA", "a.jp2", "c.heic", "d e.psd", ".hidden"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.jp2", "b.TGA"]
    assert capsys.readouterr().err.endswith(": c.heic, d e.psd\n")


def test_exit_codes(capsys):
    def user_error(argv):
        raise UserError("too small; make it larger")

    def interrupt(argv):
        raise KeyboardInterrupt

    def terminate(argv):
        os.kill(os.getpid(), signal.SIGTERM)

    for main, code in ((user_error, 1), (interrupt, 130), (terminate, 130)):
        with pytest.raises(SystemExit) as stop:
            run_cli(main, [])
        assert stop.value.code == code
    captured = capsys.readouterr().err
    assert captured == "error: too small; make it larger\ninterrupted\ninterrupted\n"
    with pytest.raises(SystemExit):
        run_cli(user_error, ["--debug"])
    assert "Traceback" in capsys.readouterr().err


def raise_error(message):
    raise RuntimeError(message)


@pytest.mark.parametrize("allocate", [
    lambda: torch.empty(2**48),
    lambda: np.empty(2**48),
    lambda: cv2.resize(np.zeros((4, 4), np.uint8), (2**30, 2**30)),
    partial(raise_error, "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    partial(raise_error, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    pytest.param(lambda: torch.empty(2**48, device="cuda"),
                 marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
], ids=["torch", "numpy", "opencv", "cuda call", "cublas", "cuda"])
def test_a_lack_of_memory_names_the_flags_that_reduce_it(capsys, allocate):
    with pytest.raises(SystemExit):
        run_cli(lambda argv: allocate(), [])
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and re.match("error: the memory is full.*--batch_size.*--img_size", printed)


@pytest.mark.parametrize("text, rate", [("25", 25), ("24000/1001", Fraction(24000, 1001)), ("12.5", Fraction(25, 2))])
def test_parse_rate(text, rate):
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "0", "-1", "1/0", "inf", "nan", "24 fps", "1e9"])
def test_parse_rate_refuses_other_texts(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected frames per second"):
        parse_rate(text)


def test_internal_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_cli(lambda argv: 1 / 0, [])


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints


def test_checkpoints_round_trip(tmp_path):
    content = {"tensor": torch.arange(5.0), "plain": {"a": [1, "two", None, 3.5]}}
    save_checkpoint(tmp_path / "a.pt", content)
    loaded = load_checkpoint(tmp_path / "a.pt")
    assert torch.equal(loaded["tensor"], content["tensor"]) and loaded["plain"] == content["plain"]


class MaliciousObject:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_files_other_than_checkpoints_are_refused_without_executing_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"format": 1, "evil": MaliciousObject()}, tmp_path / "evil.pt")
    save_checkpoint(tmp_path / "whole.pt", {"tensor": torch.zeros(1000)})
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:2000])
    for name in ("text", "empty", "list", "evil", "cut"):
        with pytest.raises(UserError, match=f"{name}.pt is not a checkpoint"):
            load_checkpoint(tmp_path / f"{name}.pt")
    assert not (tmp_path / "executed").exists()
    with pytest.raises(UserError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "missing.pt")


def test_other_checkpoint_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "CHECKPOINT_FORMAT", 99)
    save_checkpoint(tmp_path / "a.pt", {})
    monkeypatch.undo()
    with pytest.raises(UserError, match="format 99"):
        load_checkpoint(tmp_path / "a.pt")


def test_scripts_import_without_display_and_network():
    code = "import utils, dataset, networks, train, test, dataset_generator"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          cwd=os.path.dirname(utils.__file__), env={"PATH": os.environ["PATH"]},
                          timeout=120)
    assert done.returncode == 0, done.stderr


def test_share_of_far_colors_counts_pixels():
    """A third of a gray image is red in the result."""
    truth = np.full((12, 12, 3), 128, np.uint8)
    result = truth.copy()
    result[:4] = 200, 40, 40
    scores = Scores()
    scores.add(result, truth)
    assert scores.summary()["share_above_10"] == pytest.approx(1 / 3)
