"""Measure the clicks and seconds that a scripted person needs to correct a shot in the studio, in Chromium.

    python -m benchmarks.studio_clicks CHECKPOINT FILM [--shot 0] [--clicks 40] [--goal 3]

FILM is in color and its own ground truth; the studio colors it from its luma. The person corrects the middle frame of a
shot: the pointer rests at the center of the largest wrong area, and the person looks at the preview. If most of what
"All like this" selects has the color of this point, the person uses it, else "Fill". A proposed color that looks right
is accepted by its number; otherwise, the person enters the hexadecimal number. Whatever increases the error is undone.
Then the frame becomes a reference, and the shot is colored again.

Clicks and key presses are counted alike, a hexadecimal number as 2. Prints a Markdown table: mean CIEDE2000 of the
frame and of the shot (every 4th frame), clicks so far, and seconds that the person waited for the studio.
"""

import base64
import shutil
import socket
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from playwright.sync_api import sync_playwright

import studio

from benchmarks.common import first_line, print_header, print_row
from benchmarks.region_clicks import center_of

from colorizer.metrics import color_differences
from config import StudioConfig
from dataset import rgb_to_lab
from editing.frame_reader import FrameReader, index_frames
from editing.project import open_project
from editing.session import EditingSession
from film.io.video import VideoFile
from utils import ArgumentParser, UserError, parse_positive_int, run_cli

VISIBLE_ERROR = 3.5  # CIEDE2000 above which a pixel looks wrong to the person
MIN_AREA = 150  # pixels; smaller wrong areas are left
SAME_COLOR = 8.0  # distance in ab up to which colors look the same to the person
SELECTED, ENOUGH = 0.4, 300  # share of a wrong area, or pixels, that a preview must select
EVERY = 4  # frames of the shot that are measured


