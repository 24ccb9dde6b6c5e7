"""Tests of letterbox detection, and of coloring and training data of letterboxed films."""

from fractions import Fraction
from itertools import chain

import av
import cv2
import numpy as np
import pytest
from drawn import StubPredictor, planes_in

from colorizer.letterbox import crop_borders, find_boxes, luma_profile, measure_margins
from colorizer.references import Reference, crop_references
from config import FilmConfig, GeneratorConfig
from dataset_generator import generate
from fileio.images import read_image
from film.analysis.film_analysis import analyze_film
from film.analysis.plan import Plan
from film.io.encoding import EncodingTarget
from film.io.planes import ColorEncoding, Planes
from film.io.video import VideoFile
from film.render.pipeline import FrameTask, to_planes
from film.render.rendering import color_film
from film.render.manifest import Manifest
from film.render.segments import SegmentStore
from utils import list_files

SIZE = HEIGHT, WIDTH = 96, 128  # of the picture
FULL = ColorEncoding(8, True, 6)


def drawn(seed, count=4, darkness=1.0):
    """Draw the pictures of one shot, uint8: moving patches of different grays."""
    rng = np.random.default_rng(seed)
    wide = cv2.resize(rng.integers(30, 256, (8, 14)).astype(np.uint8), (WIDTH + 4 * count, HEIGHT),
                      interpolation=cv2.INTER_NEAREST)
    return [(wide[:, 4 * i:4 * i + WIDTH] * darkness).astype(np.uint8) for i in range(count)]


def framed(pictures, top=0, bottom=0, left=0, right=0, level=0, line=0, noise=0):
    """Yield the pictures with borders, a white line of ``line`` pixels around the picture, and noise."""
    rng = np.random.default_rng(9)
    for picture in pictures:
        lines = [min(line, side) for side in (top, bottom, left, right)]
        picture = cv2.copyMakeBorder(picture, *lines, cv2.BORDER_CONSTANT, value=255)
        picture = cv2.copyMakeBorder(picture, *(side - each for side, each in
                                                zip((top, bottom, left, right), lines, strict=True)),
                                     cv2.BORDER_CONSTANT, value=level)
        noisy = picture + rng.normal(0, noise, picture.shape)
        yield np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def find_shot_boxes(*shots):
    """Find the boxes of shots, which are lists of pictures."""
    shots = [list(shot) for shot in shots]
    margins = [measure_margins([luma_profile(picture, FULL.luma_range) for picture in shot])
               for shot in shots]
    return find_boxes(margins, [len(shot) for shot in shots], shots[0][0].shape)


PILLARS, LETTER = {"left": 22, "right": 26}, {"top": 14, "bottom": 12}


@pytest.mark.parametrize("borders", [PILLARS, LETTER, PILLARS | LETTER, {"left": 21}, {"bottom": 12}, {"top": 8}],
                         ids=str)
@pytest.mark.parametrize("style", [{}, {"level": 30}, {"noise": 12}, {"line": 1}, {"line": 3, "noise": 8}], ids=str)
def test_borders_are_found_with_noise_gray_level_and_edge_lines(borders, style):
    found = find_shot_boxes(*(framed(drawn(seed), **borders, **style) for seed in range(3)))
    top, left = borders.get("top", 0), borders.get("left", 0)
    assert found == [(top, top + HEIGHT, left + left % 2, left + WIDTH)] * 3  # even, where chroma begins


