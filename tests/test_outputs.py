"""Names of output files, unwritable folders, and locks."""

import errno
import fcntl
import os
import resource

import pytest
from drawn import StubPredictor, draw_film, draw_shots, times_and_sound

from config import ColorConfig, FilmConfig
from fileio.atomic import exclusive_lock
from fileio.outputs import MAX_STEM_BYTES, accompanying_path, check_writable, hidden_path, short_stem
from film.io.video import VideoFile
from film.render.rendering import color_film
from film.render.segments import is_complete
from test import find_inputs
from utils import UserError, read_flags

NAMES = ["Batman: pilot.mp4", "file:x.mkv", "夜" * 78 + ".mp4", "a%d %03d.mkv", "[ab]*?{}.mkv",
         "-i.mp4", " a  b .mkv", "pipe:1.mkv", "a#1?&=%20.mov", "it's \"so\"\n.mkv", "ä" * 125 + ".mkv"]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_films_may_have_any_name(tmp_path, monkeypatch, name):
    """Also relative names that FFmpeg takes for URLs or patterns, and those that leave no room for a suffix."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    draw_film(tmp_path / "drawn.mkv", times=range(4)).rename(tmp_path / "in" / name)
    (film, target), = find_inputs(tmp_path / "in", tmp_path / "out").films
    monkeypatch.chdir(tmp_path / "out")
    output = target.relative_to(tmp_path / "out")
    check_writable([output])
    color_film(StubPredictor(), film, output, FilmConfig(confidence=True))
    assert len(times_and_sound(output.absolute())[0]) == 4 and is_complete(film, output)
    assert sorted(os.listdir()) == sorted([name, accompanying_path(output, "shots.jsonl").name,
                                           accompanying_path(output, "confidence.mp4").name])


def test_long_stems_are_shortened_at_a_character_and_stay_different():
    assert short_stem("a" * MAX_STEM_BYTES) == "a" * MAX_STEM_BYTES
    long = ["夜" * 78, "夜" * 77 + "朝", "é" * 120, "\udcff" * 250]
    short = [short_stem(stem) for stem in long]
    assert len({*short}) == 4 and all(len(os.fsencode(stem)) <= MAX_STEM_BYTES for stem in short)
    assert long[0].startswith(short[0].partition("~")[0])


def test_a_value_that_begins_with_a_dash_needs_an_equals_sign():
    with pytest.raises(UserError, match="write --flag=VALUE if the value begins with a dash"):
        read_flags(ColorConfig, ["--output", "-i.mp4"], "")
    assert read_flags(ColorConfig, ["--output=-i.mp4"], "")["output"].name == "-i.mp4"


# ---------------------------------------------------------------------------------------------------------------------
# Unwritable folders


def test_outputs_that_cannot_be_written_are_refused_and_leave_no_file(tmp_path):
    (tmp_path / "file").touch()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    check_writable([tmp_path / "new" / "folder" / "a.mp4", tmp_path / "b.mp4"])
    with pytest.raises(UserError, match="File name too long; pass a different --output"):
        check_writable([tmp_path / ("夜" * 84 + ".mp4")])
    with pytest.raises(UserError, match="Not a directory; pass a --output in a writable folder"):
        check_writable([tmp_path / "file" / "a.mp4"])
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # stands in for a full disk
        with pytest.raises(UserError, match="disk with free space"):
            check_writable([tmp_path / "a.mp4"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"):
        check_writable([tmp_path / "a.mp4"])


# ---------------------------------------------------------------------------------------------------------------------
# Locks


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch, capsys, code):
    def flock(file, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    source = draw_shots(tmp_path / "in.mkv", [(60, 3)])
    color_film(StubPredictor(), VideoFile(source), tmp_path / "out.mkv")
    assert capsys.readouterr().err.count("cannot lock files") == 1
    assert not hidden_path(tmp_path / "out.mkv", "lock").exists()


def test_other_errors_of_a_lock_are_raised(tmp_path):
    with pytest.raises(OSError), exclusive_lock(tmp_path / "missing" / "lock" / ("a" * 300), "busy"):
        pass
