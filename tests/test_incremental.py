"""Incremental rendering: the shots that change with other references, and the shots that are copied."""

import json
import os
import shutil
from dataclasses import replace

import av
import cv2
import numpy as np
import pytest
import torch
from drawn import StubPredictor, draw_shots, planes_in
from test_transitions import FIRST_LENGTH, SECOND_LENGTH, draw_shot, join_shots, write_film
from test_train import flags

import train

from resources.draw_episodes import draw_frame

from colorizer.memory.frame_retrieval import find_nearest_frames, quantize_embeddings
from colorizer.memory.spatial_memory import SpatialMemory
from colorizer.palette_scopes import read_palettes
from colorizer.predictor import Predictor
from colorizer.series_colors import learned_colors
from config import FilmConfig, SpatialConfig, TrainConfig
from dataset import lab_to_rgb, rgb_to_lab
from fileio.images import write_image
from film.io.image_sequence import find_sequences
from film.io.video import VideoFile
from film.render import pipeline, rendering
from film.render.incremental import find_changed_shots
from film.render.rendering import color_film
from film.render.segments import is_complete, pack_embeddings, read_completion, segment_folder, unpack_embeddings
from networks import MemoryNetwork
from test import main, refuse_shot_numbers
from utils import UserError

SCENES = (5, 70, 170, 215)  # frames of the drawn episode 2: forest, room, beach and street
FRAMES, FILM = 4, "films/film.mkv"  # of a shot; in home


def scene(number, moved=0):
    """Return a frame of a scene, RGB uint8 (96, 128, 3)."""
    return cv2.resize(draw_frame(2, SCENES[number] + moved), (128, 96), interpolation=cv2.INTER_AREA)


def recolored(number, moved, sign=1):
    """Return a frame of a scene with its own lightness and other hues."""
    lab = rgb_to_lab(scene(number, moved))
    lab[..., 1], lab[..., 2] = sign * lab[..., 2], -sign * lab[..., 1]
    return lab_to_rgb(lab)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a grayscale film of all scenes, the checkpoint of a small network trained on another episode,
    and in paint/ a colored frame of each scene."""
    home = tmp_path_factory.mktemp("home")
    pictures = [cv2.resize(draw_frame(1, 55 * number + 8), (128, 96)) for number in range(11)]
    for number, picture in enumerate(pictures):
        write_image(home / ("val" if number < 2 else "train") / f"{number}.png", picture)
    (home / "films").mkdir()
    with av.open(str(home / FILM), "w") as film:
        stream = film.add_stream("libx264", rate=12, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for number in range(len(SCENES)):
            write_image(home / "paint" / f"{number}.png", scene(number, 2)[..., [2, 0, 1]])
            for moved in range(FRAMES):
                gray = cv2.cvtColor(cv2.cvtColor(scene(number, moved), cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
                film.mux(stream.encode(av.VideoFrame.from_ndarray(gray, format="rgb24")))
        film.mux(stream.encode(None))
    train.train(TrainConfig(data_path=str(home), save_path=str(home / "run"), width=4, batch_size=4, epoch_steps=4,
                            end_epoch=1, num_workers=0, img_size=128, mem_size=8, use_palette_classifier=False,
                            spatial=SpatialConfig(attended_frames=2)))
    return home


@pytest.fixture(scope="module")
def plain(home, tmp_path_factory):
    """A folder with the film colored without references. Tests must not change it."""
    folder = tmp_path_factory.mktemp("plain")
    color(home, folder)
    return folder


@pytest.fixture
def work(plain, tmp_path):
    """A copy of ``plain``."""
    shutil.copytree(plain, tmp_path / "work")
    return tmp_path / "work"


def references(home, folder, *numbers):
    """Copy the colored frames of some scenes into a folder; return it."""
    for number in numbers:
        folder.mkdir(exist_ok=True)
        shutil.copy(home / "paint" / f"{number}.png", folder)
    return folder


def color(home, folder, **settings):
    main(flags(checkpoint=home / "run" / "best.pt", input=home / FILM, output=folder / "film.mkv", suggest=0,
               match_references=False, **settings))


def predictor(home, folder=None, palette=None):
    return Predictor.load(home / "run" / "best.pt", references=folder, match_references=False, palette=palette)


def contents(folder):
    """Return {name: content} of the files in a folder, without running times."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    files["film_metrics.json"] = {**json.loads(files["film_metrics.json"]), "seconds": 0}
    files["film_shots.jsonl"] = [{**json.loads(line), "seconds": 0} for line in files["film_shots.jsonl"].splitlines()]
    return files