class Person:
    """A scripted person in front of the Correct tab of a page."""

    def __init__(self, page, truth):
        self.page, self.truth, self.true_lab = page, truth, rgb_to_lab(truth)
        self.clicks, self.waited, self.tool, self.color = 0, 0.0, "fill", ""
        self.given_up = np.zeros(truth.shape[:2], bool)
        codes = np.round(self.true_lab[..., 1:] / (2 * SAME_COLOR))
        self.colors = 100 * codes[..., 0] + codes[..., 1]  # equal for similar colors

    def act(self, function, *args, clicks=1):
        """Do what counts as ``clicks``."""
        self.clicks += clicks
        return function(*args)

    def wait(self, script, *args):
        """Wait until ``script`` is true on the page."""
        started = time.monotonic()
        self.page.wait_for_function(script, arg=list(args), timeout=600_000)
        self.waited += time.monotonic() - started

    def see(self, selector="canvas"):
        """Return what the page shows, uint8 (H, W, 4) RGBA at the size of the frame."""
        uri = self.page.evaluate("""selector => {
          const shown = document.querySelector(`.studio.editor ${selector}`), copy = document.createElement("canvas");
          [copy.width, copy.height] = [shown.naturalWidth || shown.width, shown.naturalHeight || shown.height];
          copy.getContext("2d").drawImage(shown, 0, 0);
          return copy.toDataURL("image/png"); }""", selector)
        picture = cv2.imdecode(np.frombuffer(base64.b64decode(uri.partition(",")[2]), np.uint8), cv2.IMREAD_UNCHANGED)
        height, width = self.truth.shape[:2]
        return cv2.resize(cv2.cvtColor(picture, cv2.COLOR_BGRA2RGBA), (width, height), interpolation=cv2.INTER_NEAREST)

    def errors(self):
        """Return the CIEDE2000 (H, W) of the frame on the page."""
        return color_differences(rgb_to_lab(np.ascontiguousarray(self.see()[..., :3])), self.true_lab)

    def edits(self):
        return int(self.page.get_attribute(".studio.editor", "data-edits"))

    def look_for_work(self, error):
        """Return the center (x, y) of the wrong area of one color with the largest sum of errors, and its mask; None if
        there is none."""
        wrong, best = (error > VISIBLE_ERROR) & ~self.given_up, (0.0, None)
        for color in np.unique(self.colors[wrong]):
            _, areas, stats, _ = cv2.connectedComponentsWithStats(np.uint8(wrong & (self.colors == color)))
            sums = np.bincount(areas.ravel(), error.ravel())
            sums[(stats[:, cv2.CC_STAT_AREA] < MIN_AREA) | (np.arange(len(sums)) == 0)] = 0
            if sums.max() > best[0]:
                best = sums.max(), areas == sums.argmax()
        return None if best[1] is None else (center_of(best[1]), best[1])

    def has_color_of(self, x, y):
        return np.linalg.norm(self.true_lab[..., 1:] - self.true_lab[y, x, 1:], axis=2) < SAME_COLOR

    def point_at(self, x, y):
        """Let the pointer rest at a point of the frame, and return the preview: mask (H, W) and proposed colors."""
        box = self.page.locator(".studio.editor canvas").bounding_box()
        height, width = self.truth.shape[:2]
        self.page.mouse.move(box["x"] - 5, box["y"] - 5)
        return self.preview(self.page.mouse.move, box["x"] + (x + 0.5) / width * box["width"],
                            box["y"] + (y + 0.5) / height * box["height"])

    def preview(self, function, *args):
        """Do what causes a preview, and return it."""
        self.page.evaluate("document.querySelector('.studio.editor').dataset.previewed = ''")
        function(*args)
        self.wait("() => document.querySelector('.studio.editor').dataset.previewed")
        self.page.wait_for_timeout(50)  # the picture of the mask is decoded
        colors = self.page.eval_on_selector_all(".studio.editor .proposals button", "all => all.map(x => x.title)")
        return self.see(".preview")[..., 3] > 0, [color[:7] for color in colors]

    def switch_tool(self):
        """Select the other tool, and return its preview."""
        self.tool = "like" if self.tool == "fill" else "fill"
        return self.preview(self.act, self.page.keyboard.press, {"fill": "f", "like": "a"}[self.tool])

    def correct(self, point, area, error):
        """Color what belongs to a point, if a preview selects much of ``area`` and little else. Returns success."""
        same, wrong = self.has_color_of(*point), error > VISIBLE_ERROR

        def is_good(mask):
            right = (mask & same & wrong).sum()
            return right > min(SELECTED * area.sum(), ENOUGH) and (mask & ~same & ~wrong).sum() < right / 3

        mask, colors = self.point_at(*point)
        if not is_good(mask):
            mask, colors = self.switch_tool()
            if not is_good(mask):
                return False
        where = mask & same if self.tool == "fill" else cv2.circle(np.zeros(mask.shape, np.uint8), point, 2, 1, -1) > 0
        wanted, edits = "#" + np.uint8(np.median(self.truth[where], axis=0)).tobytes().hex(), self.edits()
        wanted_ab, *labs = (rgb_to_lab(np.array([[list(bytes.fromhex(color[1:]))]], np.uint8))[0, 0, 1:]
                            for color in (wanted, *colors))
        distances = [float(np.linalg.norm(lab - wanted_ab)) for lab in labs]
        if distances and min(distances) < SAME_COLOR / 2:
            self.act(self.page.keyboard.press, str(1 + int(np.argmin(distances))))
        else:
            self.act(self.page.get_by_label("Hexadecimal color").fill, wanted, clicks=2)
            self.point_at(*point)
            self.act(self.page.mouse.down)
            self.page.mouse.up()
        self.wait("([edits]) => Number(document.querySelector('.studio.editor').dataset.edits) > edits", edits)
        self.page.wait_for_timeout(50)
        return True

    def undo(self):
        edits = self.edits()
        self.act(self.page.keyboard.press, "Control+z")
        self.wait("([edits]) => Number(document.querySelector('.studio.editor').dataset.edits) < edits", edits)
        self.page.wait_for_timeout(50)


