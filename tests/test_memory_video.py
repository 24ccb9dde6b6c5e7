"""The memory video: thumbnails of remembered frames, the mosaic, one frame, and a whole film."""

from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from drawn import draw_film, draw_picture, draw_shots, feature, fill, times_and_sound

from colorizer.colorizer import Colorizer
from colorizer.predictor import Predictor
from config import ModelConfig
from dataset import AB_BINS, AB_SCALE, REFERENCE_ID, backbone_input, resize, rgb_to_lab
from film.io.video import VideoFile
from film.report.memory_thumbnails import color_stripes, memory_thumbnails
from film.report.memory_video import (
    BACKGROUND, SLOT_COLORS, Layout, MemoryVideoRenderer, Mosaic, compose_frame, write_memory_video)


CONFIG = ModelConfig(img_size=128, width=4, mem_size=6, spatial_size=5, top_k=4)


SLOTS = ((40, 30), (-30, 30), (10, -40))  # ab of the three slots of the memory that are filled


def nearest_bin(*ab):
    return int(np.abs(AB_BINS - ab).sum(1).argmin())


@pytest.fixture(scope="module")
def colorizer():
    """An untrained colorizer that remembers five pictures, ids 10 to 14, written in another order."""
    torch.manual_seed(0)
    colorizer = Colorizer(CONFIG, backbone_weights=None).eval()
    labs = np.stack([resize(rgb_to_lab(draw_picture(seed)), 128, 128) for seed in range(5)]).transpose(0, 3, 1, 2)
    order = torch.tensor([2, 0, 1, 4, 3])
    L, ab = torch.from_numpy(labs[:, :1] / 100)[order], torch.from_numpy(labs[:, 1:] / AB_SCALE)[order]
    seen = colorizer.backbone(backbone_input(L))
    colorizer.spatial.write(torch.arange(5), seen, L, ab, order + 10)
    fill(colorizer.memory, torch.eye(512)[:3], [feature(nearest_bin(*color)) for color in SLOTS], [11, 13, 10])
    return colorizer


def predictor(colorizer):
    return Predictor(colorizer, torch.device("cpu"), "fp32")


def records(*ends, picture=None):
    """Return shots that end before these frames, all with the same embedding."""
    return [SimpleNamespace(box=None, end_frame=end, embedding=torch.ones(1280), ground_truth=picture) for end in ends]


def flat(*color, size=(72, 128)):
    return np.full((*size, 3), color, np.uint8)


def count_pixels(picture, color):
    """Return the number of pixels of exactly this color."""
    return int((picture == np.uint8(color)).all(-1).sum())


# ---------------------------------------------------------------------------------------------------------------------
# Thumbnails of remembered frames


def test_thumbnails_of_the_spatial_memory_are_its_pictures(colorizer):
    pictures = memory_thumbnails(colorizer)
    assert list(pictures) == [10, 11, 12, 13, 14]
    for i, picture in pictures.items():
        drawn = resize(draw_picture(i - 10), *picture.shape[:2])
        assert picture.shape == (96, 96, 3) and np.abs(picture.astype(int) - drawn).mean() < 4


def test_without_a_spatial_memory_thumbnails_show_the_colors_of_the_slots(colorizer):
    plain = SimpleNamespace(config=SimpleNamespace(use_spatial_memory=False), memory=colorizer.memory)
    pictures = memory_thumbnails(plain)
    assert list(pictures) == [10, 11, 13]
    for i, color in zip((11, 13, 10), SLOTS, strict=True):
        assert rgb_to_lab(pictures[i])[..., 1:].mean((0, 1)) == pytest.approx(color, abs=2)


@pytest.mark.parametrize("count, size", [(1, 32), (3, 65)])
def test_references_share_a_thumbnail(count, size):
    ids, values = torch.tensor([5] + [REFERENCE_ID] * count + [-1]), torch.stack([feature(60)] * (count + 2))
    values[count] = feature(200)
    used = torch.ones(count + 2, dtype=torch.bool)
    plain = SimpleNamespace(config=SimpleNamespace(use_spatial_memory=False),
                            memory=SimpleNamespace(ids=ids, used=used, values=values))
    pictures = memory_thumbnails(plain)
    assert list(pictures) == [REFERENCE_ID, 5] and pictures[REFERENCE_ID].shape == (size, size, 3)
    last = pictures[REFERENCE_ID][-32:, :32] if count == 3 else pictures[REFERENCE_ID]  # the third is the lower left
    assert np.array_equal(last, color_stripes(feature(200).numpy())) and not np.array_equal(last, pictures[5])