def test_batch_size_and_threads_do_not_change_a_byte(home, tmp_path, monkeypatch):
    """The film has one shot of 16 frames, of which keyframes are selected in windows of 5."""
    monkeypatch.setattr(pipeline, "WINDOW", 5)
    results = []
    for batch_size, threads in ((3, 1), (64, 2)):
        torch.set_num_threads(threads)
        output = tmp_path / f"{batch_size}.mp4"
        color_film(predictor(home), VideoFile(home / FILM), output,
                   FilmConfig(batch_size=batch_size, join_at=range(FRAMES, 4 * FRAMES, FRAMES)))
        results.append(output.read_bytes())
    torch.set_num_threads(1)
    assert results[0] == results[1]


def test_propagated_colors_color_in_between_frames_too(home):
    """Each frame gets its own ones, in proportion to their confidence."""
    with_memory = predictor(home)
    lab = cv2.resize(rgb_to_lab(scene(0)), (with_memory.side, with_memory.side))
    lightness, side = np.stack([lab[..., 0]] * 6), with_memory.config.side

    def known(confidence):
        return lambda number: np.stack([np.full((side, side), value, np.float32)
                                        for value in (number / 11, -number / 22, confidence)])

    palette = with_memory.palette([lab])
    alone, sure, unsure = (with_memory.predict_with_embeddings(lightness, palette, each)[0]
                           for each in (None, known(1), known(0)))
    for number in range(6):
        assert np.allclose(sure[number], (10 * number, -5 * number), atol=1)
    assert np.allclose(unsure, alone, atol=1e-3) and not np.allclose(alone, sure, atol=2)


# ---------------------------------------------------------------------------------------------------------------------
# Changed shots


def test_a_changed_palette_updates_the_film(home, plain, work, tmp_path):
    """Locked colors give the bytes of a film that is colored with them at once; names change nothing."""
    path, fresh = tmp_path / "colors.ini", tmp_path / "fresh"
    main(flags(checkpoint=home / "run" / "best.pt", save_palette=path))
    with pytest.raises(UserError, match="colors.ini exists already; pass --overwrite True or a different --save_pal"):
        main(flags(checkpoint=home / "run" / "best.pt", save_palette=path))
    assert find_changed_shots(predictor(home, palette=path), VideoFile(home / FILM), work / "film.mkv") == []
    path.write_text(path.read_text().replace("\ncolor 1 = ", "\ncolor 1 = #d02838 replaces "))
    plain_one, locked = predictor(home), predictor(home, palette=path)
    assert plain_one.base_identity == locked.base_identity != locked.identity
    assert (plain_one.colorize([scene(0)])[0] != locked.colorize([scene(0)])[0]).any()
    color(home, work, palette=path)
    color(home, fresh, palette=path)
    assert (work / "film.mkv").read_bytes() == (fresh / "film.mkv").read_bytes() != (plain / "film.mkv").read_bytes()
    color(home, work)
    assert (work / "film.mkv").read_bytes() == (plain / "film.mkv").read_bytes()


def test_a_palette_with_a_scope_changes_the_shots_of_its_scope_only(home, plain, tmp_path):
    """The scope is a folder; its frame shows the second shot."""
    changed, base = {}, predictor(home)
    lines = [f"color {number} = #d02838 replaces {color.color}\n"
             for number, color in enumerate(learned_colors(base.colorizer, base.frame_names))]
    for scope in ("only_this_shot", "shots_2-3", "shot_8"):
        write_image(tmp_path / scope / "only_this_shot" / "colors.png", scene(1, 2))
        (tmp_path / scope / scope).mkdir(exist_ok=True)
        (tmp_path / scope / scope / "colors.ini").write_text("".join(["[series]\n", *lines]))
        scoped = replace(base, warnings=set())
        scoped.use_palettes(read_palettes(tmp_path / scope))
        assert scoped.needs_whole_film == (scope == "only_this_shot") and scoped.identity != base.identity
        changed[scope] = find_changed_shots(scoped, VideoFile(home / FILM), plain / "film.mkv")
    assert changed == {"only_this_shot": [1], "shots_2-3": [1, 2], "shot_8": []}