def test_fades_and_dark_shots_get_the_borders_of_the_film():
    night = list(framed(drawn(3, darkness=0.05), **PILLARS))
    fade = [picture // 8 * i for i, picture in enumerate(framed(drawn(4, 8), **PILLARS))]
    shots = [*(framed(drawn(seed), **PILLARS) for seed in range(3)), night, fade, [0 * night[0]]]
    assert find_shot_boxes(*shots) == [(0, HEIGHT, 22, 22 + WIDTH)] * 6


def test_a_shot_with_its_own_framing_gets_its_own_box():
    whole = [cv2.resize(picture, (WIDTH + 48, HEIGHT)) for picture in drawn(0, 20)]
    insert, wide = list(framed(drawn(1), **PILLARS)), [cv2.resize(picture, (WIDTH + 48, 72)) for picture in drawn(2)]
    night = [picture // 12 for picture in whole[:4]]
    assert find_shot_boxes(whole, insert, framed(wide, top=12, bottom=12), night) == [
        None, (0, HEIGHT, 22, 22 + WIDTH), (12, 84, 0, WIDTH + 48), None]


def test_a_rare_framing_needs_borders_on_opposite_sides():
    shots = [[cv2.copyMakeBorder(picture, 13, 13, 0, 0, cv2.BORDER_REFLECT) for picture in drawn(seed, 12)]
             for seed in range(1, 9)]
    assert find_shot_boxes(framed(drawn(20), **LETTER), *shots) == [(14, 14 + HEIGHT, 0, WIDTH), *[None] * 8]
    assert find_shot_boxes(framed(drawn(20), bottom=26), *shots) == [None] * 9


def card(*lines, size=0.6):
    """Draw a black title card."""
    picture = np.zeros((HEIGHT, WIDTH), np.uint8)
    for i, text in enumerate(lines):
        width = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 2)[0][0]
        cv2.putText(picture, text, ((WIDTH - width) // 2, 54 - 10 * len(lines) + 22 * i), cv2.FONT_HERSHEY_SIMPLEX,
                    size, 255, 2)
    return picture


def vignette(picture, power):
    """Darken a picture toward its margins."""
    y, x = np.ogrid[-1:1:HEIGHT * 1j, -1:1:WIDTH * 1j]
    return (picture * (1 - np.maximum(abs(x), abs(y)) ** power)).astype(np.uint8)


def night_sky(picture):
    """Draw a black sky over roofs of different heights."""
    picture = picture.copy()
    for i in range(0, WIDTH, 8):
        picture[:10 + i * 37 % 23, i:i + 8] = 3
    return picture


@pytest.mark.parametrize("shots", [
    [drawn(0), drawn(1)],
    [[card("THE END")] * 6], [[card("EPISODE")] * 6, [card("A FILM", "OF MINE")] * 6], [[card("HI", size=2.2)] * 6],
    [[vignette(picture, 2) for picture in drawn(seed)] for seed in range(3)],
    [[vignette(picture, 12) for picture in drawn(seed)] for seed in range(3)],
    [[night_sky(picture) for picture in drawn(seed)] for seed in range(3)],
    [framed(drawn(seed), **PILLARS, level=140) for seed in range(3)],  # a wall, rather
    [framed([picture[:, 40:] for picture in drawn(0)], left=40), *(drawn(seed, 12) for seed in range(1, 5))],
    [[np.zeros(SIZE, np.uint8)] * 4], [[np.full(SIZE, 255, np.uint8)] * 4], [[np.zeros((1, 2), np.uint8)]],
], ids=["bright", "card", "cards", "large letters", "vignette", "hard vignette", "night", "gray", "door", "black",
        "white", "tiny"])
def test_pictures_without_borders_are_not_cropped(shots):
    shots = [list(shot) for shot in shots]
    assert not any(find_shot_boxes(*shots))
    assert all(crop_borders(cv2.cvtColor(shot[0], cv2.COLOR_GRAY2RGB)).shape[:2] == shot[0].shape for shot in shots)


@pytest.mark.parametrize("borders", [PILLARS, LETTER, PILLARS | LETTER, {}], ids=str)
@pytest.mark.parametrize("style", [{}, {"level": 20, "noise": 4}, {"line": 2}], ids=str)
def test_borders_of_single_pictures_are_cropped(borders, style):
    for seed in range(6):
        picture = next(framed(drawn(seed), **borders, **style))
        cropped = crop_borders(cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB))
        assert np.abs(np.subtract(cropped.shape[:2], SIZE)).max() <= 1


def test_borders_of_references_are_cropped_with_a_warning(capsys):
    pictures = [cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB)
                for picture in (next(framed(drawn(1), **LETTER)), next(framed(drawn(2), **PILLARS)), drawn(3)[0])]
    assert [picture.shape for picture, *_ in crop_references(list(map(Reference, pictures)))] == [(*SIZE, 3)] * 3
    assert "2 of 3 references have black borders" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# Letterboxed films


