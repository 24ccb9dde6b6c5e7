"""Tests of palette files, and of locked and exchanged colors in pictures and films."""

import struct

import av
import cv2
import numpy as np
import pytest
import torch
from drawn import planes_in

from colorizer.confidence import Confidence
from colorizer.metrics import color_differences
from colorizer.named_colors import NamedColorConfig, NamedColors, Shades
from colorizer.palette_scopes import ScopedColors, ScopedPalette
from colorizer.predictor import Palette
from colorizer.series_colors import hex_to_lab
from config import FilmConfig
from dataset import lab_to_rgb, luma_lightness, rgb_to_lab
from fileio.images import read_image, write_image
from fileio.palettes import NamedColor, read_palette, write_palette
from film.analysis.plan import FilmPredictor
from film.io.chroma import ab_to_chroma
from film.io.planes import BT601, BT709, ColorEncoding, Planes
from film.io.video import VideoFile, read_frames
from film.render.pictures import color_pictures
from film.render.rendering import color_film
from film.report.evaluation import Evaluation
from utils import UserError

COLORS = [NamedColor("ルビー", "fur", "#ee6c80", True), NamedColor("ルビー", "Nose, dark: 2", "#603040"),
          NamedColor("Tilo the 2nd", "fur", "#12a89c", True, "#c8a014"), NamedColor("series", "Himmel blau", "#00ff7f")]


# ---------------------------------------------------------------------------------------------------------------------
# Files


@pytest.mark.parametrize("suffix", [".ini", ".gpl", ".ase", ".ASE"])
def test_a_written_palette_is_read_back(tmp_path, suffix):
    path = tmp_path / f"colors{suffix}"
    write_palette(path, [*COLORS[::2], *COLORS[1::2]])  # the characters are not in order
    keeps_locks = suffix == ".ini"
    assert read_palette(path) == (COLORS if keeps_locks else [
        color._replace(locked=True, replaces=None) for color in COLORS])


def test_an_ini_file_may_be_written_by_hand(tmp_path):
    path = tmp_path / "colors.ini"
    path.write_text("\ufeff# notes\n[Ruby]\n; more notes\nhair=#A01020,  Locked\nDress = #1040c0 replaces #a01021\n"
                    "eyes = #102030, locked, replaces #203040\nskin = #FFE0D0\n", encoding="utf-8")
    assert read_palette(path) == [
        NamedColor("Ruby", "hair", "#a01020", True), NamedColor("Ruby", "Dress", "#1040c0", True, "#a01021"),
        NamedColor("Ruby", "eyes", "#102030", True, "#203040"), NamedColor("Ruby", "skin", "#ffe0d0")]


def test_an_ase_file_of_another_program_is_read(tmp_path):
    """Blocks as in the description of the format: a color outside of groups, a group, an unknown block."""
    def text(name):
        return struct.pack(">H", len(name) + 1) + f"{name}\0".encode("utf-16-be")

    def block(kind, data):
        return struct.pack(">HI", kind, len(data)) + data

    blocks = [block(1, text("paper") + b"Gray" + struct.pack(">fH", 0.2, 0)), block(0xc001, text("ruby")),
              block(7, b"later"), block(1, text("fur") + b"RGB " + struct.pack(">3fH", 1, 0.5, 0, 1)),
              block(0xc002, b"")]
    path = tmp_path / "colors.ase"
    path.write_bytes(b"ASEF" + struct.pack(">HHI", 1, 0, len(blocks)) + b"".join(blocks))
    assert read_palette(path) == [NamedColor("series", "paper", "#333333", True),
                                  NamedColor("ruby", "fur", "#ff8000", True)]
    damaged = path.read_bytes()
    for length in range(4, len(damaged), 3):
        path.write_bytes(damaged[:length])
        with pytest.raises(UserError, match="is not a complete .ase file"):
            read_palette(path)
    path.write_bytes(damaged.replace(b"RGB ", b"CMYK"))
    with pytest.raises(UserError, match="'fur' has the color model 'CMYK'; convert the swatches to RGB"):
        read_palette(path)


