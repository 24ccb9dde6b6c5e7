"""Tests of the studio in a real browser, from training to export, and of the requests that it refuses."""

import re
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import av
import cv2
import numpy as np
import pytest
from drawn import draw_picture, planes_in

import studio
import train

from resources.draw_episodes import draw_frame, draw_sheet

from colorizer.predictor import Predictor
from config import SpatialConfig, StudioConfig, TrainConfig
from editing import training_job
from editing.film_browser import FilmBrowser, MemoryBrowser
from editing.palette_editor import PaletteEditor
from editing.project import open_project
from fileio.images import read_image, write_image
from fileio.palettes import read_palette
from utils import UserError

pytest.importorskip("gradio", reason="the studio needs requirements-studio.txt")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, see requirements-dev.txt")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")

FILM = "B\u00e4renh\u00f6hle \u304f\u307e.mkv"
SCENES = [(5, 14), (70, 12), (170, 16)]  # first frame in the episode and number of frames: forest, room, beach
TRAINED = """
import shutil, sys, time
from pathlib import Path
run, script, *flags = sys.argv[1:]
folder = Path(flags[flags.index("--save_path") + 1])
shutil.copytree(run, folder, dirs_exist_ok=True)
while folder.name == "training" and not Path(run, "seen").exists():
    time.sleep(0.1)
"""  # a script that copies a finished run, and ends when the page has shown it


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with train/ (frames of a drawn episode), sheets/ (a character sheet), run/ (the result of a training
    run with both), and FILM, three scenes of the next episode in grayscale."""
    home = tmp_path_factory.mktemp("home")
    for number in range(6):
        write_image(home / "train" / f"frame_{number}.png", scene(1, 8 + 80 * number))
    write_image(home / "sheets" / "ruby" / "ruby_1.png", draw_sheet("ruby", "stand"))
    # Shots attend to few remembered frames, so that a reference does not change all shots.
    train.train(TrainConfig(data_path=str(home), save_path=str(home / "run"), characters=str(home / "sheets"), width=4,
                            batch_size=4, end_epoch=1, mem_size=8, spatial=SpatialConfig(attended_frames=2)))
    with av.open(str(home / FILM), "w") as film:
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
def serve_project(folder, given):
    """Serve a project; yields (session, address)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = StudioConfig(project=folder, port=port)
    with open_project(folder, given) as project:
        session = studio.EditingSession(project)
        session.start()
        page = studio.serve(session, config, wait=False)
        try:
            yield session, f"http://127.0.0.1:{port}"
        finally:
            page.close(verbose=False)
            session.jobs.cancel(60)


def wait_for_job(session):
    """Wait for the end of the background job; returns its error."""
    thread = session.jobs.thread
    if thread is not None:
        thread.join(120)
    assert not session.jobs.job.running
    return session.jobs.job.error


