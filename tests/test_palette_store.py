"""Tests of the palette of a project: edits, undo, and colors that the checkpoint knows in addition."""

import numpy as np
import pytest

from editing.palette_store import (
    PaletteStore, add_learned, edit_color, find_color, own_colors, rename_character, with_scope)
from editing.project import open_project
from fileio.images import read_image
from fileio.palettes import NamedColor
from utils import UserError

FUR, EYES, SKY = (NamedColor("ruby", "fur", "#ee6c80"), NamedColor("ruby", "eyes", "#30a040"),
                  NamedColor("series", "color 1", "#aad0f0"))


def test_edits_are_saved_and_undone(tmp_path):
    store = PaletteStore(tmp_path)
    assert store.colors() == [] and not store.can_undo()
    versions = [[FUR, EYES], edit_color([FUR, EYES], 0, "ruby", "fur", "#2255CC", False)]
    assert versions[1][0] == NamedColor("ruby", "fur", "#2255cc", True, "#ee6c80")
    for colors in (*versions, versions[1]):  # the last one changes nothing
        store.save(colors)
    store = PaletteStore(tmp_path)  # the studio is started again
    assert store.colors() == versions[1]
    with pytest.raises(UserError, match="two different colors"):
        store.save([*versions[1], NamedColor("tilo", "nose", "#ee6c80", True)])
    with pytest.raises(UserError, match="cannot write"):
        store.save([FUR._replace(name="a = b")])
    assert store.colors() == versions[1], "nothing is stored that cannot be read"
    store.undo()
    assert store.colors() == versions[0]
    store.undo()
    assert not store.path().exists() and not store.can_undo()
    with pytest.raises(UserError, match="nothing to undo"):
        store.undo()


def test_a_palette_for_a_shot_is_saved_with_its_frame_and_undone(tmp_path):
    store, gray = PaletteStore(tmp_path), np.full((40, 60, 3), 90, np.uint8)
    store.save([FUR, EYES, SKY])
    path = store.path("only_this_shot", range(20, 31))
    night = FUR._replace(color="#402050", locked=True, replaces=FUR.color)
    shown = with_scope(store.colors(), [night._replace(character="ruby r.", name="old name")])
    assert shown == [night, EYES, SKY] and own_colors(store.colors(), shown) == [night]
    store.save([night], path, gray)
    assert path.name == "frame_000025.ini" and store.path("only_this_shot", range(24, 28)) == path
    assert store.path("similar_shots", range(20, 31)) != path != store.path("only_this_shot", range(31, 40))
    film, shot = store.palettes()
    assert (film.scope, shot.scope, list(shot.colors), shot.frame.shape) == ("", "only_this_shot", [night], (40, 60))
    key = store.key(store.palettes())
    assert len(key) == 2 and "fur" not in str(key)
    store.save([], path, gray)  # equal to the film again
    assert [each.scope for each in store.palettes()] == [""] and store.key(store.palettes()) == []
    store.undo()
    assert store.key(store.palettes()) == key and read_image(path.with_suffix(".png")).shape == (40, 60, 3)
    store.undo()
    assert [each.scope for each in store.palettes()] == [""] and not list(path.parent.iterdir())
    for scope in ("../..", "shot_7", "only_this_shot"):
        with pytest.raises(UserError, match="is not a scope of a shot"):
            store.path(scope)


def test_colors_are_renamed_locked_exchanged_and_restored():
    colors = [FUR, EYES, SKY]
    colors = edit_color(colors, find_color(colors, "ruby", "fur"), "ruby", " nose ", "#ee6c80", True)
    assert colors[0] == NamedColor("ruby", "nose", "#ee6c80", True)
    exchanged = edit_color(colors, 0, "ruby", "nose", "#102030", True)
    assert exchanged[0] == NamedColor("ruby", "nose", "#102030", True, "#ee6c80")
    assert edit_color(exchanged, 0, "ruby", "nose", "#304050", True)[0].replaces == "#ee6c80"
    assert edit_color(exchanged, 0, "ruby", "fur", "#ee6c80", False) == [FUR, EYES, SKY]
    moved = edit_color(colors, 2, "ruby", "sky", "#aad0f0", False)
    assert [each.character for each in rename_character(moved, "ruby", "Ruby R.")] == ["Ruby R."] * 3
    for function, arguments, message in (
            (edit_color, (0, "ruby", "eyes", "#ee6c80", False), "has a color 'eyes' already"),
            (edit_color, (0, "ruby", " ", "#ee6c80", False), "is empty"),
            (edit_color, (0, "ruby", "fur", "red", False), "is not a color"),
            (rename_character, ("ruby", "series"), "a character 'series' already"),
            (rename_character, ("ruby", ""), "is empty"), (find_color, ("tilo", "fur"), "has no color 'fur'")):
        with pytest.raises(UserError, match=message):
            function(colors, *arguments)


def test_learned_colors_are_added_unless_they_are_named_already():
    saved = [FUR._replace(color="#102030", locked=True, replaces="#ee6c80"), SKY._replace(color="#fefefe")]
    learned = [NamedColor("ruby", "color 1", "#ec6c82"), NamedColor("series", "color 1", "#205020"), SKY]
    assert add_learned(saved, learned) == [*saved, NamedColor("series", "color 2", "#205020"),
                                           NamedColor("series", "color 3", "#aad0f0")]


def test_names_do_not_change_the_colors_of_the_film(tmp_path):
    with open_project(tmp_path / "project") as project:
        key = project.coloring_key()
        project.palette.save([FUR, EYES])
        assert project.coloring_key() == key
        project.palette.save([FUR._replace(locked=True), EYES])
        locked = project.coloring_key()
        project.palette.save([EYES, FUR._replace(locked=True, name="hair", character="hero")])
        assert project.coloring_key() == locked != key
        project.palette.save([FUR._replace(locked=True, color="#102030", replaces=FUR.color), EYES])
        assert project.coloring_key() not in (locked, key)