def frame_at(path, index):
    """Return a frame of a film, RGB uint8 (H, W, 3)."""
    return FrameReader(VideoFile(path), index_frames(path)).read(index).rgb_uint8()


def shot_error(result, film, start, end):
    """Return the mean CIEDE2000 of a shot."""
    pairs = ([rgb_to_lab(frame_at(path, index)) for path in (result, film)] for index in range(start, end, EVERY))
    return float(np.mean([color_differences(*pair).mean() for pair in pairs]))


def wait_for_job(session):
    """Wait for the background job, and return the seconds that it took."""
    started = time.monotonic()
    while session.jobs.job.running:
        time.sleep(0.2)
    if session.jobs.job.error:
        raise UserError(session.jobs.job.error)
    return time.monotonic() - started


def measure(session, page, film, shot, max_clicks, goal):
    """Let the person correct a shot, and print the rows of the table."""
    record = session.project.records()[shot]
    start, end, middle = record.start_frame, record.end_frame, record.middle
    page.wait_for_selector(".studio.viewer .shot")
    page.wait_for_timeout(3000)  # the page selects its first tab
    page.evaluate(f"window.studio.goTo({shot}, {middle})")
    page.get_by_role("tab", name="Correct").click()
    page.wait_for_selector(f'.studio.editor[data-shown="{middle}"]')
    person = Person(page, frame_at(film, middle))
    error = person.errors()
    row = f"{shot_error(session.project.colored, film, start, end):.2f}"
    print_row("as colored", f"{error.mean():.2f}", row, 0, "-")
    while person.clicks < max_clicks - 3 and (work := person.look_for_work(error)) is not None:
        point, area = work
        if not person.correct(point, area, error):
            person.given_up |= area
            continue
        remaining = person.errors()
        if remaining.mean() > error.mean():
            person.undo()
            person.given_up |= area
            continue
        error = remaining
        print_row(f"{person.tool} at {point[0]}, {point[1]}", f"{error.mean():.2f}", "", person.clicks,
                  f"{person.waited:.1f}")
    person.act(page.get_by_role("button", name="Add as reference").click)
    page.wait_for_function("() => window.studio.state.running", timeout=60_000)
    person.waited += wait_for_job(session)
    print_row("as reference", f"{error.mean():.2f}", f"{shot_error(session.project.colored, film, start, end):.2f}",
              person.clicks, f"{person.waited:.1f}")


def main(argv):
    parser = ArgumentParser(prog="benchmarks.studio_clicks", description=first_line(__doc__))
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint of train.py")
    parser.add_argument("film", type=Path, metavar="FILM", help="a film in color, the ground truth")
    parser.add_argument("--shot", type=int, default=0, help="zero-based number of the shot")
    parser.add_argument("--clicks", type=parse_positive_int, default=40, help="maximum number of clicks")
    parser.add_argument("--screenshot", type=Path, help="file for a picture of the page")
    args = parser.parse_args(argv)
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        with open_project(Path(folder) / "project", [args.film]) as project, sync_playwright() as playwright:
            studio.prepare(project, StudioConfig(input=args.film, checkpoint=args.checkpoint))
            session = EditingSession(project)
            session.start()
            print_header("step", "frame", "shot", "clicks", "seconds")
            page = studio.serve(session, StudioConfig(port=port), wait=False)
            wait_for_job(session)
            browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
            view = browser.new_page(viewport={"width": 1280, "height": 720})
            view.goto(f"http://127.0.0.1:{port}")
            measure(session, view, args.film, args.shot, args.clicks, 3)
            if args.screenshot:
                view.screenshot(path=args.screenshot)
            browser.close()
            page.close(verbose=False)


if __name__ == "__main__":
    run_cli(main)
