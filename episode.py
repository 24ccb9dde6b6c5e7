"""How is a whole film coloured? Shot by shot, each with one palette, and so that an interrupted run goes on.

A film is decoded twice. The first pass finds the shots on the luma and chooses one palette for each; the second colours
them, each into a file of its own in a hidden folder beside the output, from which an interrupted run goes on. At last
the files are joined. The luma of a result is that of its source, sample by sample; only Cb and Cr are new.

Memory does not grow with the film but for about 10 bytes a frame and, a shot, its palette (at most 10 kB) and record
(about 50 kB of compressed pictures). Of frames at most 20 + 6 * batch_size are held at a time.
"""

import errno
import hashlib
import itertools
import json
import math
import os
import shutil
import time
from array import array
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np
import torch
from tqdm import tqdm

from dataset import resize
from flow import SteadyColors
from planes import Planes, change_depth, paint_chroma, planes_of
from shots import GREY_LOOK_AHEAD, find_grey_cuts, frame_positions
from steadiness import CDC
from utils import UserError, colorfulness, is_color, load_checkpoint, replace_when_done, save_checkpoint
from video import (
    Damage, PartWriter, ahead, choose_target, frame_rate, join, open_video, part_order, read_frames, write_errors)

SAMPLES = 8  # frames of a shot that its palette is chosen by
COLORFUL = 12.0  # mean colourfulness from which a shot is already in colour; grey film with a tint has less
HELD = 4.0  # greatest change, in 8-bit steps of the mean luma of 4 x 4 pixels, within a drawing that is held
NEUTRAL = 0.4663  # Y' of the grey of L 50
THUMBNAIL = 320  # width of the pictures in a ShotRecord, and of those that its CDC is measured on
PARTS_FORMAT = 2  # of what is kept for an interrupted run

# ---------------------------------------------------------------------------------------------------------------------
# The first pass: shots and their palettes


class Palette(NamedTuple):
    """The colours of a shot, and where they come from."""

    color_feature: torch.Tensor | None  # (1, 313) for the generator
    slot_ids: list  # the memory's best slots, best first: frames of the training set
    slot_scores: list  # and their cosine similarities
    feature: torch.Tensor  # (D,) what the backbone sees, the mean over the samples; (0,) without a backbone
    score: float = 1.0  # of the colour feature, for the generator


@dataclass
class Shot:
    """Frames [start, end) of the film and what they are coloured by."""

    start: int
    end: int
    palette: Palette
    in_color: bool  # to be left as it is, if the user wants


@dataclass
class Plan:
    """What the first pass found: the time of every frame in ``time_base``, and the shots."""

    pts: array  # of int64
    last_duration: int  # of the last frame
    shots: list
    has_color: bool  # somewhere, so that there is a truth

    def state(self):
        """The plan as plain values and tensors."""
        shots = [{**vars(shot), "palette": tuple(shot.palette)} for shot in self.shots]
        return {"pts": torch.tensor(self.pts, dtype=torch.int64), "last_duration": self.last_duration, "shots": shots,
                "has_color": self.has_color}

    @classmethod
    def of(cls, state):
        """The inverse of ``state``."""
        shots = [Shot(**{**shot, "palette": Palette(*shot["palette"])}) for shot in state["shots"]]
        return cls(array("q", state["pts"].tolist()), state["last_duration"], shots, state["has_color"])


