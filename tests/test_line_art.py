"""Detection of line art."""

from functools import cache

import av
import cv2
import numpy as np
import pytest
from drawn import StubPredictor
from test_fallback import write_film

from resources.draw_episodes import draw_frame

from config import FilmConfig
from film.analysis.line_art import describe_line_art, is_line_art
from film.io.video import VideoFile
from film.render.rendering import color_film


@cache
def frame(episode, number):
    return cv2.cvtColor(draw_frame(episode, number), cv2.COLOR_RGB2GRAY)


def reduce(gray):
    return cv2.resize(gray, (256, 256), interpolation=cv2.INTER_AREA)


def lines(gray, width=1):
    return cv2.erode(255 - cv2.Canny(cv2.GaussianBlur(gray, (0, 0), 1.2), 40, 100), np.ones((width, width)))


def pencil(gray):
    rng = np.random.default_rng(0)
    paper = 225 + rng.normal(0, 2, gray.shape) - 0.5 * (255 - cv2.GaussianBlur(lines(gray, 2), (0, 0), 0.8))
    return paper.clip(0, 255).astype(np.uint8)


def card(text, size, thickness, framed=False):
    picture = np.full((480, 640), 250, np.uint8)
    for number, line in enumerate(text):
        cv2.putText(picture, line, (60, 120 + 60 * number), cv2.FONT_HERSHEY_COMPLEX, size, 10, thickness, cv2.LINE_AA)
    return cv2.rectangle(picture, (30, 30), (610, 450), 20, 3) if framed else picture


@pytest.mark.parametrize("number", [70, 170])
def test_lines_of_real_pictures_are_line_art_and_the_pictures_are_not(number):
    gray = frame(2, number)
    assert not is_line_art(reduce(gray))
    assert all(is_line_art(reduce(drawn)) for drawn in (lines(gray), lines(gray, 3), pencil(gray)))


@pytest.mark.parametrize("picture", [
    np.full((480, 640), 255, np.uint8), np.zeros((480, 640), np.uint8), card(["THE CAT", "IN THE HAT"], 1.4, 3),
    card(["Directed by", "Somebody Else", "Music by a third one"], 1, 2, framed=True), card(["THE END"], 3, 20),
    255 - card(["The next morning ..."], 1, 2), (frame(2, 70) // 8 + 220).astype(np.uint8)])
def test_white_frames_and_title_cards_are_no_line_art(picture):
    assert not is_line_art(reduce(picture))


def test_the_warning_names_shots_and_frames():
    assert describe_line_art([True] * 4 + [False] * 6, [(0, 4), (4, 10)]).startswith("shot 1 with 4 frames: lines")
    assert describe_line_art([True] * 3 + [False] * 7, [(0, 10)]) == ""
    assert describe_line_art([True] * 30, [(i, i + 2) for i in range(0, 30, 2)]).startswith(
        "15 shots (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ...) with 30 frames")


def test_a_film_with_line_art_is_colored_with_a_warning(tmp_path, capsys):
    gray, drawn = frame(2, 5), lines(frame(2, 170), 2)
    pictures = [np.roll(picture, i, 1) for picture in (gray, drawn) for i in range(8)]
    frames = [(i, av.VideoFrame.from_ndarray(reduce(picture), format="gray")) for i, picture in enumerate(pictures)]
    film = VideoFile(write_film(tmp_path / "in.mkv", frames))
    assert len(color_film(StubPredictor(), film, tmp_path / "out.mkv", FilmConfig(cut_at=(8,)))) == 2
    assert "shot 2 with 8 frames: lines without shading, which are not supported" in capsys.readouterr().err
