"""Cut lists: reading, writing, and agreement with PySceneDetect and editing programs to the frame."""

from fractions import Fraction

import numpy as np
import opentimelineio
import pytest
import scenedetect
from drawn import StubPredictor, draw_shots
from opentimelineio.opentime import RationalTime
from scenedetect.output import write_scene_list

from config import ColorConfig, FilmConfig
from film.analysis.cut_lists import cut_list_paths, read_cut_list, write_cut_list
from film.analysis.film_analysis import analyze_film, find_edited_boundaries
from film.analysis.transitions import Boundary
from film.io.video import FilmInfo, VideoFile
from film.render.rendering import color_film
from test import listed_boundaries
from utils import UserError, read_flags

NTSC = Fraction(24000, 1001)
CUTS = [1, 20, 21, 1799, 1800, 17_982, 99_999]  # also around the dropped timecodes of 30000/1001 frames per second
FRAMES = 100_000


def cuts(*frames):
    return [Boundary(frame, frame) for frame in frames]


def info(rate, timecode=""):
    return FilmInfo(rate, 1 / rate, 0.0, 0, timecode=timecode)


@pytest.mark.parametrize("rate", [Fraction(24), NTSC, Fraction(25), Fraction(30000, 1001), Fraction(50), Fraction(12)])
@pytest.mark.parametrize("suffix", ["csv", "edl", "otio"])
def test_cut_lists_round_trip_to_the_frame(tmp_path, suffix, rate):
    if suffix == "edl" and rate == 12:
        with pytest.raises(UserError, match="there are no timecodes of 12 frames per second for .edl files"):
            cut_list_paths(tmp_path / "a b.mp4", ["edl"], rate)
        return
    path, = cut_list_paths(tmp_path / "a b.mp4", [suffix], rate)
    for shots in (cuts(*CUTS, FRAMES), cuts(FRAMES)):
        write_cut_list(path, tmp_path / "a b.mp4", info(rate), shots, overwrite=True)
        assert read_cut_list(path, rate) == tuple(shots)
    assert path == tmp_path / f"a b.{suffix}"
    assert not cut_list_paths(tmp_path / f"{'ä' * 125}.mkv", [suffix], rate)[0].exists()  # the name is not too long


@pytest.mark.parametrize("suffix", ["csv", "edl", "otio"])
def test_timelines_hold_transitions_and_other_lists_the_cuts_at_their_end(tmp_path, suffix):
    path, shots = tmp_path / f"a.{suffix}", [Boundary(12, 20), Boundary(30, 30), Boundary(40, 52, True), *cuts(60)]
    write_cut_list(path, tmp_path / "a.mp4", info(NTSC), shots)
    assert list(read_cut_list(path, NTSC)) == (shots if suffix == "otio" else cuts(20, 30, 52, 60))


@pytest.mark.parametrize("with_cut_row", [True, False])
def test_csv_files_agree_with_those_of_pyscenedetect(tmp_path, with_cut_row):
    ends = [0, *CUTS, FRAMES]
    times = [scenedetect.FrameTimecode(end, 25.0) for end in ends]
    write_scene_list(str(tmp_path / "b.csv"), list(zip(times, times[1:], strict=False)), with_cut_row)
    assert list(read_cut_list(tmp_path / "b.csv", Fraction(25))) == cuts(*CUTS, FRAMES)
    write_cut_list(tmp_path / "a.csv", tmp_path / "a.mp4", info(Fraction(25)), cuts(*CUTS, FRAMES))
    expected = (tmp_path / "b.csv").read_text().splitlines()[with_cut_row:]
    assert (tmp_path / "a.csv").read_text().splitlines() == expected


EDL = """TITLE: Reel 1
FCM: {frame_code}
001  AX       V     C        00:00:00{0}00 00:00:02{0}00 01:00:00{0}00 01:00:02{0}00
* FROM CLIP NAME: episode.mov
002  AX       V     C        00:00:02{0}00 00:01:00{0}{1} 01:00:02{0}00 01:01:00{0}{1}
003  AX       V     C        00:01:00{0}{1} 00:02:00{0}05 01:01:00{0}{1} 01:02:00{0}05
"""


@pytest.mark.parametrize("rate, frame_code, separator, first, expected", [
    (Fraction(25), "NON-DROP FRAME", ":", "00", [50, 1500, 3005]),
    (NTSC, "NON-DROP FRAME", ":", "00", [48, 1440, 2885]),
    (Fraction(30000, 1001), "NON-DROP FRAME", ":", "00", [60, 1800, 3605]),
    (Fraction(30000, 1001), "DROP FRAME", ";", "02", [60, 1800, 3601]),
])
def test_a_list_of_an_editing_program_is_counted_from_its_beginning(tmp_path, rate, frame_code, separator, first,
                                                                    expected):
    (tmp_path / "a.EDL").write_text(EDL.format(separator, first, frame_code=frame_code))
    assert list(read_cut_list(tmp_path / "a.EDL", rate)) == cuts(*expected)


