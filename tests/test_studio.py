"""The studio in a real browser: from the beginning to the film that is taken away, and what it refuses."""

import re
import shutil
import socket
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager

import av
import cv2
import numpy as np
import pytest
from drawn import draw_picture, planes_in

import studio

from resources.draw_episodes import draw_frame

from colorizer.predictor import Predictor
from config import StudioConfig
from editing import training_job as learning
from editing.project import open_project
from fileio.images import read_image, write_image
from utils import UserError

pytest.importorskip("gradio", reason="the studio needs requirements-studio.txt")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, see requirements-dev.txt")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")

SCENES = [(5, 14), (70, 12), (170, 16)]  # frame of the episode, number of frames: in a forest, a room, on a beach
QUICK = f"""
import sys
sys.path[:0] = [{str(studio.ROOT)!r}, {str(studio.ROOT / "tests")!r}]
from drawn import be_quick
import train
from config import SpatialConfig, TrainConfig, read_flags
from utils import run_cli
be_quick()
few = dict(width=4, batch_size=4, end_epoch=1, mem_size=8, spatial=SpatialConfig(attended_frames=2))
run_cli(lambda argv: train.train(TrainConfig(**read_flags(TrainConfig, argv, ""), **few)), sys.argv[2:])
"""  # a few frames of the memory are read for a shot, so that a reference does not change all


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """train/ with colored frames of a drawn episode, and gray.mkv, three scenes of the next one."""
    home = tmp_path_factory.mktemp("home")
    for number in range(6):
        write_image(home / "train" / f"frame_{number}.png", scene(1, 8 + 80 * number))
    with av.open(str(home / "gray.mkv"), "w") as film:
        stream = film.add_stream("libx264", rate=12, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for first, count in SCENES:
            for number in range(count):
                gray = cv2.cvtColor(scene(2, first + number // 4), cv2.COLOR_RGB2GRAY)
                film.mux(stream.encode(av.VideoFrame.from_ndarray(np.dstack([gray] * 3), format="rgb24")))
        film.mux(stream.encode(None))
    return home


def scene(episode, frame):
    return cv2.resize(draw_frame(episode, frame), (128, 96), interpolation=cv2.INTER_AREA)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(folder, given):
    """A studio that is open on a project; yields (its desk, its address)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = StudioConfig(project=folder, port=port)
    with open_project(folder, given) as project:
        desk = studio.EditingSession(project)
        desk.open()
        page = studio.serve(desk, config, wait=False)
        try:
            yield desk, f"http://127.0.0.1:{port}"
        finally:
            page.close(verbose=False)
            desk.background.stop(60)


def settled(desk):
    """Wait until nothing is being done; returns what went wrong."""
    thread = desk.background.thread
    if thread is not None:
        thread.join(120)
    assert not desk.background.work.running
    return desk.background.work.error


@contextmanager
def visited(browser, address):
    """A page; errors of its scripts, and requests to anywhere else, fail the test."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith((address, "data:", "blob:", "ws://127.0.0.1"))
            else wrong.append(request.url))
    page.set_default_timeout(20_000)
    page.goto(address)
    page.wait_for_selector(".studio.status .row")
    yield page
    page.close()
    assert not wrong


@pytest.fixture(scope="module")
def colored(browser, home, tmp_path_factory):
    """A studio in which a person has chosen a film, sent pictures, trained and waited: (desk, address)."""
    folder = tmp_path_factory.mktemp("studio") / "project"
    with pytest.MonkeyPatch.context() as patch, opened(folder, [home]) as (desk, address):
        patch.setattr(learning, "SCRIPT", [sys.executable, "-c", QUICK])
        patch.setattr(Predictor, "fit_response", lambda *_: None)  # which takes longer than all else
        with visited(browser, address) as page:
            box = page.get_by_label("In the folders given at the start", exact=True)
            box.fill(str(home / "gray.mkv"))
            box.press("Enter")
            page.get_by_role("button", name="Use this film").click()
            page.wait_for_function("() => window.studio.at.shots.length === 3")
            assert settled(desk) == "" and not desk.project.colored.exists()
            pictures = sorted((home / "train").glob("*.png"))
            page.locator("input[type=file]").nth(1).set_input_files(pictures)
            page.get_by_text(pictures[-1].stem).first.wait_for()
            page.get_by_role("button", name="Learn these colors").click()
            page.wait_for_function("() => window.studio.at.colored", timeout=90_000)
            assert settled(desk) == "" and page.locator("img.samples").count() == 1
        yield desk, address


def see_frame(page, frame):
    page.wait_for_selector(f'.studio.look[data-shown="{frame}"]')


# ---------------------------------------------------------------------------------------------------------------------


def test_from_the_beginning_to_the_film(browser, home, colored):
    desk, address = colored
    learned = sorted((desk.project.folder / "dataset" / "train").glob("*.png"))
    assert [path.read_bytes() for path in learned] == [path.read_bytes() for path in sorted((home / "train").iterdir())]
    assert [len(x) for x in map(planes_in, (desk.project.colored, home / "gray.mkv"))] == [42, 42]
    with visited(browser, address) as page:
        page.get_by_role("tab", name="Export").click()
        page.get_by_role("button", name="Export").click()
        page.get_by_text("test.py --checkpoint").wait_for()
        with page.expect_download() as download:
            page.locator("a[download]").filter(has_text="MB").or_(page.locator("a[download]")).first.click()
        assert download.value.path().stat().st_size > 0
    taken = desk.project.folder / "export"
    assert (taken / "gray.mkv").read_bytes() == desk.project.colored.read_bytes()
    assert {path.name for path in taken.iterdir()} >= {"better.pt", "references", "gray_report.html"}


def test_a_person_looks_by_mouse_and_by_keys(browser, colored):
    desk, address = colored
    with visited(browser, address) as page:
        page.wait_for_selector(".studio.look .shot")
        assert page.locator(".studio.look .shot").count() == 3
        see_frame(page, 7)
        page.keyboard.press("]")
        see_frame(page, 20)
        page.keyboard.press(".")
        see_frame(page, 21)
        page.keyboard.press(",")
        page.keyboard.press("[")
        see_frame(page, 7)
        page.locator(".studio.look .shot").nth(2).click()
        see_frame(page, 34)
        shown, gray = (page.evaluate(f"document.querySelector('.studio .{kind}').src") for kind in ("colored", "gray"))
        assert shown.startswith("data:image/jpeg") and shown != gray
        page.get_by_role("button", name="What is known").click()
        page.wait_for_function(f"() => document.querySelector('.studio .colored').src !== {shown!r}")
        page.get_by_label("Frame of the shot").fill("40")
        see_frame(page, 40)
        page.get_by_role("button", name="Color these next").click()
        page.wait_for_selector(".studio.look .shot >> nth=0")
        assert page.locator(".studio .sources figure").count() > 0
        page.get_by_role("button", name="Before | after").click()
        page.get_by_label("Divider between before and after").fill("10")
        assert "10%" in page.evaluate("document.querySelector('.studio .colored').style.clipPath")
        page.locator(".studio.look .shot[data-shot='2']").click()
        page.get_by_label("Frame of the shot").fill("31")
        see_frame(page, 31)
        page.get_by_role("button", name="Shot begins here").click()
        page.wait_for_function("() => window.studio.at.shots.length === 4 && !window.studio.at.colored")
        assert desk.project.facts.cut_at == [31]
        page.get_by_text("changed since it was colored").wait_for()
        page.get_by_role("button", name="Join to the shot before").click()
        page.wait_for_function("() => window.studio.at.shots.length === 3 && window.studio.at.colored")
        assert desk.project.facts.cut_at == [] and desk.project.is_current()
        page.get_by_role("button", name="Play the shot").click()
        page.wait_for_function("() => document.querySelector('.studio video')?.duration > 0.5")


def same_shots(one, other):
    """Of each shot, whether it is the same in two films."""
    starts = np.cumsum([0, *(count for _, count in SCENES)]).tolist()
    return [all(np.array_equal(a, b) for x, y in zip(one[start:end], other[start:end], strict=True)
                for a, b in zip(x, y, strict=True)) for start, end in zip(starts, starts[1:], strict=False)]


def test_a_frame_is_corrected_remembered_and_taken_back(browser, colored):
    desk, address = colored
    before, planes = desk.project.colored.read_bytes(), planes_in(desk.project.colored)
    with visited(browser, address) as page:
        page.locator(".studio.look .shot").nth(1).click()
        page.get_by_role("tab", name="Correct").click()
        page.wait_for_selector('.studio.hand[data-shown="20"][data-edits="0"]')
        page.get_by_label("Color as a number").fill("#20c040")
        canvas = page.locator(".studio.hand canvas")
        canvas.click(position={"x": 60, "y": 60})
        page.wait_for_selector('.studio.hand[data-edits="1"]')
        page.keyboard.press("Control+z")
        page.wait_for_selector('.studio.hand[data-edits="0"]')
        page.keyboard.press("Control+y")
        page.wait_for_selector('.studio.hand[data-edits="1"]')
        page.get_by_role("button", name="Reset").click()
        page.wait_for_selector('.studio.hand[data-edits="2"]')
        canvas.focus()
        for key in ("ArrowRight", "ArrowDown", "Enter"):
            page.keyboard.press(key)
        page.wait_for_selector('.studio.hand[data-edits="3"]')
        page.get_by_role("button", name="Brush").click()
        box = canvas.bounding_box()
        page.mouse.move(box["x"] + 20, box["y"] + 20)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] - 20, box["y"] + box["height"] / 2, steps=5)
        page.mouse.up()
        page.wait_for_selector('.studio.hand[data-edits="4"]')
        told = page.get_by_text("It will color")
        told.wait_for()
        shots = [int(number) - 1 for number in re.findall(r"\d+", told.inner_text().partition("again:")[2])]
        assert 1 in shots and len(shots) < 3, told.inner_text()
        page.get_by_role("button", name="Remember this frame").click()
        page.get_by_text("frame 20", exact=True).wait_for()
        page.reload()  # in the middle
        page.wait_for_selector(".studio.status .row")
        assert settled(desk) == ""
        now = planes_in(desk.project.colored)
        assert [not same for same in same_shots(planes, now)] == [number in shots for number in range(3)]
        assert max(cv2.absdiff(a[0], b[0]).mean() for a, b in zip(planes, now, strict=True)) < 1, "only colors change"
        page.get_by_role("tab", name="Correct").click()
        page.get_by_role("button", name="Take back").click()
        page.get_by_text("Nothing yet").wait_for()
        assert settled(desk) == "" and desk.project.colored.read_bytes() == before