class Samples:
    """Frames spread evenly over the open shot, at least SAMPLES of them if it is so long, as Lab (side, side, 3)."""

    def __init__(self, side):
        self.side, self.stride = side, 1
        self.first, self.seen = 0, 0
        self.recent = deque()  # (index, planes) that may belong to the next shot
        self.kept = {}  # index -> (Lab, RGB uint8 thumbnail)

    def add(self, planes):
        self.recent.append((self.seen, planes))
        self.seen += 1
        if len(self.recent) > GREY_LOOK_AHEAD:
            self._keep(*self.recent.popleft())

    def _keep(self, index, planes):
        if (index - self.first) % self.stride == 0:
            rgb = planes.rgb(self.side, self.side)
            self.kept[index] = cv2.cvtColor(rgb, cv2.COLOR_RGB2Lab), np.rint(rgb * 255).astype(np.uint8)
            if len(self.kept) == 2 * SAMPLES:
                self.kept = dict(itertools.islice(self.kept.items(), 0, None, 2))
                self.stride *= 2

    def close(self, end):
        """The open shot ends in front of frame ``end``: its samples, [(Lab, RGB)]; the next shot begins there."""
        while self.recent and self.recent[0][0] < end:
            self._keep(*self.recent.popleft())
        kept = list(self.kept.values())
        chosen = [kept[i] for i in frame_positions(0, len(kept) - 1, SAMPLES)]
        self.kept, self.stride, self.first = {}, 1, end
        return chosen


def scan(path, painter, settings):
    """The first pass over a film: its Plan. Raises UserError when no frame between start and end decodes."""
    samples, damage, pts, shots, has_color = Samples(painter.side), Damage(), array("q"), [], False
    with open_video(path) as (film, stream):
        promised = stream.frames or round((film.duration or 0) / 1e6 * frame_rate(stream))
        begin, beyond = settings.window(film, stream)
        step = max(1, round(1 / (frame_rate(stream) * stream.time_base)))
    duration = 0

    def lumas():
        nonlocal duration
        frames = ahead(read_frames(path, begin, damage), 8)
        with closing(frames), tqdm(total=promised or None, unit=" frames", desc="finding shots", leave=False,
                                   disable=None) as bar:
            for time_, frame in frames:
                if time_ >= beyond:
                    return
                pts.append(time_)
                duration = frame.duration
                planes = planes_of(frame)
                samples.add(planes)
                bar.update()
                yield planes.luma(256, 256)

    def close(end):
        nonlocal has_color
        labs, pictures = zip(*samples.close(end), strict=True)
        in_color = float(np.mean([colorfulness(picture) for picture in pictures])) > COLORFUL
        has_color = has_color or any(is_color(picture) for picture in pictures)
        shots.append(Shot(shots[-1].end if shots else 0, end, painter.palette(labs), in_color))

    for cut in find_grey_cuts(lumas()):
        close(cut)
    if not pts:
        part = "" if (settings.start, settings.end) == (0, math.inf) else " between --start and --end"
        raise UserError(f"no frame of {path}{part} can be decoded")
    close(len(pts))
    damage.report(path)
    if not duration:
        duration = pts[-1] - pts[-2] if len(pts) > 1 else step
    return Plan(pts, duration, shots, has_color)


# ---------------------------------------------------------------------------------------------------------------------
# Shot by shot


@dataclass
class ShotRecord:
    """What a finished shot was coloured by and looks like."""

    index: int
    start_frame: int  # of the film, or of the part between --start and --end
    end_frame: int  # exclusive
    start_time: float  # seconds in the film
    end_time: float
    grey: np.ndarray  # the middle frame, RGB uint8 (H, W, 3), THUMBNAIL wide
    result: np.ndarray
    truth: np.ndarray | None  # where the input is in colour
    slot_ids: list  # frames of the training set, best first
    slot_scores: list  # their similarities
    confidence: float  # mean of the spatial memory's hints in [0, 1]; nan without
    feature: np.ndarray  # float32 (D,), what the backbone sees, mean over the shot; (0,) without a backbone
    kept: bool = False  # in colour already, and left as it was
    cdc: float = math.nan  # colour distribution consistency of the result; nan for chroma alone and a single frame
    cdc_truth: float = math.nan  # nan where there is no truth
    seconds: float = field(default=0.0, compare=False)  # that the shot took

    def log_line(self):
        """What the log says of it, a dict of plain values."""
        names = ("index", "start_frame", "end_frame", "slot_ids", "kept")
        line = {name: getattr(self, name) for name in names}
        line["slot_scores"] = [round(score, 4) for score in self.slot_scores]
        for name, digits in (("confidence", 4), ("cdc", 6), ("cdc_truth", 6)):
            value = getattr(self, name)
            line[name] = None if math.isnan(value) else round(value, digits)
        return line | {name: round(getattr(self, name), 3) for name in ("start_time", "end_time", "seconds")}