def test_only_shots_with_another_lookup_digest_are_colored_again(home, plain, tmp_path, capsys, monkeypatch):
    """The result is bitwise that of coloring all shots, also after the references are removed again."""
    work, colored = tmp_path / "work", []
    shutil.copytree(plain, work)
    folder = references(home, tmp_path / "references", 1, 3)
    expected = find_changed_shots(predictor(home, folder), VideoFile(home / FILM), work / "film.mkv")
    assert {1, 3} <= set(expected) and len(expected) < len(SCENES)
    color_shot = rendering.FilmRendering._color_shot
    monkeypatch.setattr(rendering.FilmRendering, "_color_shot",
                        lambda self, number, *rest: (colored.append(number), color_shot(self, number, *rest))[1])
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(rendering, "analyze_film", None)  # the analysis is not repeated
        color(home, work, references=folder)
    assert colored == expected and f"{len(expected)} of 4 shots are colored again: " in capsys.readouterr().out
    (tmp_path / "all").mkdir()
    color(home, tmp_path / "all", references=folder)
    assert contents(work) == contents(tmp_path / "all")
    before, after = planes_in(plain / "film.mkv"), planes_in(work / "film.mkv")
    changed = {index // FRAMES for index, (one, other) in enumerate(zip(before, after, strict=True))
               if not all(map(np.array_equal, one, other))}
    assert {1, 3} <= changed <= set(expected)
    (folder / "3.png").unlink()
    one_less = find_changed_shots(predictor(home, folder), VideoFile(home / FILM), work / "film.mkv")
    assert 3 in one_less and 1 not in one_less
    color(home, work)  # without references
    assert contents(work) == contents(plain)
    assert find_changed_shots(predictor(home), VideoFile(home / FILM), work / "film.mkv") == []


def test_lookups_do_not_depend_on_other_entries_of_the_batch_and_the_memory():
    """The selected frames and the values read are bitwise the same."""
    generator = torch.Generator().manual_seed(0)
    features, embeddings = torch.rand(30, 1280, generator=generator), torch.rand(9, 1280, generator=generator)
    net = SpatialMemory(1280, 1, 30, SpatialConfig(attended_frames=4))
    net.embeddings[:] = torch.nn.functional.normalize(features, dim=1)
    together = find_nearest_frames(net, quantize_embeddings(embeddings)).slots
    alone = [find_nearest_frames(net, quantize_embeddings(embedding[None])).slots for embedding in embeddings]
    assert torch.equal(torch.cat(alone), together)
    unlike = torch.zeros(7, 1280)
    unlike[:, 5] = 1
    net.embeddings = torch.cat([net.embeddings, unlike.half()])
    net.pinned = torch.cat([net.pinned, torch.ones(7).bool()])
    assert torch.equal(find_nearest_frames(net, quantize_embeddings(embeddings)).slots, together)
    memory, query = MemoryNetwork(512, 40, 40, 0.1, 0.5), torch.rand(1, 512, generator=generator)
    memory.keys[:], memory.used[:] = torch.rand(40, 512, generator=generator), True
    answer = memory.read(query, 3)
    memory.pin(-torch.ones(3, 512), torch.zeros(3, 313))
    assert all(map(torch.equal, memory.read(query, 3), answer))


def test_packing_of_embeddings_is_lossless():
    embeddings = np.random.default_rng(0).integers(-256, 257, (50, 1280)).astype(np.int16)
    unpacked = unpack_embeddings(pack_embeddings(embeddings))
    assert np.array_equal(unpacked, embeddings) and unpacked.dtype == np.int16
    assert unpack_embeddings(pack_embeddings(np.zeros((0, 0), np.int16))).shape == (0, 0)


