"""Palettes with scopes: folders, the shots that each palette holds in, and which of several palettes wins."""

import numpy as np
import pytest
from test_palettes import BLUE, GREEN, RED, WALL, flat, locked
from test_scopes import SHOTS, picture

from colorizer.palette_scopes import ScopedColors, ScopedPalette, read_palettes
from colorizer.scopes import ShotView
from colorizer.series_colors import hex_to_lab
from colorizer.warping.propagation import signature
from fileio.images import write_image
from fileio.palettes import NamedColor
from utils import UserError

FRAME = np.full((9, 12, 3), 120, np.uint8)
LEARNED = [RED, GREEN, WALL]


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[ruby]\n" + "\n".join(lines))


def test_palettes_of_a_folder_have_the_scope_of_their_subfolder(tmp_path, capsys):
    for name in ("b.ini", "shots_12-18/night.ini", "shot_3/red.ini", "only_this_shot/cave.ini", ".old/x/a.ini"):
        write(tmp_path / name, "fur = #a01020 locked")
    write_image(tmp_path / "only_this_shot" / "cave.png", FRAME)
    (tmp_path / "notes.txt").write_text("later")
    found = read_palettes(tmp_path)
    assert [(each.scope, each.name, each.frame is None) for each in found] == [
        ("", "b.ini", True), ("only_this_shot", "only_this_shot/cave.ini", False),
        ("shot_3", "shot_3/red.ini", True), ("shots_12-18", "shots_12-18/night.ini", True)]
    assert all(each.colors == [NamedColor("ruby", "fur", "#a01020", True)] for each in found)
    assert "since they are not .ini, .gpl, .ase: notes.txt" in capsys.readouterr().err
    assert read_palettes(tmp_path / "b.ini") == [found[0]]


@pytest.mark.parametrize("name, message", [
    ("night/a.ini", "^night is not a scope; rename the folder"),
    ("similar_shots/a.ini", "^the palette similar_shots/a.ini needs one frame of its shot, but there are 0.*as a.png"),
    ("shot_3/a.txt", "there is no palette in .*expected .ini, .gpl, .ase"),
    ("shot_3/a.ini", "cannot read the palette .*shot_3/a.ini"),
])
def test_an_invalid_folder_is_explained(tmp_path, name, message):
    write(tmp_path / name, "fur = red" if "shot_3" in name else "fur = #a01020 locked")
    with pytest.raises(UserError, match=message):
        read_palettes(tmp_path)
    with pytest.raises(UserError, match="there is no palette .*none; pass a palette file or a folder"):
        read_palettes(tmp_path / "none")


def scoped(scope, *colors, frame=None):
    return ScopedPalette(colors, scope, f"{scope}/a.ini", frame)


def view(frame):
    """Return the view of a frame that shows the picture ``frame[0, 0]`` of a memory."""
    seed = int(frame[0, 0])
    return ShotView(SHOTS[seed].embedding, signature(np.ascontiguousarray(picture(seed)[..., 0]))[None])


def test_each_palette_is_active_in_its_shots_narrowest_first():
    first, second = np.zeros((1, 1)), np.ones((1, 1))
    colors = ScopedColors([scoped("", locked(RED)), scoped("similar_shots", locked(BLUE), frame=first),
                           scoped("only_this_shot", locked(BLUE), frame=second), scoped("shots_2-3", locked(BLUE)),
                           scoped("shot_9", locked(BLUE)), scoped("similar_shots", locked(WALL), frame=first)], LEARNED)
    active = colors.find_active(SHOTS, view)
    assert active == [[1, 5], [2, 3], [3, 1, 5]]
    assert colors.find_active(SHOTS[:1], view, has_numbers=False) == [[1, 5]]
    assert colors.find_active(SHOTS[2:], view, has_numbers=False) == [[2, 1, 5]], "a picture of the same shot"
    message, = colors.unused(active)
    assert "in the scope of the palette shot_9/a.ini, so it is not used" in message


def test_the_narrower_scope_wins_for_the_same_color():
    """The wall is named in the second shot only, which cancels its lock there."""
    colors = ScopedColors([scoped("", locked(BLUE, RED), locked("#b4a890", WALL)),
                           scoped("shots_2-3", locked(GREEN, "#d0283a")),  # nearly the same red, as from a color picker
                           scoped("shot_9", NamedColor("ruby", "wall", WALL))], LEARNED)
    L, lab = flat(RED, WALL)

    def result(*active):
        return [colors.in_shot(active).apply(lab[..., 1:], L)[12, x] for x in (12, 36)]

    for active, red, wall in (((), BLUE, "#b4a890"), ((1,), GREEN, "#b4a890"), ((2,), BLUE, WALL)):
        (a, b), expected = result(*active), [hex_to_lab(color)[1:] for color in (red, wall)]
        direction, length = expected[0] / np.linalg.norm(expected[0]), np.linalg.norm(a)
        assert length > 15 and np.abs(a - length * direction).max() < 1e-3, "chroma may be limited at this lightness"
        assert np.abs(b - expected[1]).max() < 0.5
    assert [color.color for color in colors.in_shot([1]).colors] == [GREEN, "#b4a890"]


def test_nothing_changes_where_no_palette_is_active():
    colors = ScopedColors([scoped("shot_2", locked(RED))], LEARNED)
    assert colors.in_shot(()).digest == "" and colors.in_shot([0]).digest and colors.has_locked
    assert not ScopedColors([scoped("", NamedColor("ruby", "fur", RED))], LEARNED).has_locked


def test_a_lock_wins_over_a_name_in_another_file_of_the_same_scope():
    colors = ScopedColors([scoped("", NamedColor("ruby", "fur", RED)), scoped("", locked(BLUE, RED))], LEARNED)
    L, lab = flat(RED)
    assert colors.in_shot(()).apply(lab[..., 1:], L)[12, 12, 1] < -30


@pytest.mark.parametrize("first, second", [("", ""), ("shots_2-5", "shots_4-9"), ("shots_4-9", "shot_4")])
def test_contradictions_in_the_same_shots_are_refused(first, second):
    palettes = [scoped(first, locked(BLUE, RED)), scoped(second, locked(GREEN, RED))]
    with pytest.raises(UserError, match=f"^{first}/a.ini and {second}/a.ini give {RED} two different colors in the"):
        ScopedColors(palettes, LEARNED)
    ScopedColors([palettes[0], scoped("shot_1", locked(GREEN, RED))], LEARNED)
    ScopedColors([palettes[0], scoped(second, locked(BLUE, RED))], LEARNED)


def test_the_digest_covers_scopes_and_frames():
    frame = np.zeros((4, 4), np.float32)
    digests = {ScopedColors([scoped(*args[:-1], frame=args[-1])], LEARNED).digest for args in (
        ("shot_1", locked(RED), None), ("shot_2", locked(RED), None), ("shot_2", locked(BLUE), None),
        ("only_this_shot", locked(RED), frame), ("only_this_shot", locked(RED), frame + 1))}
    assert len(digests) == 5