@contextmanager
def open_page(browser, address):
    """Open a page; script errors and requests to other hosts fail the test."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith((address, "data:", "blob:", "ws://127.0.0.1"))
            else wrong.append(request.url))
    page.set_default_timeout(60_000)
    page.goto(address)
    page.wait_for_selector(".studio.status .row")
    yield page
    page.close()
    assert not wrong


def wait_for_preview(session):
    """Wait for the shot that is colored during training."""
    deadline = time.monotonic() + 60
    while not training_job.preview_path(session.project).exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert len(planes_in(training_job.preview_path(session.project))) == 16, "the longest shot"


@pytest.fixture(scope="module")
def colored(browser, home, tmp_path_factory):
    """A studio with a film that was colored after training on an uploaded character sheet and uploaded pictures:
    (session, address)."""
    folder = tmp_path_factory.mktemp("studio") / "project"
    with pytest.MonkeyPatch.context() as patch, serve_project(folder, [home]) as (session, address):
        patch.setattr(training_job, "INTERPRETER", [sys.executable, "-c", TRAINED, str(home / "run")])
        patch.setattr(Predictor, "fit_response", lambda *_: None)  # slow
        with open_page(browser, address) as page:
            box = page.get_by_label("Film in the given folders", exact=True)
            box.fill(str(home / FILM))
            box.press("Enter")
            page.wait_for_function("() => window.studio.state.shots.length === 3")
            assert wait_for_job(session) == "" and not session.project.colored.exists()
            page.locator("input[type=file]").nth(1).set_input_files(home / "sheets" / "ruby" / "ruby_1.png")
            page.get_by_text("1 picture", exact=True).wait_for()
            pictures = sorted((home / "train").glob("*.png"))
            page.locator("input[type=file]").nth(2).set_input_files(pictures)
            page.wait_for_selector("img.samples")
            (home / "run" / "seen").touch()
            page.wait_for_function("() => window.studio.state.colored", timeout=180_000)
            assert wait_for_job(session) == ""
            wait_for_preview(session)
        yield session, address


def wait_for_frame(page, frame):
    page.wait_for_selector(f'.studio.viewer[data-shown="{frame}"]')


# ---------------------------------------------------------------------------------------------------------------------


def test_a_film_is_trained_colored_and_exported(browser, home, colored):
    session, address = colored
    trained_on = sorted((session.project.folder / "dataset" / "train").glob("*.png"))
    uploaded = sorted((home / "train").glob("*.png"))
    assert [path.read_bytes() for path in trained_on] == [path.read_bytes() for path in uploaded]
    assert [len(x) for x in map(planes_in, (session.project.colored, home / FILM))] == [42, 42]
    with open_page(browser, address) as page:
        page.get_by_role("tab", name="Export").click()
        page.get_by_role("button", name="Export").click()
        page.get_by_text("test.py --checkpoint").wait_for()
        with page.expect_download() as download:
            page.locator("a[download]").filter(has_text="MB").or_(page.locator("a[download]")).first.click()
        assert download.value.path().stat().st_size > 0
    exported = session.project.folder / "export"
    assert (exported / FILM).read_bytes() == session.project.colored.read_bytes()
    report = FILM.replace(".mkv", "_report.html")
    assert {path.name for path in exported.iterdir()} >= {"better.pt", "references", "characters", report}
    assert [each.name for each in Predictor.load(session.project.checkpoint).characters] == ["ruby"]


def test_the_viewer_works_with_mouse_and_keyboard(browser, colored):
    session, address = colored
    with open_page(browser, address) as page:
        page.wait_for_selector(".studio.viewer .shot")
        assert page.locator(".studio.viewer .shot").count() == 3
        wait_for_frame(page, 7)
        page.keyboard.press("]")
        wait_for_frame(page, 20)
        page.keyboard.press(".")
        wait_for_frame(page, 21)
        page.keyboard.press(",")
        page.keyboard.press("[")
        wait_for_frame(page, 7)
        page.locator(".studio.viewer .shot").nth(2).click()
        wait_for_frame(page, 34)
        shown, gray = (page.evaluate(f"document.querySelector('.studio .{kind}').src") for kind in ("colored", "gray"))
        assert shown.startswith("data:image/jpeg") and shown != gray
        page.get_by_role("button", name="Confidence").click()
        page.wait_for_function(f"() => document.querySelector('.studio .colored').src !== {shown!r}")
        page.get_by_label("Frame of the shot").fill("40")
        wait_for_frame(page, 40)
        page.get_by_role("button", name="Suggested first").click()
        page.wait_for_selector(".studio.viewer .shot >> nth=0")
        assert page.locator(".studio .sources figure").count() > 0
        page.get_by_role("button", name="Before | after").click()
        page.get_by_label("Divider between before and after").fill("10")
        assert "10%" in page.evaluate("document.querySelector('.studio .colored').style.clipPath")
        page.locator(".studio.viewer .shot[data-shot='2']").click()
        page.get_by_label("Frame of the shot").fill("31")
        wait_for_frame(page, 31)
        page.get_by_role("button", name="Split here").click()
        page.wait_for_function("() => window.studio.state.shots.length === 4 && !window.studio.state.colored")
        assert session.project.settings.cut_at == [31]
        page.get_by_text("changed since it was colored").wait_for()
        page.get_by_role("button", name="Join with previous shot").click()
        page.wait_for_function("() => window.studio.state.shots.length === 3 && window.studio.state.colored")
        assert session.project.settings.cut_at == [] and session.project.is_current()
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press(" ")  # play, with the part left of the divider in grayscale
        page.wait_for_function("() => document.querySelector('.studio.viewer video')?.duration > 0.5")
        assert page.evaluate("document.querySelector('.studio.viewer .gray.over').style.width") == "10%"
        page.keyboard.press("?")
        page.get_by_text("previous and next shot").wait_for()
        page.keyboard.press("Escape")
        page.keyboard.press("Alt+1")
        page.get_by_text("Grayscale film").wait_for()


def same_shots(one, other):
    """Return for each shot whether it is equal in two films."""
    starts = np.cumsum([0, *(count for _, count in SCENES)]).tolist()
    return [all(np.array_equal(a, b) for x, y in zip(one[start:end], other[start:end], strict=True)
                for a, b in zip(x, y, strict=True)) for start, end in zip(starts, starts[1:], strict=False)]


def test_a_corrected_frame_becomes_a_reference_and_is_removed(browser, colored):
    session, address = colored
    before, planes = session.project.colored.read_bytes(), planes_in(session.project.colored)
    with open_page(browser, address) as page:
        page.locator(".studio.viewer .shot").nth(1).click()
        page.get_by_role("tab", name="Correct").click()
        page.wait_for_selector('.studio.editor[data-shown="20"][data-edits="0"]')
        page.get_by_label("Hexadecimal color").fill("#20c040")
        canvas = page.locator(".studio.editor canvas")
        canvas.click(position={"x": 60, "y": 60})
        page.wait_for_selector('.studio.editor[data-edits="1"]')
        page.keyboard.press("Control+z")
        page.wait_for_selector('.studio.editor[data-edits="0"]')
        page.keyboard.press("Control+y")
        page.wait_for_selector('.studio.editor[data-edits="1"]')
        page.get_by_role("button", name="Reset").click()
        page.wait_for_selector('.studio.editor[data-edits="2"]')
        canvas.focus()
        for key in ("ArrowRight", "ArrowDown", "Enter"):
            page.keyboard.press(key)
        page.wait_for_selector('.studio.editor[data-edits="3"]')
        page.get_by_role("button", name="Brush").click()
        box = canvas.bounding_box()
        page.mouse.move(box["x"] + 20, box["y"] + 20)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] - 20, box["y"] + box["height"] / 2, steps=5)
        page.mouse.up()
        page.wait_for_selector('.studio.editor[data-edits="4"]')
        effect = page.get_by_text("This colors")
        effect.wait_for()
        shots = [int(number) - 1 for number in re.findall(r"\d+", effect.inner_text().partition("again:")[2])]
        assert 1 in shots and len(shots) < 3, effect.inner_text()
        page.get_by_role("button", name="Add as reference").click()
        page.get_by_text("frame 20", exact=True).wait_for()
        page.reload()  # while the film is being colored
        page.wait_for_selector(".studio.status .row")
        assert wait_for_job(session) == ""
        now = planes_in(session.project.colored)
        assert [not same for same in same_shots(planes, now)] == [number in shots for number in range(3)]
        assert max(cv2.absdiff(a[0], b[0]).mean() for a, b in zip(planes, now, strict=True)) < 1, "only colors change"
        page.get_by_role("tab", name="Correct").click()
        page.get_by_role("button", name="Remove").click()
        page.get_by_text("No references yet").wait_for()
        assert wait_for_job(session) == "" and session.project.colored.read_bytes() == before


def test_a_color_is_renamed_exchanged_everywhere_and_restored(browser, colored, tmp_path):
    session, address = colored
    before, planes = session.project.colored.read_bytes(), planes_in(session.project.colored)
    version = "() => document.querySelector('.studio.palette').dataset.version === String(window.studio.state.version)"
    with open_page(browser, address) as page:
        page.wait_for_selector(".studio.viewer .shot")
        page.get_by_role("tab", name="Palette").click()
        page.locator(".studio.palette .group").get_by_label("Name of the character ruby").wait_for()
        box = page.locator(".studio.palette .frame").bounding_box()
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_selector(".studio.palette .chosen:enabled")
        page.get_by_label("Name", exact=True).fill("wood")
        page.keyboard.press("Tab")
        page.get_by_label("wood of", exact=False).wait_for()
        page.get_by_label("Character", exact=True).fill("forest")
        page.keyboard.press("Tab")
        page.get_by_label("wood of forest").wait_for()
        assert not session.jobs.job.running and session.project.is_current(), "names change no colors"
        old = page.get_by_label("Hexadecimal replacement").input_value()
        shown = page.get_attribute(".studio.palette .frame", "src")
        page.get_by_label("Hexadecimal replacement").fill("#30ff30")
        page.keyboard.press("Tab")
        page.wait_for_selector(".studio.palette[data-shown$='wood/#30ff30']")
        assert page.get_attribute(".studio.palette .frame", "src") != shown
        page.get_by_role("button", name="Exchange").click()
        page.wait_for_function("() => window.studio.state.running")
        assert wait_for_job(session) == ""
        color = session.project.palette.colors()[-1]
        assert color == ("forest", "wood", "#30ff30", True, old)
        now = planes_in(session.project.colored)
        moved = [[cv2.absdiff(a[i], b[i]) for a, b in zip(planes, now, strict=True)] for i in range(3)]
        largest = [max(change.max() for change in changes) for changes in moved]
        assert largest[0] < 40 and max(change.mean() for change in moved[0]) < 2, "only by the loss of the encoder"
        assert max(largest[1:]) > 20
        page.wait_for_function(version)
        with page.expect_download() as download:
            page.get_by_label("Export the palette").select_option(".ini")
        assert color in read_palette(download.value.path().rename(tmp_path / "show.ini"))
        (tmp_path / "show.ini").write_text(f"[forest]\nwood = {old} locked\n")
        page.locator(".studio.palette .file").set_input_files(tmp_path / "show.ini")
        page.get_by_text("1 colors imported, 1 of them locked").wait_for()
        for left in (3, 2, 1, 0):  # the import, the exchange and both names
            page.get_by_role("button", name="Undo").locator("visible=true").click()
            while len(list(session.project.palette.earlier.iterdir())) > left:
                page.wait_for_timeout(50)
            page.wait_for_function(version)
        assert wait_for_job(session) == "" and session.project.palette.colors() == []
        page.wait_for_function("() => window.studio.state.colored && !window.studio.state.running")
        assert session.project.is_current() and session.project.colored.read_bytes() == before


def test_two_pages_show_the_same_state_also_after_a_reload(browser, colored, tmp_path):
    session, address = colored
    with open_page(browser, address) as page, open_page(browser, address) as other:
        for one in (page, other):
            one.wait_for_selector(".studio.viewer .shot")
            one.get_by_role("tab", name="Correct").click()
            one.get_by_text("No references yet").wait_for()
        painted = session.project.folder.parent / "painted.png"
        write_image(painted, draw_picture(1, (128, 96)))
        page.get_by_text("Use another program").click()
        page.locator(".studio.editor .time").fill("10")
        page.wait_for_selector('.studio.editor[data-shown="10"]')
        with page.expect_download() as download:
            page.get_by_role("button", name="Download the grayscale frame").click()
        assert download.value.suggested_filename == "frame_000010.png"
        downloaded = read_image(download.value.path().rename(tmp_path / "gray.png"))
        assert np.array_equal(downloaded, FilmBrowser(session).grayscale_frame(10))
        page.locator("input.upload").set_input_files(painted)
        other.get_by_text("frame 10", exact=True).wait_for()
        page.reload()
        page.wait_for_selector(".studio.status .row")
        page.get_by_role("tab", name="Correct").click()
        page.get_by_text("frame 10", exact=True).wait_for()
        assert wait_for_job(session) == ""
        other.get_by_role("button", name="Remove").click()
        page.get_by_text("No references yet").wait_for()
        assert wait_for_job(session) == "" and not session.project.settings.references


def test_files_outside_the_given_folders_are_refused(browser, colored, tmp_path):
    session, address = colored
    for path in ("/etc/passwd", session.project.folder / "project.json", session.project.folder / "checkpoint.pt",
                 studio.ROOT / "studio.py"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{address}/gradio_api/file={path}")
        assert refused.value.code in (403, 404), path
    with open_page(browser, address) as page:
        wait_for_frame(page, 7)  # the page has selected its first tab
        page.get_by_role("tab", name="Setup").click()
        box = page.get_by_label("Film in the given folders", exact=True)
        box.fill("/etc/passwd")
        box.press("Enter")
        page.get_by_text("is outside the folders").wait_for()
        name = "<img src=x onerror=alert(1)>$(touch y).mkv"
        shutil.copyfile(session.project.settings.film, tmp_path / name)
        page.on("dialog", lambda dialog: pytest.fail("a file name was executed"))
        page.locator("input[type=file]").first.set_input_files(tmp_path / name)
        page.get_by_text("a different --project").wait_for()
        kept = [path.name for path in (session.project.folder / "uploads").iterdir()]
        assert kept and all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in kept)


@pytest.mark.parametrize("function, data", [
    ("frame", {"index": -1, "width": 300, "kinds": ["gray"]}),
    ("frame", {"index": 10**9, "width": 300, "kinds": ["gray"]}),
    ("frame", {"index": "1", "width": 300, "kinds": ["gray"]}),
    ("frame", {"index": 1, "width": 300, "kinds": ["../x"]}), ("frame", {}),
    ("clip", {"start": 5, "end": 5}), ("clip", {"start": 0, "end": 10**7}), ("sources", {"shot": True}),
    ("split_shot", {"frame": -4}), ("join_shot", {"frame": None}),
    ("remove_reference", {"file": "../../project.json"}), ("remove_character", {"name": "../corrections"}),
    ("edit_color", {"character": "ruby", "name": "color 1", "edited": {"character": 1}, "frame": 0, "scope": ""}),
    ("edit_color", {"character": "ruby", "name": 7, "edited": {}, "frame": 0, "scope": ""}),
    ("rename_character", {"character": "ruby", "name": "a]\n[b"}),
    ("export_palette", {"suffix": "/../x.ini", "frame": 0, "scope": ""}),
    ("import_palette", {"path": "/etc/passwd", "frame": 0, "scope": ""}),
    ("find_color", {"frame": 1, "point": "a", "scope": ""}),
    ("show_palette", {"frame": 1, "scope": "../.."}), ("show_palette", {"frame": "x", "scope": "only_this_shot"}),
    ("preview_color", {"frame": 1, "character": "ruby", "name": "color 1", "color": None, "scope": ""})])
def test_invalid_requests_are_answered_with_an_error_message(colored, function, data):
    session, _ = colored
    settings = session.project.settings
    before = settings.cut_at[:], settings.join_at[:]
    browser = FilmBrowser(session)
    owner = next(each for each in (session, browser, MemoryBrowser(session), PaletteEditor(session, browser))
                 if hasattr(each, function))
    answer = studio.page_function(getattr(owner, function))(data)
    assert set(answer) <= {"error", "sources"} and (answer.get("error") or answer["sources"] == [])
    assert (settings.cut_at, settings.join_at) == before and not session.project.palette.can_undo()


def test_access_from_other_machines_needs_a_password(colored, home, tmp_path, monkeypatch):
    session, _ = colored
    monkeypatch.delenv("STUDIO_PASSWORD", raising=False)
    with pytest.raises(UserError, match="STUDIO_PASSWORD"):
        studio.serve(session, StudioConfig(host="0.0.0.0"), wait=False)
    monkeypatch.setenv("STUDIO_PASSWORD", "open sesame")
    with serve_project(tmp_path / "project", [home]) as (_, address):
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


def test_a_port_in_use_is_reported(colored):
    session, address = colored
    with pytest.raises(UserError, match="--port"):
        studio.serve(session, StudioConfig(port=int(address.rpartition(":")[2])), wait=False)


def preview_at(page, x, y):
    """Let the pointer rest at a point of the frame until the preview is shown."""
    box = page.locator(".studio.editor canvas").bounding_box()
    page.evaluate("document.querySelector('.studio.editor').dataset.previewed = ''")
    page.mouse.move(box["x"] + x, box["y"] + y - 5)
    page.mouse.move(box["x"] + x, box["y"] + y)
    page.wait_for_function("() => document.querySelector('.studio.editor').dataset.previewed")


def test_proposed_colors_fill_like_parts_and_undo_is_immediate(browser, colored):
    session, address = colored
    with open_page(browser, address) as page:
        wait_for_frame(page, 7)
        page.get_by_role("tab", name="Correct").click()
        page.wait_for_selector('.studio.editor[data-shown="7"]')
        edits = int(page.get_attribute(".studio.editor", "data-edits"))
        shown = "document.querySelector('.studio.editor canvas').toDataURL()"
        before = page.evaluate(shown)
        page.keyboard.press("a")
        preview_at(page, 60, 60)
        chips = page.locator(".studio .proposals button")
        count = chips.count()
        assert 0 < count <= 9 and not page.locator(".studio .preview").is_hidden()
        color = chips.nth(count - 1).get_attribute("title")[:7]
        page.keyboard.press(str(count))
        page.wait_for_selector(f'.studio.editor[data-edits="{edits + 1}"]')
        after = page.evaluate(shown)
        assert page.get_by_label("Hexadecimal color").input_value() == color and after != before
        with session.lock:  # the server cannot answer
            page.keyboard.press("Control+z")
            page.wait_for_selector(f'.studio.editor[data-edits="{edits}"]')
            assert page.evaluate(shown) == before
            page.keyboard.press("Control+y")
            page.wait_for_selector(f'.studio.editor[data-edits="{edits + 1}"]')
        page.keyboard.press("Control+z")
        page.wait_for_selector(f'.studio.editor[data-edits="{edits}"]')
        preview_at(page, 60, 60)
        chips.first.click()
        page.wait_for_selector(f'.studio.editor[data-edits="{edits + 1}"]')
        page.keyboard.press("Control+z")
        page.wait_for_selector(f'.studio.editor[data-edits="{edits}"]')


@pytest.mark.parametrize("size", [(1280, 720), (1920, 1080)])
def test_frame_and_tools_fit_on_the_screen(browser, colored, size):
    with open_page(browser, colored[1]) as page:
        page.set_viewport_size({"width": size[0], "height": size[1]})
        wait_for_frame(page, 7)
        for selector in (".viewer .sheet", ".viewer .time", ".viewer [data-action=join]"):
            box = page.locator(f".studio{selector}").bounding_box()
            assert box["y"] + box["height"] <= size[1], selector
        page.get_by_role("tab", name="Correct").click()
        page.wait_for_selector('.studio.editor[data-shown="7"]')
        for selector in ("canvas", "[role=toolbar]", ".time", "[data-action=add]", ".swatches button:last-child"):
            box = page.locator(f".studio.editor {selector}").bounding_box()
            assert box["y"] + box["height"] <= size[1] and box["x"] + box["width"] <= size[0], selector
        assert page.locator(".studio.editor canvas").bounding_box()["height"] > size[1] / 2
        page.get_by_role("tab", name="Palette").click()
        page.wait_for_selector(".studio.palette[data-shown]")
        for selector in (".frame", ".time", "[data-action=import]", "[data-action=restore]", ".groups"):
            box = page.locator(f".studio.palette {selector}").bounding_box()
            assert box["y"] + box["height"] <= size[1] and box["x"] + box["width"] <= size[0], selector
        assert page.locator(".studio.palette .frame").bounding_box()["height"] > size[1] / 2