# ---------------------------------------------------------------------------------------------------------------------
# Containers, codecs and interrupted runs


class Corrected(StubPredictor):
    """Adds ``change`` to the colors of shots that are lighter than ``above``, as references would."""

    base_identity = "stub"

    def __init__(self, change=0, above=60, **settings):
        super().__init__(**settings)
        self.change, self.above, self.identity = change, above, f"stub, {change} above {above}"

    def _change(self, palette):
        return np.float32(self.change * (palette.color_feature[0, 0].item() > self.above))

    def predict(self, L, palette):
        ab, known = super().predict(L, palette)
        return ab + self._change(palette), known

    def lookup_digest(self, palette, embeddings):
        return f"{self._change(palette)} for {len(embeddings)} frames"


SHOTS = [(60, 7), (200, 6), (110, 7), (190, 5)]


def color_shots(source, output, change=0, predictor=None, **settings):
    predictor = predictor or Corrected(change)
    color_film(predictor, VideoFile(source), output, FilmConfig(batch_size=4, **settings))
    return predictor.frames


@pytest.mark.parametrize("suffix, codec", [(".mp4", None), (".mkv", None), (".webm", None), (".mkv", "hevc")])
def test_unchanged_shots_are_copied_from_all_containers_and_codecs(tmp_path, suffix, codec):
    source, output, whole = draw_shots(tmp_path / "in.mkv", SHOTS), tmp_path / f"out{suffix}", tmp_path / f"all{suffix}"
    assert color_shots(source, output, codec=codec) == 25
    before = output.read_bytes()
    assert color_shots(source, output, 20, codec=codec) == 11  # the second and the fourth
    color_shots(source, whole, 20, codec=codec)
    assert output.read_bytes() == whole.read_bytes() != before
    assert len(planes_in(output)) == 25
    assert color_shots(source, output, codec=codec) == 11
    assert output.read_bytes() == before
    assert not list(segment_folder(output).glob("*.segment"))  # the frames are stored once


def test_only_changed_shots_of_the_confidence_video_are_encoded(tmp_path):
    """Without confidence in between, all of its parts are encoded again."""
    source, output, whole = draw_shots(tmp_path / "in.mkv", SHOTS), tmp_path / "out.mkv", tmp_path / "all.mkv"

    def parts():
        return {path.stem: path.stat().st_mtime_ns for path in segment_folder(output).glob("*.confidence")}

    color_shots(source, output, confidence=True)
    before = parts()
    assert color_shots(source, output, 20, confidence=True) == 11
    assert {int(stem) for stem, _ in set(parts().items()) - set(before.items())} == {1, 3}
    color_shots(source, whole, 20, confidence=True)
    videos = [path.with_name(f"{path.stem}_confidence.mp4").read_bytes() for path in (output, whole)]
    assert videos[0] == videos[1] and output.read_bytes() == whole.read_bytes()
    with pytest.raises(Stop):
        color_shots(source, output, predictor=Corrected(0, fail_at=9, action=stop))
    assert set(parts()) == {"000000", "000002", "000003"}  # that of the second shot showed other colors
    assert color_shots(source, output, 0) == 5 and not parts()
    assert color_shots(source, output, 20, confidence=True) == 25 and len(parts()) == 4


class Stop(Exception):
    pass


def stop():
    raise Stop


def test_an_interrupted_update_continues(tmp_path):
    source, output, other = draw_shots(tmp_path / "in.mkv", SHOTS), tmp_path / "out.mp4", tmp_path / "other.mp4"
    color_shots(source, output)
    color_shots(source, other, 20)
    before, after = output.read_bytes(), other.read_bytes()
    with pytest.raises(Stop):
        color_shots(source, output, predictor=Corrected(20, fail_at=9, action=stop))
    assert output.read_bytes() == before and not is_complete(VideoFile(source), output)
    assert color_shots(source, output, 20) == 5  # the second shot was finished
    assert output.read_bytes() == after and is_complete(VideoFile(source), output)
    with pytest.raises(Stop):
        color_shots(source, output, predictor=Corrected(0, fail_at=9, action=stop))
    assert color_shots(source, output, 20) == 6 and output.read_bytes() == after  # the fourth shot is still joined
    third = tmp_path / "third.mp4"
    with pytest.raises(Stop):
        color_shots(source, third, predictor=Corrected(0, fail_at=12, action=stop))
    assert color_shots(source, third, 20) == 18 and third.read_bytes() == after  # the first shot was finished