class Records(Sequence):
    """ShotRecords, held with their pictures compressed (JPEG) until one is asked for; and ``pts``, the time of every
    frame of the film in its time base."""

    PICTURES = ("grey", "result", "truth")

    def __init__(self, pts, states):
        self.pts, self.states = pts, states

    def __len__(self):
        return len(self.states)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        state = dict(self.states[index])
        for name in self.PICTURES:
            if state[name] is not None:
                state[name] = cv2.imdecode(state[name].numpy(), cv2.IMREAD_COLOR_RGB)
        return ShotRecord(**{**state, "feature": state["feature"].numpy()})

    @classmethod
    def pack(cls, record):
        """A record as plain values and tensors."""
        state = dict(vars(record))
        for name in cls.PICTURES:
            if state[name] is not None:
                bgr = cv2.cvtColor(state[name], cv2.COLOR_RGB2BGR)
                state[name] = torch.from_numpy(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 92])[1])
        return {**state, "feature": torch.from_numpy(record.feature)}


class Parts:
    """The hidden folder beside an output where its finished shots lie until all are there."""

    def __init__(self, output, key):
        self.folder = output.with_name(f".{output.name}.parts")
        self.key = key

    def open(self):
        """The Plan of an interrupted run of the same key, or None and an empty folder."""
        try:
            content = load_checkpoint(self.folder / "plan.pt")
            if content["key"] == self.key:
                return Plan.of(content["plan"])
        except UserError:  # there is none, or not a whole one
            pass
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        return None

    def save_plan(self, plan):
        save_checkpoint(self.folder / "plan.pt", {"key": self.key, "plan": plan.state()})

    def part(self, index):
        return self.folder / f"{index:06d}.part"

    def record(self, index):
        """The packed ShotRecord of a shot that is finished and whole, else None."""
        if not self.part(index).exists():
            return None
        try:
            state = load_checkpoint(self.part(index).with_suffix(".pt"))["record"]
        except UserError:
            return None
        return state if len(part_order(self.part(index))) == state["end_frame"] - state["start_frame"] else None


@dataclass
class Job:
    """A frame on its way through the threads."""

    shot: int
    index: int
    planes: Planes
    L: np.ndarray | None = None  # (side, side) for the network; None for a drawing that is held, and one that is kept
    ab: np.ndarray | None = None  # (S, S, 2), the network's answer; None for a frame that stays as it is
    confidence: float = math.nan


def planned_frames(path, times, index):
    """(index, frame) of the frames from ``index`` on. Raises UserError when they are not at ``times``, pts of all."""
    frames = read_frames(path, times[index])
    first = next(frames, None)
    if first is None or first[0] != times[index]:  # a film that cannot seek well, or states no times
        frames.close()
        frames = itertools.dropwhile(lambda item: item[0] < times[index], read_frames(path))
        first = next(frames, None)
    for (pts, frame), expected in zip(itertools.chain([first], frames), itertools.islice(times, index, None),
                                      strict=False):
        if pts != expected:
            break
        yield index, frame
        index += 1
    if index < len(times):
        raise UserError(f"{path} cannot be read a second time as it was the first, from frame {index} on; copy it to "
                        "a good disk and run again")