@pytest.mark.parametrize("suffix, text, message", [
    (".ini", "hair = #a01020", "line 1 is not in a section"),
    (".ini", "[ruby]\nhair", "line 2 is not an entry"),
    (".ini", "[ruby]\nhair = red", r"'hair' of \[ruby\] is 'red'; write a color such as #a01020"),
    (".ini", "[ruby]\nhair = #a01020 lock", "is '#a01020 lock'; write"),
    (".ini", "[ruby]\nhair = #a01020 replaces blue", "is '#a01020 replaces blue'; write"),
    (".ini", "[ruby]\nhair = #a01020\nhair = #a01021", r"line 3 is a second 'hair' of \[ruby\]; rename it"),
    (".ini", "[ruby]\n[bo]\n[ruby]\n", r"line 3 begins \[ruby\] a second time"),
    (".ini", "[ruby]\n", "it contains no color"),
    (".ini", "[a]\nx = #000001 locked\n[b]\ny = #000002 replaces #000001",
     "'x' of 'a' and 'y' of 'b' give #000001 two different colors; remove one"),
    (".gpl", "GIMP palette\n", "line 1 is not 'GIMP Palette'"),
    (".gpl", "GIMP Palette\nName: x\n# y\n 1 2 3 a\n 1 2 256 b\n", "line 5 is ' 1 2 256 b'; write red, green and blue"),
    (".gpl", "GIMP Palette\nred\n", "line 2 is 'red'; write"),
    (".ase", "ASEX", "not a complete .ase file"),
    (".aco", "", r"use the suffix .ini, .gpl, .ase"),
])
def test_an_invalid_file_is_explained(tmp_path, suffix, text, message):
    path = tmp_path / f"colors{suffix}"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as raised:
        read_palette(path)
    assert str(path) in str(raised.value)


def test_a_missing_or_binary_file_is_explained(tmp_path):
    with pytest.raises(UserError, match="No such file.*pass an existing file"):
        read_palette(tmp_path / "colors.ini")
    (tmp_path / "colors.ini").write_bytes(b"\xff\xfe\0")
    with pytest.raises(UserError, match="cannot read the palette"):
        read_palette(tmp_path / "colors.ini")


@pytest.mark.parametrize("suffix, name", [(".ini", "a = b"), (".ini", "#1"), (".ini", ""), (".gpl", ""),
                                          (".gpl", "a\n1 2 3 b")])
def test_names_that_a_format_cannot_store_are_refused(tmp_path, suffix, name):
    with pytest.raises(UserError, match="cannot (write|read)"):
        write_palette(tmp_path / f"colors{suffix}", [NamedColor("ruby", name, "#000000")])
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------------------------
# Pictures

RED, BLUE, DARK_RED, GREEN, WALL = "#d02838", "#3060c0", "#701820", "#58a060", "#b0a890"


def flat(*colors, size=24):
    """Return the L and Lab of squares of colors side by side. The L is that of the luma."""
    rgb = np.concatenate([np.full((size, size, 3), list(bytes.fromhex(color[1:])), np.uint8) for color in colors], 1)
    return luma_lightness(rgb), rgb_to_lab(rgb)


def locked(color, replaces=None):
    return NamedColor("ruby", color, color, True, replaces)


def test_pixels_of_a_locked_color_get_exactly_its_chroma():
    L, lab = flat("#c83848", GREEN, WALL)  # the red is predicted not quite right
    ab = NamedColors([locked(RED)], ["#c83848", GREEN, WALL]).apply(lab[..., 1:], L)
    assert np.abs(ab[:, :24] - hex_to_lab(RED)[1:]).max() < 1e-4
    assert (ab[:, 24:] == lab[:, 24:, 1:]).all()


def test_the_nearest_of_all_colors_wins():
    near, other = "#c83c58", "#d04828"
    L, lab = flat(near, other)
    assert (NamedColors([locked(RED)], []).apply(lab[..., 1:], L) != lab[..., 1:]).any()
    for colors in ([locked(RED), NamedColor("bo", "fur", near), NamedColor("bo", "belly", other)],
                   [locked(RED), locked(near), locked(other)]):
        ab = NamedColors(colors, []).apply(lab[..., 1:], L)
        assert np.abs(ab - lab[..., 1:]).max() < 1e-4