def test_a_color_is_changed_everywhere_and_back(browser, colored):
    desk, address = colored
    before, planes = desk.project.colored.read_bytes(), planes_in(desk.project.colored)
    with visited(browser, address) as page:
        page.get_by_role("tab", name="Correct").click()
        swatch = page.locator(".studio.hand .swatches button").first
        old = swatch.get_attribute("data-color")
        swatch.click()
        page.get_by_label("Color as a number").fill("#30ff30")
        page.keyboard.press("Tab")
        page.get_by_role("button", name="Change", exact=True).click()
        page.locator(".studio .fixes, .studio .change").get_by_text("#30ff30").wait_for()
        assert settled(desk) == "" and desk.project.facts.changes == [[old, "#30ff30"]]
        now = planes_in(desk.project.colored)
        moved = [max(cv2.absdiff(a[i], b[i]).max() for a, b in zip(planes, now, strict=True)) for i in range(3)]
        assert moved[0] < 20 < max(moved[1:])  # luma as the encoder leaves it
        page.locator(".studio .change").get_by_role("button", name="Take back").click()
        page.get_by_text("Changed everywhere").wait_for(state="detached")
        assert settled(desk) == "" and desk.project.colored.read_bytes() == before


def test_two_pages_and_a_reload_see_the_same(browser, colored, tmp_path):
    desk, address = colored
    with visited(browser, address) as page, visited(browser, address) as other:
        for one in (page, other):
            one.wait_for_selector(".studio.look .shot")
            one.get_by_role("tab", name="Correct").click()
            one.get_by_text("Nothing yet").wait_for()
        painted = desk.project.folder.parent / "painted.png"
        write_image(painted, draw_picture(1, (128, 96)))
        page.get_by_text("Paint it in another program").click()
        page.locator(".studio.hand .time").fill("10")
        page.wait_for_selector('.studio.hand[data-shown="10"]')
        with page.expect_download() as download:
            page.get_by_role("button", name="Save the frame in gray").click()
        assert download.value.suggested_filename == "frame_000010.png"
        assert np.array_equal(read_image(download.value.path().rename(tmp_path / "gray.png")), desk.gray(10))
        page.locator("input.painted").set_input_files(painted)
        other.get_by_text("frame 10", exact=True).wait_for()
        page.reload()
        page.wait_for_selector(".studio.status .row")
        page.get_by_role("tab", name="Correct").click()
        page.get_by_text("frame 10", exact=True).wait_for()
        assert settled(desk) == ""
        other.get_by_role("button", name="Take back").click()
        page.get_by_text("Nothing yet").wait_for()
        assert settled(desk) == "" and not desk.project.facts.corrections


