"""Tests of corrections of drawn discs with known regions and colors, and of their document."""

import json

import numpy as np
import pytest
from test_regions import SIZE, disc, lightness

from benchmarks.effort import median_color

from dataset import luma_lightness, rgb_to_lab
from editing import correction as correction_module
from editing.correction import Correction, CorrectionRenderer
from colorizer.series_colors import hex_to_lab, lab_to_hex, max_chroma, shade_color
from editing.regions import Regions
from film.io.planes import planes_from_rgb
from utils import UserError

RED = "#c03030"
ENCODING = planes_from_rgb(np.zeros((1, 1, 3), np.uint8)).encoding


@pytest.fixture
def renderer():
    """A renderer of two discs on a background that are lit from the right; the predicted color is one green."""
    light = 90 + 60 * disc((200, 180), 60) + 90 * disc((330, 180), 40)
    L = lightness(light * np.linspace(0.9, 1.1, SIZE[1]))
    return CorrectionRenderer(Regions(L), np.full((16, 16, 2), (-20, 10), np.float32), ENCODING)


def chroma_and_hue(ab):
    return np.hypot(*np.moveaxis(ab, -1, 0)), np.degrees(np.arctan2(ab[..., 1], ab[..., 0]))


def test_a_fill_has_its_color_and_keeps_the_shading(renderer):
    correction = Correction(SIZE)
    correction.add("fill", [(200, 180)], RED)
    ab = renderer.apply(correction)
    wanted, (chroma, hue) = chroma_and_hue(hex_to_lab(RED)[1:]), chroma_and_hue(ab)
    assert chroma[180, 200] == pytest.approx(wanted[0], rel=0.01)
    inside = disc((200, 180), 55) == 1
    assert np.abs(hue[inside] - wanted[1]).max() < 0.1
    assert chroma[180, 150] < chroma[180, 200] and chroma[180, 250] < 1.1 * chroma[180, 200]
    outside = disc((200, 180), 64) == 0
    assert (ab[outside] == renderer.predicted_ab[outside]).all()
    picture = renderer.picture(correction)
    assert np.abs(luma_lightness(picture) - renderer.regions.L)[inside].max() < 0.6, "the luma is that of the film"
    again = rgb_to_lab(picture)[..., 1:]
    assert np.abs(again - ab)[inside].max() < 1.5, "within sRGB, up to 8-bit rounding"


def test_saturated_colors_are_not_limited_by_the_lightness_of_their_gray():
    blue = np.full((40, 40, 3), (20, 160, 240), np.uint8)  # out of sRGB at the lightness of its gray
    renderer = CorrectionRenderer(Regions(luma_lightness(blue)), np.zeros((4, 4, 2), np.float32), ENCODING)
    correction = Correction((40, 40))
    correction.add("fill", [(20, 20)], "#14a0f0")
    assert np.abs(renderer.picture(correction).astype(int) - blue).max() <= 4


def test_like_parts_are_filled_in_the_color_of_the_first(renderer):
    correction, regions, brown = Correction(SIZE), renderer.regions, "#907068"
    discs = disc((330, 180), 36) + disc((200, 180), 56) > 0.5
    correction.add("like", [(330, 180), *regions.points_of_parts(np.unique(regions.parts[discs]))], brown)
    ab = renderer.apply(correction)
    chroma, wanted = chroma_and_hue(ab)[0], np.hypot(*hex_to_lab(brown)[1:])
    assert chroma[180, 330] == pytest.approx(wanted, rel=0.03)
    assert 0.75 * wanted < chroma[180, 200] < 0.9 * wanted and (ab[20, 20] == (-20, 10)).all()
    assert Correction.from_state(json.loads(json.dumps(correction.state()))) == correction
    with pytest.raises(UserError, match="no fill to grow"):
        correction.add("grow", [(200, 180)])
    correction.undo()
    assert (renderer.apply(correction) == renderer.predicted_ab).all()


def test_grow_cut_and_brush_color_their_areas(renderer):
    correction = Correction(SIZE)
    correction.add("fill", [(200, 180)], RED)
    correction.add("grow", [(330, 180)])
    ab = renderer.apply(correction)
    assert ab[180, 200, 0] > 30 and ab[180, 330, 0] > 10
    correction.add("cut", [(143, 180), (257, 180)])
    ab = renderer.apply(correction)
    assert ab[150, 200].tolist() == ab[20, 20].tolist() or ab[210, 200].tolist() == ab[20, 20].tolist()
    correction.add("brush", [(20, 20), (120, 20)], RED, 6)
    assert renderer.apply(correction)[20, 70, 0] > 20 and renderer.apply(correction)[29, 70, 0] == -20
    correction.add("brush", [(70, 20)], None, 3)
    assert renderer.apply(correction)[20, 70].tolist() == [-20, 10] and renderer.apply(correction)[20, 40, 0] > 20
    correction.add("fill", [(330, 180)], None)
    assert renderer.apply(correction)[180, 330].tolist() == [-20, 10]