def test_shades_of_one_hue_are_different_colors():
    L, lab = flat(RED, DARK_RED)
    ab = NamedColors([locked(BLUE, RED), locked(GREEN, DARK_RED)], [RED, DARK_RED]).apply(lab[..., 1:], L)
    assert ab[12, 12, 1] < -30 and ab[12, 36, 0] < -10
    shaded = np.dstack([L[:, :24], lab[:, :24, 1:]]) * 0.8  # the red in a shadow, as long as it is no color of its own
    ab = NamedColors([locked(BLUE, RED)], [RED]).apply(shaded[..., 1:], shaded[..., 0])
    assert ab[12, 12, 1] < -30


def test_names_alone_change_nothing():
    L, lab = flat(RED, GREEN)
    colors = NamedColors([NamedColor("ruby", "fur", "#c83848")], [RED])
    assert colors.apply(lab[..., 1:], L) is not None and not colors.locked
    assert (colors.apply(lab[..., 1:], L) == lab[..., 1:]).all()


def test_a_lock_also_holds_for_the_same_color_of_another_character():
    L, lab = flat("#c83848", GREEN)
    colors = [locked(RED, "#c83848"), NamedColor("bo", "cap", "#c83848"), NamedColor("bo", "nose", "#c83a4a")]
    ab = NamedColors(colors, ["#c83848", GREEN]).apply(lab[..., 1:], L)
    assert np.abs(ab[:, :24] - hex_to_lab(RED)[1:]).max() < 1e-4


def test_pixels_that_are_left_out_have_no_locked_color():
    """The result is that of a plain implementation, which computes the distances of all pixels to all colors."""
    rng, colors, shades = np.random.default_rng(0), [], []
    for color in map("#{:06x}".format, rng.integers(0, 1 << 24, 60)):
        new = Shades.of(color, NamedColorConfig())
        if all(min(new.distance(each, 0.2), each.distance(new, 0.2)) > 6 for each in shades):
            colors.append(color)
            shades.append(new)
    rgb = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    rgb[:32] = np.uint8([list(bytes.fromhex(color[1:])) for color in colors])[rng.integers(0, 9, (32, 64))]
    L, ab = luma_lightness(rgb), rgb_to_lab(rgb)[..., 1:] + np.float32(rng.normal(0, 3, (64, 64, 2)))
    level = np.rint(L * np.float32(2.55)).astype(np.uint8)
    distances = np.sqrt([each.squared_distance(cv2.split(ab), level, 0.2) for each in shades])
    first, second, *_ = np.sort([*distances[:3], distances[3:].min(0)], 0)
    weight = [x * x * (3 - 2 * x) for x in (((9 - first) / 4).clip(0, 1), ((second - first) / 3).clip(0, 1))]
    expected, nearest = ab.copy(), distances.argmin(0)
    for number, each in enumerate(shades[:3]):
        expected += np.where(nearest == number, weight[0] * weight[1], 0)[..., None] * (each.ab(level) - ab)
    result = NamedColors([locked(color) for color in colors[:3]], colors).apply(ab, L)
    assert len(colors) > 20 and np.abs(result - expected).max() < 1e-4
    assert 0.1 < (result != ab).any(-1).mean() < 0.4


@pytest.mark.parametrize("other", [RED, "#d12a3a"])
def test_the_same_color_of_two_characters_can_be_locked(other):
    L, lab = flat("#cd2a3a", GREEN)
    ab = NamedColors([locked(RED), locked(other)._replace(character="bo")], [GREEN]).apply(lab[..., 1:], L)
    assert min(np.abs(ab[:, :24] - hex_to_lab(color)[1:]).max() for color in (RED, other)) < 1e-4


def test_the_digest_changes_only_with_the_result():
    """It neither depends on names, nor on the order of entries, nor on names of colors that are known anyway."""
    colors, learned = [locked(BLUE, RED), locked(GREEN), NamedColor("ruby", "fur", "#e0c020")], [RED, GREEN, WALL]
    digests = [NamedColors(each, learned).digest for each in (
        colors, colors[::-1], [color._replace(name="a", character="b") for color in colors],
        [*colors, NamedColor("room", "wall", WALL)])]
    assert len(set(digests)) == 1
    assert len({*digests, *(NamedColors(each, known).digest for each, known in (
        (colors[:2], learned), (colors[1:], learned), ([locked(WALL, RED), *colors[1:]], learned),
        (colors, learned[:2])))}) == 5