def write_film(path, pictures):
    """Write a lossless grayscale film of pictures uint8 (H, W)."""
    with av.open(str(path), "w") as film:
        height, width = pictures[0].shape
        stream = film.add_stream("ffv1", rate=12)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for luma in pictures:
            luma = 16 + luma * (219 / 255)
            planes = np.concatenate([luma.ravel(), np.full(height * width // 2, 128)]).astype(np.uint8)
            film.mux(stream.encode(av.VideoFrame.from_ndarray(planes.reshape(-1, width), format="yuv420p")))
        film.mux(stream.encode(None))
    return path


def shots_drawn():
    return list(chain.from_iterable(drawn(seed, 14, darkness) for seed, darkness in ((0, 1), (1, 0.4), (2, 0.9))))


def color(source, output, predictor=None, **settings):
    settings = {"crf": 0, "batch_size": 4, **settings}
    return color_film(predictor or StubPredictor(), VideoFile(source), output, FilmConfig(**settings))


def test_a_letterboxed_film_is_colored_like_the_film_without_borders(tmp_path):
    pictures, borders = shots_drawn(), PILLARS | LETTER
    plain = write_film(tmp_path / "plain.mkv", pictures)
    barred = write_film(tmp_path / "barred.mkv", list(framed(pictures, **borders, line=2)))
    box, inside = (14, 14 + HEIGHT, 22, 22 + WIDTH), (slice(7, 7 + HEIGHT // 2), slice(11, 11 + WIDTH // 2))
    expected = color(plain, tmp_path / "plain_out.mkv", confidence=True)
    records = color(barred, tmp_path / "out.mkv", confidence=True)
    assert [record.box for record in expected] == [None] * 3 and [record.box for record in records] == [box] * 3
    for record, other in zip(records, expected, strict=True):
        assert (record.start_frame, record.end_frame) == (other.start_frame, other.end_frame)
        assert np.array_equal(record.embedding, other.embedding)
        assert record.cdc == pytest.approx(other.cdc, rel=0.1) and record.gray.shape[0] == 222  # with borders
    source, result, alone = map(planes_in, (barred, tmp_path / "out.mkv", tmp_path / "plain_out.mkv"))
    outside = np.ones(result[0][1].shape, bool)
    outside[inside] = False
    for (luma, *_), (y, *chroma), (_, *wanted) in zip(source, result, alone, strict=True):
        assert np.array_equal(y, luma)
        for plane, other in zip(chroma, wanted, strict=True):
            assert (plane[outside] == 128).all() and np.array_equal(plane[inside], other) and np.ptp(other)
    (_, cb, cr), *_ = planes_in(tmp_path / "out_confidence.mp4")  # the map
    away = cv2.erode(outside.astype(np.uint8), np.ones((9, 9)), borderValue=1) > 0  # outside of the ringing of H.264
    assert abs(cb[away].astype(int) - 128).max() <= 2 < abs(cb[inside].mean() - 128) + abs(cr[inside].mean() - 128)


def test_an_interrupted_run_keeps_the_box(tmp_path):
    source = write_film(tmp_path / "in.mkv", list(framed(shots_drawn(), **PILLARS)))
    color(source, tmp_path / "whole.mkv")

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        color(source, tmp_path / "out.mkv", StubPredictor(20, stop))
    assert any((tmp_path / ".out.mkv.segments").glob("*.segment"))
    predictor = StubPredictor()
    records = color(source, tmp_path / "out.mkv", predictor)
    assert [record.box for record in records] == [(0, HEIGHT, 22, 22 + WIDTH)] * 3
    assert predictor.shots == 0  # the analysis did not run again
    for one, other in zip(planes_in(tmp_path / "out.mkv"), planes_in(tmp_path / "whole.mkv"), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def barred(picture, rows=0, columns=0):
    """Return a picture whose margins are black."""
    inside = np.zeros_like(picture)
    inside[rows:HEIGHT - rows, columns:WIDTH - columns] = picture[rows:HEIGHT - rows, columns:WIDTH - columns]
    return inside


@pytest.mark.parametrize("change, borders, box", [
    (18, {"rows": 14}, (14, 82, 0, 128)), (18, {"columns": 20}, (0, 96, 20, 108)),
    (-16, {"rows": 14}, (14, 82, 0, 128))])
def test_borders_that_change_within_a_shot_split_it(tmp_path, change, borders, box):
    pictures = [barred(picture, **borders) if (i >= change if change > 0 else i < -change) else picture
                for i, picture in enumerate(drawn(0, 36))]
    source = write_film(tmp_path / "in.mkv", pictures + drawn(1, 24))
    plan = analyze_film(VideoFile(source), StubPredictor(), FilmConfig())
    boxes = [None, box, None] if change > 0 else [box, None, None]
    assert [(shot.start, shot.box) for shot in plan.shots] == list(zip((0, abs(change), 36), boxes, strict=True))
    fade = [np.uint8(picture * (1 - i / 20)) if i < 20 else 0 * picture for i, picture in enumerate(drawn(2, 40))]
    source = write_film(tmp_path / "fade.mkv", [barred(picture, **borders) for picture in drawn(1, 24) + fade])
    plan = analyze_film(VideoFile(source), StubPredictor(), FilmConfig())
    assert [shot.start for shot in plan.shots] == [0, 24] and all(shot.box == box for shot in plan.shots)


def test_plan_returns_the_box_around_frames(tmp_path):
    whole = [cv2.resize(picture, (WIDTH + 48, HEIGHT)) for picture in drawn(3, 14)]
    plan = analyze_film(VideoFile(write_film(tmp_path / "in.mkv", [*framed(drawn(0, 14), **PILLARS), *whole,
                                                           *framed(drawn(1, 14), **PILLARS)])),
                StubPredictor(), FilmConfig())
    box, ends = (0, HEIGHT, 22, 22 + WIDTH), (14, 28, 42)
    segments = SegmentStore(tmp_path / "out.mkv", Manifest({}, {}))
    segments.save_plan(plan)
    for each in (plan, Plan.from_state(plan.state()), segments.load_plan()):
        assert [(shot.end, shot.box) for shot in each.shots] == list(zip(ends, (box, None, box), strict=True))
        assert [each.box(i, i + 1) for i in (0, 13, 14, 27, 28, 41)] == [box, box, None, None, box, box]
        assert each.box(28, 42) == box and each.box(13, 15) is None
    plan.shots[1].box = (10, 90, 30, 100)
    assert plan.box(13, 15) == (0, HEIGHT, 22, 22 + WIDTH)


def test_training_images_have_no_borders(tmp_path, monkeypatch):
    source = write_film(tmp_path / "in.mkv", list(framed(shots_drawn(), **PILLARS, line=1)))

    def pictures(folder):
        generate(GeneratorConfig(video_path=source, save_path=tmp_path / folder, split=(1, 0, 0), shots_len_thres=2))
        return [read_image(path) for path in list_files(tmp_path / folder / "train")]

    found = pictures("held")
    assert len(found) >= 9 and all(picture.shape == (HEIGHT, WIDTH, 3) for picture in found)
    assert min(picture[:, side].max() for picture in found for side in (0, -1)) > 60
    monkeypatch.setattr("film.analysis.training_frames.POOL_BYTES", 0)  # most frames are decoded again
    assert all(np.array_equal(one, other) for one, other in zip(found, pictures("decoded again"), strict=True))


def test_both_fields_of_a_letterboxed_film_are_colored_inside_the_box():
    rng = np.random.default_rng(0)
    y = rng.integers(16, 235, (48, 64)).astype(np.uint8)
    planes = Planes(y, None, None, FULL._replace(full_range=False), True)
    target = EncodingTarget("libx264", {}, "yuv420p", 64, 48, (24, 32), planes.encoding, Fraction(25), Fraction(1, 25),
                            {}, "nut", "tff")
    job = FrameTask(0, 0, planes, ab=np.full((8, 8, 2), 30, np.float32))
    result = to_planes(job, target, False, (8, 40, 10, 64))
    assert np.array_equal(result.y, y)
    for plane in (result.cb, result.cr):
        colored = plane != 128
        assert colored[4:20, 5:].all() and not colored[:4].any() and not colored[20:].any() and not colored[:, :5].any()