def test_the_old_film_stays_if_it_cannot_be_replaced(tmp_path, monkeypatch):
    """The disk is full after all shots are colored; the next run only joins them."""
    source, output = draw_shots(tmp_path / "in.mkv", SHOTS), tmp_path / "out.mkv"
    color_shots(source, output)
    before = output.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda one, other: (_ for _ in ()).throw(OSError(28, "No space left on device"))
                      if str(other) == str(output) else os.rename(one, other))
        with pytest.raises(UserError, match="No space left on device; free disk space"):
            color_shots(source, output, 20)
    assert output.read_bytes() == before
    assert color_shots(source, output, 20) == 0 and output.read_bytes() != before


def test_a_shot_with_a_dissolve_changes_with_the_next_shot(tmp_path):
    frames = join_shots("dissolve", [np.minimum(frame, 90) for frame in draw_shot(1, FIRST_LENGTH)],
                        [np.maximum(frame, 120) for frame in draw_shot(2, SECOND_LENGTH)])[0]
    source, output, whole = write_film(tmp_path / "in.mkv", frames), tmp_path / "out.mkv", tmp_path / "all.mkv"
    records = color_film(Corrected(), VideoFile(source), output)
    dark, light = sorted(record.embedding[0] for record in records)
    assert records[0].transition_frames and light > dark + 5
    for above, changed in (((dark + light) / 2, [0, 1]), (dark - 1, [0, 1]), (light + 1, [])):
        assert find_changed_shots(Corrected(20, above), VideoFile(source), output) == changed
    color_film(Corrected(20, (dark + light) / 2), VideoFile(source), output)
    color_film(Corrected(20, (dark + light) / 2), VideoFile(source), whole)
    assert output.read_bytes() == whole.read_bytes()


def test_an_output_that_cannot_be_updated_is_not_replaced(tmp_path):
    source, output = draw_shots(tmp_path / "in.mkv", SHOTS), tmp_path / "out.mp4"
    color_shots(source, output)
    with pytest.raises(UserError, match="out.mp4 exists already"):
        color_shots(source, output)  # nothing has changed
    with pytest.raises(UserError, match="out.mp4 exists already"):
        color_shots(source, output, 20, crf=30)
    assert find_changed_shots(Corrected(20), VideoFile(source), output, FilmConfig(crf=30)) is None
    other = Corrected(20)
    other.base_identity = "another checkpoint"
    with pytest.raises(UserError, match="out.mp4 exists already"):
        color_shots(source, output, predictor=other)
    output.write_bytes(b"foreign")
    assert find_changed_shots(Corrected(20), VideoFile(source), output, FilmConfig(batch_size=4)) is None
    with pytest.raises(UserError, match="out.mp4 exists already"):
        color_shots(source, output, 20)
    assert output.read_bytes() == b"foreign"


def test_films_of_a_folder_are_updated_or_skipped(home, plain, tmp_path, capsys):
    """Films that were colored with other references are updated, and all others are skipped."""
    output, printed = tmp_path / "out", []
    shutil.copytree(plain, output)
    settings = {"checkpoint": home / "run" / "best.pt", "input": home / "films", "output": output, "suggest": 0,
                "match_references": False}
    folder = references(home, tmp_path / "references", 1)
    for added in ({}, {"references": folder}, {"references": folder}, {}, {}):
        main(flags(**settings, **added))
        printed.append([line.partition(" (")[0] for line in capsys.readouterr().out.splitlines()
                        if "colored again" in line or "skipped" in line])
    changed = "1 of 4 shots are colored again: 2"
    skipped = f"1 of {home / 'films'} are in {output} already and are skipped"
    assert printed == [[skipped], [changed], [skipped], [changed], [skipped]]
    assert read_completion(output / "film.mkv").references is False and contents(output) == contents(plain)