def test_color_stripes_are_as_wide_as_their_shares():
    v = np.zeros(313, np.float32)
    red, blue = nearest_bin(40, 30), nearest_bin(10, -40)
    v[red], v[blue] = 0.75, 0.25
    columns = rgb_to_lab(color_stripes(v))[0, :, 1:]
    near = [int((np.abs(columns - AB_BINS[i]).sum(1) < 4).sum()) for i in (red, blue)]
    assert near == [24, 8]


# ---------------------------------------------------------------------------------------------------------------------
# Mosaic


@pytest.mark.parametrize("count", [1, 7, 117, 3000])
def test_a_mosaic_shows_every_frame_without_overlap(count):
    mosaic = Mosaic({i: flat(10 + i % 200, 10 + i // 200, 200, size=(32, 32)) for i in range(count)}, 240, 1292)
    assert mosaic.picture.shape == (240, 1292, 3) and len(mosaic.boxes) == count
    taken = np.zeros(mosaic.picture.shape[:2], int)
    for i, (y0, y1, x0, x1) in mosaic.boxes.items():
        taken[y0:y1, x0:x1] += 1
        assert (mosaic.picture[y0:y1, x0:x1] == (10 + i % 200, 10 + i // 200, 200)).all() and y1 > y0 and x1 > x0
    assert taken.max() == 1 and (mosaic.picture[taken == 0] == BACKGROUND).all()
    assert taken.mean() > (0.3 if count == 1 else 0.5)


def test_borders_mark_the_recalled_frames_on_a_copy_of_the_mosaic():
    mosaic = Mosaic({i: flat(128, 128, 128, size=(32, 32)) for i in range(40)}, 200, 600)
    before = mosaic.picture.copy()
    bordered = mosaic.with_borders([3, 20, 39])
    assert np.array_equal(mosaic.picture, before)
    for i, color in zip((3, 20, 39), SLOT_COLORS, strict=True):
        y0, y1, x0, x1 = mosaic.boxes[i]
        assert (bordered[y0:y1, x0 - 1] == color).all() and (bordered[y1 + 1, x0:x1] == color).all()
        assert (bordered[(y0 + y1) // 2, (x0 + x1) // 2] == 128).all()
    twice = mosaic.with_borders([3, 3, -1])  # the best slot's color is drawn, and an empty slot has no border
    assert [count_pixels(twice, color) > 0 for color in SLOT_COLORS] == [True, False, False]


# ---------------------------------------------------------------------------------------------------------------------
# One frame and a film


@pytest.mark.parametrize("size", [(72, 128), (480, 854), (300, 100), (17, 23)])
@pytest.mark.parametrize("ground_truth", [True, False])
def test_a_frame_shows_each_picture_in_its_cell(size, ground_truth):
    layout = Layout(*size, ground_truth)
    mosaic = Mosaic({i: flat(9, 9, 9, size=(32, 32)) for i in range(12)}, *layout.mosaic, size[1] / size[0])
    slots = [flat(1, 100, 1, size=size), flat(1, 110, 1, size=size), flat(1, 120, 1, size=size)]
    color = (flat(250, 1, 1, size=size), flat(240, 1, 1, size=size)) if ground_truth else None
    sheet = compose_frame(layout, color, flat(77, 77, 77, size=size), slots, mosaic, [4, 5, -1])
    assert sheet.shape == (*layout.frame, 3) and sheet.shape[0] % 2 == sheet.shape[1] % 2 == 0

    def middle(color):
        return np.argwhere((sheet == np.uint8(color)).all(-1)).mean(0)

    rows = [[(77, 77, 77)], [(1, 100, 1), (1, 110, 1), (1, 120, 1)]]
    if ground_truth:
        rows[0] = [(250, 1, 1), (77, 77, 77), (240, 1, 1)]
    for y, row in enumerate(rows):
        for x, color in enumerate(row):
            assert middle(color) == pytest.approx(((y + 0.5) * sheet.shape[0] / (3 if ground_truth else 2),
                                                   (x + 0.5) * sheet.shape[1] / 3), abs=20)
    for color in SLOT_COLORS:  # around the result, in its label, and around the frame in memory where there is one
        assert count_pixels(sheet, color) > 1000


def draw_color_film(path, count=10, gray=0):
    """Write a film of different pictures, the first ``gray`` of them black."""
    with av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=5, options={"g": "3", "keyint_min": "3"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(count):
            picture = draw_picture(i) if i >= gray else np.zeros((64, 96, 3), np.uint8)
            film.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        film.mux(stream.encode(None))
    return path


def decode(path):
    with av.open(str(path)) as film:
        return [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]


def test_the_memory_video_of_a_film_in_color(colorizer, tmp_path):
    source = draw_color_film(tmp_path / "film.mp4")
    write_memory_video(predictor(colorizer), VideoFile(source), tmp_path / "memory.mp4", records(8, 10 ** 6, picture=1))
    frames = decode(tmp_path / "memory.mp4")
    assert times_and_sound(tmp_path / "memory.mp4")[0] == times_and_sound(source)[0]
    assert frames[0].shape == (*Layout(64, 96, True).frame, 3)
    height, width = 284, 426
    cells = [[frames[0][30 + y * (height + 30):][:height, 8 + x * (width + 8):][:, :width] for x in range(3)]
             for y in range(2)]
    ground_truth = resize(decode(source)[0], height, width)
    assert np.abs(cells[0][0].astype(int) - ground_truth).mean() < 6
    assert np.ptp(cells[0][1].astype(int), axis=-1).mean() < 4  # gray
    results = [cells[0][2], *cells[1]]
    inside = [result[10:-10, 10:-10].astype(int) for result in results]
    assert all(np.abs(a - b).mean() > 0.05 for i, a in enumerate(inside) for b in inside[i + 1:])
    for result, color in zip(cells[1], SLOT_COLORS, strict=True):
        assert np.abs(result[1:3, 20:-20].astype(int) - color).mean() < 20


def test_the_memory_video_of_a_grayscale_film_keeps_its_times(colorizer, tmp_path):
    source = draw_film(tmp_path / "film.mkv", times=(0, 1, 2, 5, 6))
    # The last frame belongs to no shot.
    write_memory_video(predictor(colorizer), VideoFile(source), tmp_path / "memory.mkv", records(2, 4))
    times, _, size = times_and_sound(tmp_path / "memory.mkv")
    assert times == times_and_sound(source)[0][:4]
    assert size == Layout(48, 64, False).frame[::-1]


def test_held_frames_are_rendered_once(colorizer, tmp_path, monkeypatch):
    counts, render = [], MemoryVideoRenderer.render
    monkeypatch.setattr(MemoryVideoRenderer, "render", lambda self, pictures, embedding: (
        counts.append(len(pictures)), render(self, pictures, embedding))[1])
    source = draw_shots(tmp_path / "film.mkv", [(90, 12)], hold=3, options={"crf": "0"})
    write_memory_video(predictor(colorizer), VideoFile(source), tmp_path / "memory.mp4", records(6, 10 ** 6))
    assert counts == [2, 2]
    frames = decode(tmp_path / "memory.mp4")
    change = [np.abs(a.astype(int) - b).mean() for a, b in zip(frames, frames[1:], strict=False)]
    assert len(frames) == 12 and max(change[i] for i in (0, 1, 3, 4)) < min(change[i] for i in (2, 5, 8))


def test_only_keyframes_are_predicted(colorizer, monkeypatch):
    """The others get their colors along the optical flow."""
    predicted, generate = [], Predictor.generate_ab
    monkeypatch.setattr(Predictor, "generate_ab", lambda self, lightness, *args: (
        predicted.append(len(lightness)), generate(self, lightness, *args))[1])
    renderer = MemoryVideoRenderer(predictor(colorizer), 64, 96, False)
    frames = renderer.render([draw_picture(0)] * 12, colorizer.memory.encoder.weight[0].detach())
    assert predicted == [2, 2, 2] and len(frames) == 12
    assert all(np.abs(frame.astype(int) - frames[0]).max() <= 2 for frame in frames)


def test_the_memory_is_read_once_for_a_shot(colorizer, monkeypatch):
    """The embedding of the shot chooses the slots, regardless of its single frames."""
    recalled = []
    monkeypatch.setattr("film.report.memory_video.compose_frame", lambda *args: recalled.append(args[-1]))
    renderer = MemoryVideoRenderer(predictor(colorizer), 64, 96, False)
    encoder = colorizer.memory.encoder
    for slot in range(3):
        embedding = encoder.weight[slot].detach()  # its query is nearest to the key along that axis
        renderer.render([draw_picture(0), draw_picture(1)], embedding)
    assert [ids[0] for ids in recalled] == [11, 11, 13, 13, 10, 10]