def read_jobs(path, plan, todo, side, keep):
    """Jobs for the frames of the shots in ``todo``; a drawing that is held (see HELD) has no L of its own."""
    bounds = iter([(number, plan.shots[number]) for number in todo])
    number, shot = next(bounds)
    with closing(planned_frames(path, plan.pts, shot.start)) as frames:
        held = None
        for index, frame in frames:
            if index < shot.start:
                continue
            job = Job(number, index, planes_of(frame))
            if not (keep and shot.in_color):
                y = job.planes.y
                small = resize(y, max(1, y.shape[0] // 4), max(1, y.shape[1] // 4))
                if index == shot.start or cv2.absdiff(small, held).max() > HELD * 2 ** (job.planes.coding.depth - 8):
                    held = small  # compared with the drawing's first frame, so that no slow change adds up
                    job.L = job.planes.lab(side)[..., 0]
            yield job
            if index == shot.end - 1:
                number, shot = next(bounds, (None, None))
                if shot is None:
                    return


def paint_jobs(jobs, painter, plan, batch_size, keep):
    """Fill in the jobs' ab, in batches of at most ``batch_size`` new drawings of one shot."""
    def paint(batch):
        if batch[0].index == plan.shots[batch[0].shot].start:
            paint.steady = SteadyColors()
        fresh = [job.L for job in batch if job.L is not None]
        if fresh:
            answers = iter(zip(*painter.paint(np.stack(fresh), plan.shots[batch[0].shot].palette), strict=True))
        for job in batch:
            if job.L is not None:
                ab, confidence = next(answers)
                paint.last = paint.steady(job.L, ab), confidence
            if not (keep and plan.shots[job.shot].in_color):
                job.ab, job.confidence = paint.last
            job.L = None
        return batch

    with closing(jobs):
        batch = []
        for job in jobs:
            if batch and (job.shot != batch[0].shot or sum(other.L is not None for other in batch) == batch_size
                          or len(batch) == 2 * batch_size):
                yield from paint(batch)
                batch = []
            batch.append(job)
        yield from paint(batch)


def finish(job, target, colour_only):
    """The planes of a result: the luma of the source and new Cb and Cr."""
    planes, coding = job.planes, target.coding
    y = change_depth(planes.y, planes.coding.depth, coding.depth)
    if job.ab is not None:
        cb, cr = paint_chroma(planes, job.ab, *target.chroma, coding)
    elif planes.cb is None:
        cb = cr = np.full(target.chroma, coding.chroma[0], coding.dtype)
    else:
        cb, cr = (change_depth(resize(plane, *target.chroma), planes.coding.depth, coding.depth)
                  for plane in (planes.cb, planes.cr))
    if colour_only:
        black, span = coding.luma
        y = np.full_like(y, round(black + span * NEUTRAL))
    return Planes(y, cb, cr, coding)


def color_shot(number, plan, jobs, part, target, settings, source, bar):
    """Write the part of one shot from its jobs; returns its ShotRecord."""
    shot, started, confidence, shown = plan.shots[number], time.monotonic(), [], None
    middle, cdc, cdc_truth = (shot.start + shot.end) // 2, CDC(), CDC()
    ratio = target.tags.get("sample_aspect_ratio") or 1
    size = max(1, round(THUMBNAIL * target.height / (target.width * ratio))), THUMBNAIL
    with replace_when_done(part) as temporary:
        with open(temporary, "wb") as file:
            with PartWriter(file, target) as writer:
                for job in itertools.islice(jobs, shot.end - shot.start):
                    result = finish(job, target, settings.colour_only)
                    writer.write(result, plan.pts[job.index])
                    confidence.append(job.confidence)
                    if job.index == middle:
                        shown = job.planes, result
                    if not settings.colour_only:
                        cdc.add(result.picture(*size))
                    if plan.has_color:
                        cdc_truth.add(job.planes.picture(*size))
                    bar.update()
            file.flush()
            os.fsync(file.fileno())
        if len(part_order(temporary)) != shot.end - shot.start:
            raise OSError(errno.EIO, "not all frames were written")
        truth = shown[0].picture(*size)
        truth = truth if is_color(truth) else None
        at = [float(plan.pts[i] * target.time_base) for i in (shot.start, shot.end - 1)]
        following = plan.pts[shot.end] if shot.end < len(plan.pts) else plan.pts[-1] + plan.last_duration
        record = ShotRecord(
            number, shot.start, shot.end, at[0], float(following * target.time_base), shown[0].grey(*size),
            shown[1].picture(*size), truth, list(shot.palette.slot_ids),
            list(shot.palette.slot_scores), float(np.mean(confidence)), shot.palette.feature.numpy(),
            settings.keep_colour_shots and shot.in_color, cdc.value(),
            math.nan if truth is None else cdc_truth.value(), time.monotonic() - started)
        save_checkpoint(part.with_suffix(".pt"), {"record": Records.pack(record)})
    return record


def _key(painter, source, target, settings):
    """What a part depends on, as a hash: with another one it is not used again."""
    stat = source.stat()
    content = [PARTS_FORMAT, painter.identity, str(source.resolve()), stat.st_size, stat.st_mtime_ns,
               repr(target), repr(asdict(settings)), sorted(av.library_versions.items())]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def color_video(painter, source, output, settings):
    """Colour the film ``source`` into ``output``; returns the Records of its shots.

    ``painter`` has ``side``, the side of the square Lab pictures it wants; ``palette(labs)``, which takes Lab float32
    (side, side, 3) of some frames of a shot and returns its Palette; ``paint(L, palette)``, which takes L float32
    (n, side, side) in [0, 100] and returns ab float32 (n, S, S, 2) and confidences (n,); ``source``, see test.py; and
    ``identity``, a text that differs for every painter that colours differently.
    An interrupted run goes on with its first unfinished shot. <output stem>_shots.jsonl gets a line a finished shot.
    Raises UserError for all that the user can mend; finished shots are kept then.
    """
    source, output = Path(source), Path(output)
    if output.exists() and output.samefile(source):
        raise UserError(f"the output {output} is the input itself; name another --output")
    target = choose_target(source, output, settings)
    parts = Parts(output, _key(painter, source, target, settings))
    with write_errors(output):
        plan = parts.open()
        if plan is None:
            plan = scan(source, painter, settings)
            parts.save_plan(plan)
        if painter.source == "truth" and not plan.has_color:
            raise UserError(f"{source} has no colours of its own for --color_feature truth; use another "
                            "--color_feature")
        numbers = range(len(plan.shots))
        done = list(itertools.takewhile(lambda item: item[1], ((n, parts.record(n)) for n in numbers)))
        records = Records(plan.pts, [state for _, state in done])
        todo = list(numbers[len(done):])
        with (open(output.with_name(f"{output.stem}_shots.jsonl"), "w", encoding="utf-8") as log,
              tqdm(total=len(plan.pts), initial=len(plan.pts) - sum(
                  plan.shots[n].end - plan.shots[n].start for n in todo), unit=" frames", desc=output.name,
                  disable=None) as bar):
            for record in records:
                print(json.dumps(record.log_line()), file=log, flush=True)
            if todo:
                jobs = ahead(read_jobs(source, plan, todo, painter.side, settings.keep_colour_shots),
                             2 * settings.batch_size)
                painted = ahead(paint_jobs(jobs, painter, plan, settings.batch_size, settings.keep_colour_shots),
                                2 * settings.batch_size)
                with closing(painted):
                    for number in todo:
                        record = color_shot(number, plan, painted, parts.part(number), target, settings, source, bar)
                        records.states.append(Records.pack(record))
                        print(json.dumps(record.log_line()), file=log, flush=True)
        join([parts.part(n) for n in numbers], plan, source, output, settings, target)
        shutil.rmtree(parts.folder)
    return records


def compare(source, output, settings, every):
    """One of ``every`` frames of a film and of its result, as they are in the files: (index, truth, result), of which
    the pictures are RGB uint8 (H, W, 3)."""
    with open_video(source) as (film, stream):
        begin, _ = settings.window(film, stream)
    with (closing(ahead(read_frames(source, begin), 8)) as truths,
          closing(ahead(read_frames(output), 8)) as results):
        for index, ((_, truth), (_, result)) in enumerate(zip(truths, results, strict=False)):
            if index % every == every // 2:
                yield index, planes_of(truth).picture(), planes_of(result).picture()