def test_image_sequences_are_not_updated(tmp_path):
    """An existing picture may have been edited by the user, so it is kept."""
    for number in range(14):
        write_image(tmp_path / "in" / f"{number:02d}.png", np.roll(scene(0), number, 1))
    (sequence,), _ = find_sequences(sorted((tmp_path / "in").iterdir()))
    output = tmp_path / "out" / sequence.stem
    color_film(Corrected(), sequence, output)
    assert sorted(path.name for path in segment_folder(output).iterdir()) == ["completion.pt", "manifest.json"]
    assert find_changed_shots(Corrected(20), sequence, output) is None


def test_a_reference_with_a_scope_changes_the_shots_of_its_scope_only(home, plain, tmp_path):
    """A reference shows the second shot. It also colors the third one if it is put into the folder of both."""
    changed = {}
    for scope in ("only_this_shot", "shot_2", "shots_2-3", "shots_4-9"):
        folder = tmp_path / scope
        write_image(folder / scope / "a.png", recolored(1, 2))
        changed[scope] = find_changed_shots(predictor(home, folder), VideoFile(home / FILM), plain / "film.mkv")
    assert changed == {"only_this_shot": [1], "shot_2": [1], "shots_2-3": [1, 2], "shots_4-9": [3]}


def test_two_palettes_of_one_scene_win_in_their_scopes(home, tmp_path):
    """The film shows a scene twice. Each shot gets the colors that its reference alone gives it."""
    frames = [cv2.resize(cv2.cvtColor(scene(number, moved), cv2.COLOR_RGB2GRAY), (256, 256))
              for number in (1, 0, 1) for moved in range(FRAMES)]
    source, colors = write_film(tmp_path / "in.mkv", frames), {}
    pictures = {"shot_1": recolored(1, 2), "shot_3": recolored(1, 2, -1)}
    for names in (["shot_1"], ["shot_3"], ["shot_1", "shot_3"]):
        folder = tmp_path / "_".join(names)
        for name in names:
            write_image(folder / name / "a.png", pictures[name])
        color_film(predictor(home, folder), VideoFile(source), folder / "out.mkv", FilmConfig(cut_at=[4, 8], crf=0))
        colors[len(names), names[0]] = [planes.rgb_uint8() for _, _, planes in VideoFile(folder / "out.mkv").read()]
    first, third, both = colors[1, "shot_1"], colors[1, "shot_3"], colors[2, "shot_1"]
    assert np.array_equal(both[:FRAMES], first[:FRAMES]) and np.array_equal(both[2 * FRAMES:], third[2 * FRAMES:])
    assert np.abs(both[2].astype(int) - both[2 * FRAMES + 2]).mean() > 5, "the colors differ"


def test_scopes_survive_in_a_checkpoint_except_for_shot_numbers(home, tmp_path):
    folder = tmp_path / "references"
    write_image(folder / "only_this_shot" / "a.png", recolored(1, 2))
    with_scope = predictor(home, folder)
    with_scope.save(tmp_path / "saved.pt")
    saved = Predictor.load(tmp_path / "saved.pt")
    assert saved.config.reference_scopes == ["only_this_shot"]
    shown, other = scene(1, 2), scene(0)
    without, *results = (each.colorize([shown, other]) for each in (predictor(home), with_scope, saved))
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0][0], without[0]) and np.array_equal(results[0][1], without[1])
    (folder / "only_this_shot").rename(folder / "shot_2")
    with pytest.raises(UserError, match="^shot_2 cannot be saved .* belong to one film"):
        predictor(home, folder).save(tmp_path / "other.pt")
    with pytest.raises(UserError, match="is for shots of one film, but there are 2 in --input"):
        refuse_shot_numbers(folder, 2)
    refuse_shot_numbers(folder, 1)


def test_contradicting_references_are_named(home, tmp_path, capsys):
    for name, sign in (("a.png", 1), ("b.png", -1)):
        write_image(tmp_path / name, recolored(1, 2, sign))
    both = predictor(home, tmp_path)
    both.warn_of_contradictions([[3, -1], [-1, 3]])
    assert not capsys.readouterr().err, "each has its own shot"
    both.warn_of_contradictions()
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: a.png and b.png contradict each other: a region is ")