@pytest.mark.parametrize("memory", [correction_module.MAX_UNDO_BYTES, 0], ids=["restored", "rendered again"])
def test_undo_redo_and_reset_restore_the_same_colors(renderer, monkeypatch, memory):
    monkeypatch.setattr(correction_module, "MAX_UNDO_BYTES", memory)
    correction, states = Correction(SIZE), []
    correction.add("fill", [(200, 180)], RED)
    states.append(renderer.apply(correction))
    correction.add("grow", [(330, 180)])
    states.append(renderer.apply(correction))
    correction.add("reset")
    assert (renderer.apply(correction) == renderer.predicted_ab).all()
    for state in reversed(states):
        correction.undo()
        assert (renderer.apply(correction) == state).all()
    correction.redo()
    assert (renderer.apply(correction) == states[1]).all()
    correction.undo()
    correction.add("fill", [(330, 180)], RED)
    with pytest.raises(UserError, match="nothing to redo"):
        correction.redo()
    correction.undo()
    correction.undo()
    assert (renderer.apply(correction) == renderer.predicted_ab).all()
    with pytest.raises(UserError, match="nothing to undo"):
        correction.undo()


def test_a_document_survives_json(renderer):
    correction = Correction(SIZE)
    correction.add("fill", [(200, 180)], RED)
    correction.add("cut", np.array([(143, 180), (257, 180)]))
    correction.add("brush", [(20, 20)], None, 6.5)
    correction.add("reset")
    correction.undo()
    correction.undo()
    again = Correction.from_state(json.loads(json.dumps(correction.state())))
    assert again == correction and len(again.undone) == 2
    assert (renderer.apply(again) == renderer.apply(correction)).all()


FILL = {"kind": "fill", "points": [[20, 20]], "color": RED, "radius": 1}
DAMAGES = {
    "not a dict": [], "unknown kind": {**FILL, "kind": "explode"}, "kind of a wrong type": {**FILL, "kind": 3},
    "additional entry": {**FILL, "more": 1}, "missing entry": {"kind": "reset"},
    "color of a wrong type": {**FILL, "color": 3}, "color name": {**FILL, "color": "red"},
    "points of a wrong type": {**FILL, "points": 7}, "no point": {**FILL, "points": []},
    "number as point": {**FILL, "points": [3]}, "nan": {**FILL, "points": [[20, float("nan")]]},
    "bool": {**FILL, "points": [[True, 1]]}, "outside": {**FILL, "points": [[480, 1]]},
    "huge": {**FILL, "points": [[1e300, 1]]}, "grow without fill": {**FILL, "kind": "grow"},
    "brush without points": {**FILL, "kind": "brush", "points": []}, "radius 0": {**FILL, "kind": "brush", "radius": 0},
    "radius of a wrong type": {**FILL, "kind": "brush", "radius": "1"}}


@pytest.mark.parametrize("step", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("where", ["edits", "undone"])
def test_damaged_edits_are_refused(step, where):
    state = Correction(SIZE).state()
    assert Correction.from_state({**state, where: [FILL]})
    with pytest.raises(UserError):
        Correction.from_state({**state, where: [step]})


@pytest.mark.parametrize("change", [{"format": 2}, {"size": [0, 3]}, {"size": "ab"}, {"edits": None}, {"more": 1}])
def test_documents_with_wrong_entries_are_refused(change):
    with pytest.raises(UserError):
        Correction.from_state({**Correction(SIZE).state(), **change})


def test_a_correction_of_another_size_is_refused(renderer):
    with pytest.raises(UserError, match="to a frame of 640x360, but this one is 480x360"):
        renderer.apply(Correction((360, 640)))


@pytest.mark.parametrize("color", ["#000000", "#ffffff", "#ee6c80", "#12a89c", "#0000ff"])
def test_hex_colors_survive_a_conversion_to_lab(color):
    assert lab_to_hex(hex_to_lab(color)) == color


def test_median_color_is_taken_around_a_point():
    picture = np.full((20, 30, 3), (10, 20, 30), np.uint8)
    picture[:, 15:] = 200, 100, 0
    picture[5, 20] = 255
    assert median_color(picture, (5, 5)) == "#0a141e" and median_color(picture, (20, 5)) == "#c86400"


def test_max_chroma_is_the_limit_of_srgb():
    hue = hex_to_lab("#ff0000")[1:] / np.hypot(*hex_to_lab("#ff0000")[1:])
    reach = max_chroma(hue, np.array([0, hex_to_lab("#ff0000")[0], 100]))
    assert reach[0] < 2 and reach[1] == pytest.approx(104.5, abs=1.5) and reach[2] < 2
    assert (shade_color("#808080", np.full((2, 2), 50, np.float32), 50) == 0).all()