@pytest.mark.parametrize("name, content, message", [
    ("a.txt", "", "not a cut list; pass a .csv, .edl, .otio file to --cuts"),
    ("a.csv", "a,b\n1,2\n", "no columns Start Frame and End Frame"),
    ("a.csv", "Start Frame,End Frame\n1,x\n", "cannot read the cut list"),
    ("a.csv", "\x00\xff", "no columns"), ("a.otio", "{", "cannot read the cut list"),
    ("a.otio", '{"OTIO_SCHEMA": "Timeline.1"}', "cannot read the cut list"),
    ("a.edl", "001 spam", "cannot read the cut list"),
    ("missing.csv", None, "there is no file .*missing.csv; pass a cut list"),
])
def test_files_that_are_not_cut_lists_are_refused_in_one_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_cut_list(tmp_path / name, NTSC)
    assert "\n" not in str(error.value)


def test_a_list_with_another_rate_is_refused(tmp_path):
    write_cut_list(tmp_path / "a.otio", tmp_path / "a.mp4", info(Fraction(24)), cuts(7, 9))
    with pytest.raises(UserError, match="has 24 frames per second, but the film has 23.976"):
        read_cut_list(tmp_path / "a.otio", NTSC)


@pytest.mark.parametrize("rate, timecode, expected", [
    (Fraction(24), "10:00:00:00", "10:00:00:07 10:00:00:09"), (NTSC, "10:00:00:20", "10:00:01:03 10:00:01:05"),
    (Fraction(30000, 1001), "00:00:59;25", "00:01:00;04 00:01:00;06"), (Fraction(24), "?", "00:00:00:07 00:00:00:09"),
])
def test_clips_begin_at_the_time_code_of_the_film(tmp_path, rate, timecode, expected):
    for suffix in ("edl", "otio"):
        path = tmp_path / f"a.{suffix}"
        write_cut_list(path, tmp_path / "a.mov", info(rate, timecode), cuts(7, 9), overwrite=True)
        assert list(read_cut_list(path, rate)) == cuts(7, 9)
    assert expected in (tmp_path / "a.edl").read_text()
    clip = opentimelineio.adapters.read_from_file(str(tmp_path / "a.otio")).video_tracks()[0][1]
    assert clip.source_range.start_time - clip.media_reference.available_range.start_time == RationalTime(7, rate)
    assert clip.source_range.start_time.to_timecode() == expected[:11]


def test_an_existing_list_is_kept(tmp_path, capsys):
    path = tmp_path / "a.csv"
    write_cut_list(path, tmp_path / "a.mp4", info(NTSC), cuts(7, 9))
    write_cut_list(path, tmp_path / "a.mp4", info(NTSC), cuts(7, 9))
    assert not capsys.readouterr().err
    write_cut_list(path, tmp_path / "a.mp4", info(NTSC), cuts(8, 9))
    assert "a.csv exists and is kept; pass --overwrite True" in capsys.readouterr().err
    assert list(read_cut_list(path, NTSC)) == cuts(7, 9)


# ---------------------------------------------------------------------------------------------------------------------
# Coloring


@pytest.mark.parametrize("settings, expected", [
    ({"boundaries": cuts(5, 20)}, cuts(5, 20)), ({"boundaries": []}, []),
    ({"boundaries": [Boundary(3, 9, True)]}, [Boundary(3, 9, True)]),
    ({"boundaries": cuts(5, 20), "cut_at": [7, 20], "join_at": [5]}, cuts(7, 20)),
    ({"boundaries": [Boundary(0, 9), Boundary(6, 12)]}, [Boundary(1, 9), Boundary(10, 12)]),  # shots have a frame
])
def test_listed_cuts_replace_the_detection(settings, expected):
    frames = iter([np.zeros((256, 256), np.uint8)] * 30)
    assert list(find_edited_boundaries(frames, FilmConfig(**settings))) == expected


def test_a_film_is_colored_with_the_listed_shots(tmp_path):
    source = draw_shots(tmp_path / "in.mkv", [(60, 20), (200, 15)], rate=25)
    config = FilmConfig(boundaries=[Boundary(4, 9), *cuts(25, 35)])
    records = color_film(StubPredictor(), VideoFile(source), tmp_path / "out.mkv", config)
    assert [(shot.start_frame, shot.end_frame) for shot in records] == [(0, 9), (9, 25), (25, 35)]
    assert records.boundaries() == [Boundary(4, 9), *cuts(25, 35)]


@pytest.mark.parametrize("last, settings, warning", [
    (35, {}, ""), (29, {}, "the cut list ends 6 frames before the film"), (60, {"end": 1}, ""),
    (60, {}, "the cut list ends 25 frames after the film"),
])
def test_a_list_that_does_not_end_with_the_film_is_named_once(tmp_path, capsys, last, settings, warning):
    source = draw_shots(tmp_path / "in.mkv", [(60, 20), (200, 15)], rate=25)
    plan = analyze_film(VideoFile(source), StubPredictor(), FilmConfig(boundaries=cuts(9, last), **settings))
    assert [shot.end for shot in plan.shots] == sorted({9, min(last, len(plan.pts)), len(plan.pts)})
    printed = capsys.readouterr().err
    assert warning in printed and printed.count("\n") == bool(warning)


def test_flags_of_cut_lists(tmp_path):
    config = ColorConfig(**read_flags(ColorConfig, ["--cuts", "a.csv"], ""))
    with pytest.raises(UserError, match="lists the cuts of one film, but there are 2"):
        listed_boundaries(config, [(VideoFile("a.mkv"), tmp_path)] * 2)
    with pytest.raises(UserError, match="cannot write fcpxml; choose from csv, edl and otio"):
        cut_list_paths(tmp_path / "a.mp4", ["csv", "fcpxml"], NTSC)