def test_what_is_outside_is_refused(browser, colored, tmp_path):
    desk, address = colored
    for path in ("/etc/passwd", desk.project.folder / "project.json", desk.project.folder / "checkpoint.pt",
                 studio.ROOT / "studio.py"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{address}/gradio_api/file={path}")
        assert refused.value.code in (403, 404), path
    with visited(browser, address) as page:
        page.get_by_role("tab", name="Begin").click()
        box = page.get_by_label("In the folders given at the start", exact=True)
        box.fill("/etc/passwd")
        box.press("Enter")
        page.get_by_role("button", name="Use this film").click()
        page.get_by_text("lies outside the folders").wait_for()
        name = "<img src=x onerror=alert(1)>$(touch y).mkv"
        shutil.copyfile(desk.project.facts.film, tmp_path / name)
        page.on("dialog", lambda dialog: pytest.fail("a file name was run"))
        page.locator("input[type=file]").first.set_input_files(tmp_path / name)
        page.wait_for_timeout(500)
        page.get_by_role("button", name="Use this film").click()
        page.get_by_text("name another --project").wait_for()
        kept = [path.name for path in (desk.project.folder / "uploads").iterdir()]
        assert kept and all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in kept)


@pytest.mark.parametrize("function, data", [
    ("frame", {"index": -1, "width": 300, "kinds": ["gray"]}),
    ("frame", {"index": 10**9, "width": 300, "kinds": ["gray"]}),
    ("frame", {"index": "1", "width": 300, "kinds": ["gray"]}),
    ("frame", {"index": 1, "width": 300, "kinds": ["../x"]}), ("frame", {}),
    ("clip", {"start": 5, "end": 5}), ("clip", {"start": 0, "end": 10**7}), ("sources", {"shot": True}),
    ("split", {"frame": -4}), ("join", {"frame": None}), ("take_back", {"file": "../../project.json"})])