def test_an_exchanged_color_leaves_no_fringe():
    """The edges are anti-aliased; the wall keeps its color."""
    mask = cv2.resize(cv2.circle(np.zeros((768, 768), np.uint8), (384, 384), 250, 255, -1), (96, 96),
                      interpolation=cv2.INTER_AREA)[..., None] / np.float32(255)
    old, new, wall = (np.float32(list(bytes.fromhex(color[1:]))) for color in (RED, BLUE, WALL))
    before, after = (np.rint(mask * color + (1 - mask) * wall).astype(np.uint8) for color in (old, new))
    ab = NamedColors([locked(BLUE, RED)], [RED, WALL]).apply(rgb_to_lab(before)[..., 1:], luma_lightness(before))
    error = np.linalg.norm(ab - rgb_to_lab(after)[..., 1:], axis=-1)
    assert error[mask[..., 0] == 1].max() < 1e-4 and error[mask[..., 0] == 0].max() < 1
    edge = (mask[..., 0] > 0) & (mask[..., 0] < 1)
    assert error[edge].mean() < 12 < np.linalg.norm(ab - rgb_to_lab(before)[..., 1:], axis=-1)[edge].mean()


def test_a_locked_color_next_to_an_exchanged_one_stays_exact():
    L, lab = flat(DARK_RED, RED, WALL)
    ab = NamedColors([locked(DARK_RED), locked(BLUE, RED)], [WALL]).apply(lab[..., 1:], L)
    assert np.abs(ab[:, :24] - hex_to_lab(DARK_RED)[1:]).max() < 1e-4 and ab[12, 30, 1] < -30


def test_the_boundary_between_two_colors_is_soft():
    """The result is continuous along a line through two locked colors."""
    first, second = hex_to_lab(RED), hex_to_lab("#d06828")
    share = np.linspace(-0.5, 1.5, 2000, dtype=np.float32)[None, :, None]
    lab = (first + share * (second - first)).astype(np.float32)
    ab = NamedColors([locked(RED), locked("#d06828")], []).apply(lab[..., 1:], lab[..., 0])
    assert np.linalg.norm(np.diff(ab, axis=1), axis=-1).max() < 0.5  # 20 times the steps of the colors; a jump is 16
    assert np.abs(ab[0, 500] - first[1:]).max() < 1e-4 and np.abs(ab[0, 1500] - second[1:]).max() < 0.1


def test_a_locked_color_that_the_series_does_not_have_is_named():
    assert NamedColors([locked(RED)], ["#c83848", GREEN]).unknown == []
    message, = NamedColors([locked(BLUE)], [RED, "#307090"]).unknown
    assert f"no color near the {BLUE} of {BLUE!r} of 'ruby'" in message and message.endswith("replaces #307090'")


# ---------------------------------------------------------------------------------------------------------------------
# Films


@pytest.mark.parametrize("matrix", [BT601, BT709])
@pytest.mark.parametrize("color", [RED, BLUE, GREEN, "#1040c0", "#ee6c80", "#f9c539", "#ee28e0", "#866dc8"])
def test_chroma_of_a_film_is_exact(color, matrix):
    encoding = ColorEncoding(8, False, matrix)
    rgb = np.full((8, 8, 3), list(bytes.fromhex(color[1:])), np.float32) / 255
    y = np.rint(16 + 219 * encoding.luma_of(rgb)).astype(np.uint8)
    ab = np.tile(hex_to_lab(color)[1:], (8, 8, 1))
    result = encoding.to_rgb(y, *ab_to_chroma(Planes(y, None, None, encoding), ab, 8, 8, encoding))
    lab = cv2.cvtColor(result, cv2.COLOR_RGB2Lab)
    assert color_differences(lab, np.tile(hex_to_lab(color), (8, 8, 1))).max() < 1


