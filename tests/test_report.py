"""The HTML report and the suggested frames: covers computed by hand, and the page as a browser shows it."""

import base64
import io
import math
import re
import shutil
import subprocess
import tracemalloc
import weakref
from collections.abc import Sequence
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from PIL import Image

from colorizer.adaptation.film_response import FilmResponse
from colorizer.metrics import Scores
from film.report import html_report
from film.report.html_report import Report, write_report
from film.report.records import ShotRecord
from film.report.suggestions import SuggestionConfig, suggest_frames
from utils import UserError

TITLE = """Käpt'n "Blau" & Söhne 🎨 <script>document.title = 'broken'; window.broken = true</script><b>"""


def draw(color, size=(90, 160)):
    picture = np.full((*size, 3), 90, np.uint8)
    cv2.circle(picture, (size[1] // 2, size[0] // 2), size[0] // 3, color, -1)
    return picture


def record(index, confidence=0.5, frames=100, feature=(1, 0), truth=True, size=(90, 160), **settings):
    """Return a shot of ``frames`` frames at 25 per second, the ``index``-th of shots of 100 frames."""
    values = {
        "index": index, "start_frame": 100 * index, "end_frame": 100 * index + frames, "start_time": 4.0 * index,
        "end_time": 4.0 * index + frames / 25, "gray": draw((128,) * 3, size), "result": draw((200, 40, 40), size),
        "ground_truth": draw((220, 30, 30), size) if truth else None, "slot_ids": [7, 3], "slot_scores": [0.91, 0.62],
        "confidence": confidence, "embedding": np.float32(feature),
        "cdc": 0.0021, "cdc_ground_truth": 0.0020}
    return ShotRecord(**(values | settings))


def axis(*places, size=5):
    """Return an embedding along the given axes."""
    feature = np.zeros(size, np.float32)
    feature[list(places)] = 1
    return feature


class LazyRecords(Sequence):
    """Records created on access, with the maximum number alive at a time."""

    def __init__(self, count, make):
        self.count, self.make, self.alive, self.max_alive = count, make, [], 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if not 0 <= index < self.count:
            raise IndexError(index)
        created = self.make(index)
        self.alive = [reference for reference in self.alive if reference() is not None] + [weakref.ref(created)]
        self.max_alive = max(self.max_alive, len(self.alive))
        return created


class Page(HTMLParser):
    """Parse a page into its elements and text, and check that every element is closed."""

    VOID = {"meta", "img", "br"}

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += f" {data}"

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    def pictures(self):
        """Return {alt text: picture} of the images, which are embedded and lazy; training frames have no alt text."""
        pictures = {}
        for image in self.all("img"):
            assert image["loading"] == "lazy"
            head, data = image["src"].split(",")
            assert head == "data:image/jpeg;base64"
            picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)
            assert picture.shape[:2] == (int(image["height"]), int(image["width"]))
            pictures[image["alt"]] = picture
        return pictures


# ---------------------------------------------------------------------------------------------------------------------
# Suggested frames


def test_a_frame_for_many_similar_shots_comes_before_the_least_confident_shot():
    records = [record(0, 0.75, feature=axis(0)), record(1, 0.5, feature=axis(1)), record(2, 0.75, feature=axis(0)),
               record(3, 0.75, feature=axis(0)), record(4, 1.0, feature=axis(2)), record(5, 0.9, 50, axis(3))]
    first, second, third = suggest_frames(records, 10)  # a shot with confidence 1 has nothing to gain
    assert [first.gain, second.gain, third.gain] == pytest.approx([75 / 130, 50 / 130, 5 / 130])
    assert (first.shot.index, second.shot.index, third.shot.index) == (0, 1, 5)
    assert [s.helped for s in (first, second, third)] == [[0, 2, 3], [1], [5]]
    assert second.frame == 150 and second.file_name == "shot_2_frame_150.png"
    assert [s.shot.index for s in suggest_frames(records, 1)] == [0]


def test_similarity_is_a_power_of_the_cosine():
    """The cosine of the two embeddings is 1 / sqrt(2), and their similarity 1 / 16."""
    alone, also = suggest_frames([record(0, 0.0, feature=axis(0, 1)), record(1, 0.5, feature=axis(0))], 2)
    assert alone.gain == pytest.approx((100 + 50 / 16) / 150) and alone.helped == [0]
    assert also.gain == pytest.approx(50 * 15 / 16 / 150) and also.helped == [1]


def test_greedy_suggestions_are_close_to_the_best_pair_of_frames():
    """Greedy is within 1 - 1/e of the best set (Nemhauser et al. 1978), and its first choice is the best single one."""
    rng = np.random.default_rng(0)
    records = [record(i, rng.random(), feature=rng.random(5) ** 3) for i in range(12)]
    embeddings = np.stack([r.embedding / np.linalg.norm(r.embedding) for r in records])
    uncertainty = np.array([100 * (1 - r.confidence) for r in records])
    similarity = (embeddings @ embeddings.T) ** SuggestionConfig().power
    pairs = {(i, j): uncertainty @ similarity[:, [i, j]].max(1) / uncertainty.sum()
             for i in range(12) for j in range(12)}
    first, second = suggest_frames(records, 2)
    assert first.gain == pytest.approx(max(pairs[i, i] for i in range(12)), rel=1e-5)
    assert first.gain + second.gain == pytest.approx(pairs[first.shot.index, second.shot.index], rel=1e-5)
    assert first.gain + second.gain >= (1 - 1 / math.e) * max(pairs.values())


def test_nothing_is_suggested_without_uncertainty():
    assert suggest_frames([record(0, 1.0), record(1, 1.0)]) == []
    assert suggest_frames([record(0, 0.2), record(1, 0.2)], 0) == []
    assert suggest_frames([record(0, 0.2, left_unchanged=True)]) == []
    assert suggest_frames([record(0, math.nan, feature=()), record(1, math.nan, feature=())]) == []  # no backbone
    assert len(suggest_frames([record(0, 0.2, feature=(0, 0)), record(1, 0.2)])) == 1  # the embedding of a black frame


# ---------------------------------------------------------------------------------------------------------------------
# The page


def test_shots_are_sorted_by_confidence_and_show_all_known_values(tmp_path):
    records = [record(0, 0.9), record(1, 0.31, recalled=0.12, cdc_ground_truth=math.nan),
               record(2, 0.6, cdc=math.nan, cdc_ground_truth=math.nan)]
    write_report(tmp_path / "report.html", Report(
        "The film", records, names={7: "ep_7.png"}, facts={"checkpoint": "best.pt"},
        thumbnails={7: draw((40, 40, 220), (32, 32))}))
    page = Page(tmp_path / "report.html")
    assert [article["id"] for article in page.all("article")] == ["shot-2", "shot-3", "shot-1"]
    text = " ".join(page.text.split())
    for expected in ("The film", "checkpoint best.pt", "300 frames", "3 shots", "0:12.0 length", "60% mean confidence",
                  "31% confidence 12% recalled 0:04.0 – 0:08.0 frames 100 – 199 CDC 0.0021",
                     "0.91 ep_7.png 0.62 frame 3 ",
                  "CDC 0.0021 ground truth 0.0020, × 1.05", "90% confidence"):
        assert expected in text
    assert "Suggested frames" not in text and "CIEDE2000" not in text and "-1" not in text and "nan" not in text
    assert text.count("CDC 0.0021") == 2

    pictures = page.pictures()
    assert len(page.all("img")) == 3 * 3 + 3 and len(pictures) == 3 * 3 + 1
    for shot in (1, 2, 3):
        for label, expected in (("grayscale", (128,) * 3), ("colored", (200, 40, 40)), ("ground truth", (220, 30, 30))):
            assert pictures[f"shot {shot}, {label}"][45, 80] == pytest.approx(expected, abs=6)
    assert pictures[""].shape == (32, 32, 3) and pictures[""][16, 16] == pytest.approx((40, 40, 220), abs=12)


def test_unknown_values_are_left_out(tmp_path):
    """A plain GAN has no confidence and no memory, and a shot in color may be left unchanged."""
    records = [record(0, math.nan, left_unchanged=True, feature=()),
               record(1, math.nan, feature=(), slot_ids=[], slot_scores=[])]
    write_report(tmp_path / "report.html", Report("Film", records, suggest_frames(records)))
    page = Page(tmp_path / "report.html")
    assert [article["id"] for article in page.all("article")] == ["shot-2", "shot-1"]
    assert "already in color" in page.text and "nan" not in page.source and "mean confidence" not in page.text
    assert page.text.count("Training frames recalled") == 1 and "% confidence" not in page.text


@pytest.mark.parametrize("curve", [False, True])
@pytest.mark.parametrize("sensitivity", [None, np.array([0.05, 0.5, 0.45])])
def test_the_film_response_is_described(tmp_path, sensitivity, curve):
    film = np.array([0, 10, 50, 100.0])
    response = FilmResponse(film, np.array([0, 20, 70, 100.0]) if curve else film, sensitivity)
    write_report(tmp_path / "report.html", Report("Film", [record(0)], response=response))
    text = " ".join(Page(tmp_path / "report.html").text.split())
    assert ("sensitivity of 5% red, 50% green and 45% blue" in text) == (sensitivity is not None)
    assert ("L from 20 to 70 in the training frames corresponds to 10 to 50 in this film, a contrast of 0.80"
            in text) == curve
    assert "The luma of the colored film is unchanged" in text


def test_the_times_of_a_part_of_a_film_are_those_in_the_film(tmp_path):
    write_report(tmp_path / "report.html", Report("Film", [record(0, start_time=70.0, end_time=74.0)]))
    text = " ".join(Page(tmp_path / "report.html").text.split())
    assert "0:04.0 length" in text and "1:10.0 1:14.0" in text and "1:10.0 – 1:14.0" in text


def test_the_page_shows_suggestions_and_metrics(tmp_path):
    records = [record(i, 0.5, feature=axis(i // 2), truth=None) for i in range(4)]
    suggestions = suggest_frames(records)
    scores = Scores()
    scores.add(draw((200, 40, 40)), draw((220, 30, 30)))
    write_report(tmp_path / "report.html", Report(
        "Film", records, suggestions, folder="film_color_these", summaries={"result": scores.summary()}))
    page = Page(tmp_path / "report.html")
    text = " ".join(page.text.split())
    assert "these 2 frames by hand would remove about 100% of the uncertainty" in text and "film_color_these" in text
    assert "1 Shot 1 , 0:02.0 50% of the uncertainty, also helps shot 2 shot_1_frame_50.png" in text
    assert "CIEDE2000" in text and f"{scores.summary()['ciede2000']:.3f}" in text
    assert len(page.all("img")) == 4 * 2 + 2  # no ground truth, and no thumbnails of training frames
    links = [link["href"] for link in page.all("a")]
    assert len(links) == 4 + 2 + 2 and {link[1:] for link in links} == {a["id"] for a in page.all("article")}


def test_pictures_are_shrunk_and_the_page_stays_small(tmp_path, monkeypatch):
    def widths(records):
        write_report(tmp_path / "report.html", Report("Film", records))
        return {picture.shape for picture in Page(tmp_path / "report.html").pictures().values()}

    assert widths([record(0, size=(540, 960))]) == {(180, 320, 3)}
    assert widths([record(0, size=(9, 16))]) == {(9, 16, 3)}
    assert widths([record(0, size=(4, 2000))]) == {(1, 320, 3)}
    monkeypatch.setattr(html_report, "FULL_SIZE_PICTURES", 3)
    assert widths([record(i, size=(540, 960)) for i in range(4)]) == {(90, 160, 3)}  # 4 times as many, half as wide


def test_file_names_are_escaped(tmp_path):
    """Including a name whose bytes are not valid text."""
    records = [record(0)]
    write_report(tmp_path / "report.html", Report(
        TITLE, records, suggest_frames(records), names={7: TITLE, 3: "\udce9.png"},
        summaries={TITLE: dict.fromkeys(Scores.COLUMNS, 1.0)}, facts={TITLE: TITLE}, folder=TITLE))
    page = Page(tmp_path / "report.html")
    assert not page.all("script") and page.text.count(TITLE) == 7
    assert "?.png" in page.text
    assert any("default-src 'none'" in meta.get("content", "") for meta in page.all("meta"))


def test_texts_do_not_change_the_elements_of_the_page(tmp_path, monkeypatch):
    def elements(text):
        monkeypatch.setattr(Scores, "COLUMNS", {"ssim": text})
        records = [record(0)]
        write_report(tmp_path / "report.html", Report(
            text, records, suggest_frames(records), folder=text, names={7: text, 3: text},
            thumbnails={7: draw((40, 40, 220))}, summaries={text: {"ssim": 0.5}}, facts={text: text}))
        page = Page(tmp_path / "report.html")
        assert page.text.count(text) == 9  # the title twice, a fact twice, 2 names, a row, a column and the folder
        return page.tags

    plain = elements("harmless")
    for text in (TITLE, '"><script>1</script>', "' onload='1", "</style></title><img src=x>", "&lt;b&gt; &amp;",
                 "{{ report }} {% raw %} {# #}", "-->"):
        assert elements(text) == plain


def test_the_pictures_of_one_shot_are_in_memory_at_a_time(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (180, 320, 3), np.uint8)
    records = LazyRecords(100, lambda index: record(index, gray=noise.copy(), result=noise.copy()))
    write_report(tmp_path / "report.html", Report("Film", [record(0)]))  # loads everything that is imported lazily
    tracemalloc.start()
    try:
        write_report(tmp_path / "report.html", Report("Film", records))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    size = (tmp_path / "report.html").stat().st_size
    assert records.max_alive <= 2
    assert len(Page(tmp_path / "report.html").all("img")) == 300 and peak < size / 4


def test_an_unwritable_folder_is_an_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot write .*report.html"):
        write_report(tmp_path / "file" / "report.html", Report("Film", [record(0)]))


# ---------------------------------------------------------------------------------------------------------------------
# The page in a browser


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_a_browser_shows_every_picture_without_an_error(tmp_path):
    def browse(path, *flags):
        return subprocess.run(
            ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
             *flags, "--dump-dom", str(path)],
            capture_output=True, text=True, timeout=120, check=True)

    records = [record(i, i / 9) for i in range(9)]
    path = tmp_path / 'the "film" ä 🎨 <b>.html'
    write_report(path, Report(TITLE, records, suggest_frames(records, 3), names={7: TITLE}, facts={"input": TITLE},
                              thumbnails={7: draw((40, 40, 220))}))
    shown = browse(path, "--enable-logging=stderr")
    assert 'id="shot-9"' in shown.stdout and "CONSOLE" not in shown.stderr

    # The page forbids scripts, so a copy without that policy reports what the browser shows.
    page, policies = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", path.read_text(encoding="utf-8"))
    assert policies == 1
    copy = tmp_path / "copy.html"
    copy.write_text(page + """<script>addEventListener("load", () => {
        const loaded = [...document.images].filter(image => image.complete).map(image => image.naturalWidth)
        document.body.dataset.loaded = `${loaded.filter(width => width == 160).length} and ` +
            `${loaded.filter(width => width == 128).length} of ${document.images.length}, ` +
            `broken ${window.broken}, too wide ${document.body.scrollWidth > innerWidth}`
        })</script>""", encoding="utf-8")
    for size in ("1200,800", "500,800"):
        # 9 shots of 3 pictures and one suggestion, since all are similar; one training frame per shot
        expected = 'data-loaded="28 and 9 of 37, broken undefined, too wide false"'
        assert expected in browse(copy, f"--window-size={size}").stdout