def test_strange_questions_are_answered_in_a_sentence(colored, function, data):
    desk, _ = colored
    before = desk.project.facts.cut_at[:], desk.project.facts.join_at[:]
    answer = studio.answering(getattr(desk, function))(data)
    assert set(answer) <= {"error", "sources"} and (answer.get("error") or answer["sources"] == [])
    assert (desk.project.facts.cut_at, desk.project.facts.join_at) == before


def test_others_are_let_in_by_a_password_alone(colored, home, tmp_path, monkeypatch):
    desk, _ = colored
    monkeypatch.delenv("STUDIO_PASSWORD", raising=False)
    with pytest.raises(UserError, match="STUDIO_PASSWORD"):
        studio.serve(desk, StudioConfig(host="0.0.0.0"), wait=False)
    monkeypatch.setenv("STUDIO_PASSWORD", "open sesame")
    with opened(tmp_path / "project", [home]) as (_, address):
        for path in ("/config", "/gradio_api/component_server"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(address + path, data=b"{}" if "server" in path else None)
            assert refused.value.code == 401
        for password, code in (("wrong", 400), ("open sesame", 200)):
            body = f"username=me&password={password.replace(' ', '+')}".encode()
            try:
                got = urllib.request.urlopen(f"{address}/login", data=body).status
            except urllib.error.HTTPError as error:
                got = error.code
            assert got == code


def test_a_port_that_is_taken_is_named(colored):
    desk, address = colored
    with pytest.raises(UserError, match="--port"):
        studio.serve(desk, StudioConfig(port=int(address.rpartition(":")[2])), wait=False)