class TwoColors(FilmPredictor):
    """Predicts a red that is not quite right in the left half and green in the right half, with low confidence."""

    side, source, identity = 64, "memory", "two colors"

    def __init__(self, *colors, second=()):
        """``second`` are the colors of a palette for the second shot."""
        palettes = [ScopedPalette(colors), ScopedPalette(second, "shot_2")]
        self.named_colors = ScopedColors(palettes, ["#c83848", GREEN])

    def palette(self, labs):
        return Palette(torch.ones(1, 313) / 313, [], [], torch.zeros(3))

    def predict(self, L, palette):
        ab = np.empty((len(L), 32, 32, 2), np.float32)
        ab[:, :, :16], ab[:, :, 16:] = hex_to_lab("#c83848")[1:], hex_to_lab(GREEN)[1:]
        return ab, Confidence(*np.full((3, len(L), 8, 8), 0.3, np.float32))

    def requery_palettes(self, palettes, signatures):
        return [palette._replace(named_colors=[1] * (number == 1)) for number, palette in enumerate(palettes)]

    def predict_ab(self, labs):
        return self.predict(labs, None)

    def lock_colors(self, ab, L, active=()):
        return self.named_colors.in_shot(active).apply(ab, cv2.resize(L, ab.shape[:2]))


def write_film(path, rgb):
    """Write a film of 10 equal frames; return its path."""
    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("ffv1", rate=12)
        stream.width, stream.height, stream.pix_fmt = rgb.shape[1], rgb.shape[0], "yuv420p"
        for _ in range(10):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        output.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A grayscale film with the luma of red and green halves."""
    _, lab = flat(RED, GREEN, size=64)
    gray = np.repeat(cv2.cvtColor(lab_to_rgb(lab), cv2.COLOR_RGB2GRAY)[..., None], 3, 2)
    return write_film(tmp_path_factory.mktemp("films") / "gray.mkv", gray)


def test_locked_colors_are_exact_in_a_film(film, tmp_path):
    """The luma stays the same, and areas of the color differ by CIEDE2000 of at most 1 from it. In the second shot, its
    own palette wins."""
    color_film(TwoColors(locked(RED), second=[locked(BLUE, RED)]), VideoFile(film), tmp_path / "colored.mkv",
               FilmConfig(codec="ffv1", cut_at=[5]))
    for (y, *_), (source_y, *_) in zip(planes_in(tmp_path / "colored.mkv"), planes_in(film), strict=True):
        assert (y == source_y).all()
    _, lab = flat(RED, GREEN, size=64)
    for number, (_, frame) in enumerate(read_frames(tmp_path / "colored.mkv")):
        result = rgb_to_lab(frame.to_ndarray(format="rgb24"))
        difference = color_differences(result, lab)
        assert difference[:, 68:].max() <= 1
        assert difference[:, :60].max() <= 1 if number < 5 else result[:, :60, 2].max() < -25


@pytest.mark.parametrize("has_fallback", [False, True])
def test_chained_exchanges_are_applied_once_each(film, tmp_path, has_fallback):
    """Red becomes green, and green becomes blue, in a film and in a picture."""
    predictor, fallback = TwoColors(locked(GREEN, RED), locked(BLUE, GREEN)), None
    picture = lab_to_rgb(flat(RED, GREEN, size=64)[1])
    write_image(tmp_path / "picture.png", cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None].repeat(3, 2))
    if has_fallback:
        write_film(tmp_path / "other" / "gray.mkv", picture)
        write_image(tmp_path / "other" / "picture.png", picture)
        fallback = tmp_path / "other"
    color_film(predictor, VideoFile(film), tmp_path / "film.mkv", FilmConfig(codec="ffv1", fallback=fallback))
    _, shares = color_pictures(predictor, [(tmp_path / "picture.png", tmp_path / "result.png")], Evaluation(), False,
                               False, fallback)
    assert shares == [pytest.approx(1.0, abs=0.01) if has_fallback else None]
    for result in (next(read_frames(tmp_path / "film.mkv"))[1].to_ndarray(format="rgb24"),
                   read_image(tmp_path / "result.png")):
        left, right = (rgb_to_lab(result)[:, part, 1:].mean((0, 1)) for part in (slice(8, 56), slice(72, 120)))
        assert left[0] < -15 and left[1] > 10, "green"
        assert right[1] < -25, "blue"
