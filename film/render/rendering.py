"""How is a whole film colored? Shot by shot, each with one palette, and so that an interrupted run goes on.

A film is decoded twice. The first pass (``scan.py``) finds the shots on the luma and chooses one palette for each; the
second colors them, each into a file of its own in a hidden folder beside the output, from which an interrupted run goes
on. At the end the files are joined. The luma of a result is that of its source, sample by sample; only Cb and Cr are
new. Numbered frames are colored in the same way, each into a picture of its own. Of several processes, those that help
begin while the first pass goes on, but with numbered frames, whose pictures are in place at once.

Memory grows by about 30 bytes for each frame of the film and, for each shot, its palette (at most 10 kB) and its record
(about 50 kB of compressed pictures). At most 27 + 10 * batch_size frames are held at a time, and in the first pass as
many of the network's size as a dissolve may be late. Of a film of LARGE frames it is half as many.
"""

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from colorizer.metrics import has_color
from config import FilmConfig, part_of
from fileio.atomic import exclusive_lock
from film.analysis.first_pass import analyze_film
from film.analysis.plan import FilmPredictor, Plan
from film.io.encoding import explain_write_errors
from film.io.image_sequence import ImageSequence
from film.io.interlacing import FIELD_ORDER_NAMES
from film.io.video import LARGE_FRAME_PIXELS, Film, prefetch
from film.render.incremental import finished_shots, open_segment_store, shot_digest
from film.render.pipeline import finish, predict_tasks, read_tasks
from film.render.segments import SegmentStore, read_completion
from film.render.work_queue import WorkQueue
from film.render.worker_group import POLL_SECONDS
from film.render.writers import FilmWriter, FrameWriter, Writer
from film.report.confidence_video import save_confidence_maps, write_confidence_video
from film.report.consistency import CDC
from film.report.records import THUMBNAIL, Records, ShotRecord
from utils import UserError, warn

LATE = 60  # seconds after which a file that one machine wrote is seen on all, at the latest


# ---------------------------------------------------------------------------------------------------------------------
# Shot by shot


@dataclass
class FilmRendering:
    """A film that is being colored: what is worked on, and what is finished."""

    film: Film
    predictor: FilmPredictor
    config: FilmConfig
    output: Path
    writer: Writer
    parts: SegmentStore
    plan: Plan
    records: Records = field(init=False)  # of the shots that are finished, as this process knows
    todo: list[int] = field(init=False)  # the others, in order
    readings: list[str] = field(init=False)  # what is read for each shot

    def __post_init__(self) -> None:
        self.todo = list(range(len(self.plan.shots)))
        self.records, self.readings = Records(self.plan, [{} for _ in self.todo]), ["" for _ in self.todo]

    def look(self) -> None:
        """See which shots are finished."""
        held: Sequence[str | None] = self.parts.held() or [None] * len(self.plan.shots)
        for number, (noted, reading) in enumerate(finished_shots(self.predictor, self.plan, self.parts, self.config)):
            self.readings[number] = reading or ""
            if noted is not None and noted["reading"] == reading and self._is_kept(number, reading == held[number]):
                self._take_in(number, noted)

    def _take_in(self, number, noted):
        """Take in what ``Parts.save`` noted of a finished shot."""
        palette = self.plan.shots[number].palette
        self.records.states[number] = {**noted["record"], "embedding": palette.embedding,
                                       "slot_ids": list(palette.slot_ids), "slot_scores": list(palette.slot_scores)}
        self.readings[number] = noted["reading"]
        self.todo.remove(number)

    def _is_kept(self, number, in_film):
        """Whether all that is made of the frames of a shot is there, ``in_film`` or as a part."""
        part, times = self.parts.part(number), self.plan.shot_pts(self.plan.shots[number])
        mapped = not self.config.confidence or self.parts.known(number).exists()
        return mapped and (in_film or self.writer.has_shot(part, times))

    def color(self, queue: WorkQueue) -> None:
        """Color the shots that are not finished, with all who help by the ``board``, and join all."""
        plan = self.plan
        missing = sum(plan.shots[number].end - plan.shots[number].start for number in self.todo)
        if self.parts.held():
            print(_told(self.todo, len(plan.shots)))
        log = self.output.with_name(f"{self.output.stem}_shots.jsonl")
        with (queue.sharing_errors(), open(log, "w", encoding="utf-8") as lines,
              tqdm(total=len(plan.pts), initial=len(plan.pts) - missing, unit=" frames", desc=self.output.name,
                   disable=None) as bar):
            logged: dict[int, str] = {}
            self._log(lines, logged)
            while self.todo:
                queue.publish({number: plan.shots[number].end - plan.shots[number].start for number in self.todo})
                for _ in itertools.chain(self.color_shots(queue, bar), queue.wait_for_helpers()):
                    self._take_in_others(queue, bar)
                    self._log(lines, logged)
            lines.seek(0)
            lines.truncate()
            lines.writelines(logged[number] for number in sorted(logged))  # in the order of the film
        if self.parts.held() != self.readings:
            self.writer.join(self.parts, plan, self.readings)

    def color_shots(self, queue: WorkQueue, bar: tqdm) -> Iterator[int]:
        """Color shots that the ``board`` hands out; yields the number of each that is finished."""
        plan, config = self.plan, self.config
        large = self.writer.target.width * self.writer.target.height >= LARGE_FRAME_PIXELS
        jobs = prefetch(read_tasks(self.film, plan, queue, self.predictor.side, config.keep_color_shots),
                     1 if large else config.batch_size)
        painting = prefetch(self._finished(predict_tasks(jobs, self.predictor, plan, config, large)),
                         max(1, config.batch_size // 2) if large else config.batch_size)
        with closing(painting) as painted:
            for number, frames in itertools.groupby(painted, key=lambda job: job.shot):
                self._color_shot(number, frames, bar)
                self.todo.remove(number)
                queue.mark_done(number)
                yield number

    def _finished(self, jobs):
        """The jobs with their results, which are made while the one before is encoded."""
        with closing(jobs):
            for job in jobs:
                job.result = finish(job, self.writer.target, self.config.color_only, self.plan.shots[job.shot].box)
                yield job

    def _take_in_others(self, queue, bar):
        """Take in the shots that others have finished."""
        for number in queue.finished(self.todo):
            if noted := self.parts.finished(self.plan, number):  # else another machine's disk is late: see again
                self._take_in(number, noted)
                bar.update(self.plan.shots[number].end - self.plan.shots[number].start)

    def _log(self, lines, logged):
        """Write the lines of the shots that are finished and not ``logged``, {number: line}, yet; enters them there."""
        for number in sorted(set(range(len(self.plan.shots))).difference(self.todo, logged)):
            logged[number] = json.dumps(self.records[number].log_line()) + "\n"
            lines.write(logged[number])
        lines.flush()

    def draw_map(self) -> None:
        """Write the map of what is known, by what was kept of each shot while it was colored."""
        plan = self.plan
        shots = [(self.parts.known(number), shot) for number, shot in enumerate(plan.shots)]
        write_confidence_video(self.film, confidence_video_path(self.output), plan.pts, shots, origin=plan.pts[0] if self.config.start else 0,
                    aspect=self.writer.target.tags.get("sample_aspect_ratio"))

    def _color_shot(self, number, jobs, bar):
        """Write one shot from its jobs, and note its record, its looks and what was read."""
        plan, config, target = self.plan, self.config, self.writer.target
        shot, started, known, looks = plan.shots[number], time.monotonic(), [], []
        self.parts.forget(number)
        middle, cdc, cdc_ground_truth = (shot.start + shot.transition_start) // 2, CDC(), CDC()
        ratio = target.tags.get("sample_aspect_ratio") or 1
        size = max(1, round(THUMBNAIL * target.height / (target.width * ratio))), THUMBNAIL
        keeping = save_confidence_maps(self.parts.known(number)) if config.confidence else nullcontext(lambda known: None)
        with self.writer.shot(self.parts.part(number), plan.shot_pts(shot)) as write, keeping as keep_known:
            for job in itertools.islice(jobs, shot.end - shot.start):
                write(job.result, plan.pts[job.index])
                keep_known(job.known)
                if job.look is not None:
                    looks.append(job.look)
                known.append((math.nan, math.nan) if job.known is None else
                             (job.known.probability.mean(), job.known.recalled.mean()))
                if job.index == middle:
                    shown = job.planes, job.result
                if not config.color_only:
                    cdc.add(job.result.crop(shot.box).rgb_uint8(*size))
                if plan.has_color:
                    cdc_ground_truth.add(job.planes.crop(shot.box).rgb_uint8(*size))
                bar.update()
        truth = shown[0].rgb_uint8(*size)
        truth = truth if plan.has_color and has_color(truth) else None
        confidence, recalled = np.mean(known, 0).tolist()
        following = plan.pts[shot.end] if shot.end < len(plan.pts) else plan.pts[-1] + plan.last_duration
        record = ShotRecord(
            number, shot.start, shot.end, float(plan.pts[shot.start] * target.time_base),
            float(following * target.time_base), shown[0].gray_uint8(*size), shown[1].rgb_uint8(*size), truth,
            list(shot.palette.slot_ids), list(shot.palette.slot_scores), confidence,
            shot.palette.embedding.numpy(),
            config.keep_color_shots and shot.in_color, cdc.value(),
            math.nan if truth is None else cdc_ground_truth.value(), recalled, shot.box, time.monotonic() - started,
            shot.end - shot.transition_start)
        looks = np.stack(looks) if looks else np.zeros((0, 0), np.int16)
        reading = shot_digest(self.predictor, plan, number, looks, config)
        self.records.states[number] = self.parts.save(plan, record, looks, reading)
        self.readings[number] = reading


def confidence_video_path(output: Path) -> Path:
    """The path of the map of what is known of the colored film ``output``."""
    return output.with_name(f"{output.stem}_confidence.mp4")


def _told(numbers, count):
    """In words, which of ``count`` shots are colored again."""
    if not numbers:
        return "no shot changes; the film stays as it is"
    several = (list(group) for _, group in itertools.groupby(enumerate(numbers, 1), lambda pair: pair[1] - pair[0]))
    names = [f"{group[0][1] + 1}" + (f" to {group[-1][1] + 1}" if len(group) > 1 else "") for group in several]
    return f"{len(numbers)} of {count} shots are colored again: {', '.join(names)}"


def check_ground_truth(predictor: FilmPredictor, has_color: bool, path: Path) -> None:
    """Raise UserError if the palette is that of the ground truth and the input ``path`` is not in color."""
    if predictor.source == "ground_truth" and not has_color:
        raise UserError(f"{path} has no colors of its own for --color_feature ground_truth; use another --color_feature")


@dataclass
class RenderJob:
    """A film to be colored into ``output``: by one process, its host, and by any that help."""

    predictor: FilmPredictor
    film: Film
    output: Path
    config: FilmConfig
    overwrite: bool = False

    def run_as_owner(self, queue: WorkQueue, on_complete: Callable[[Records], None] | None = None) -> Records:
        """``color_film``, with all who help by the ``board``."""
        predictor, film, output, config, overwrite = self.predictor, self.film, self.output, self.config, self.overwrite
        busy = f"another run is writing {output}; wait for it or choose another --output"
        with explain_write_errors(output):
            writer = self._writer()
            if order := writer.target.field_order:
                warn(f"{film.path} is interlaced ({FIELD_ORDER_NAMES[order]}), and {output} will be: colors are chosen on "
                     "the mean of both fields, and each field gets its own")
            output.parent.mkdir(parents=True, exist_ok=True)
            with exclusive_lock(output.with_name(f".{output.name}.lock"), busy):
                parts = open_segment_store(predictor, film, output, writer, config)
                plan, done_by = parts.plan(), read_completion(output)
                ours = plan is not None and bool(parts.held())
                if done_by is not None and (overwrite or done_by.predictor == predictor.identity):
                    plan, ours = None, False
                if writer.replaces() and not overwrite and not ours:
                    raise UserError(f"{output} exists already; pass --overwrite True or another --output")
                if config.confidence and plan is None and confidence_video_path(output).exists() and not overwrite:
                    raise UserError(f"{confidence_video_path(output)} exists already; pass --overwrite True or another --output")
                if plan is None:
                    plan = self._find_plan(parts, queue, writer.cuts)
                check_ground_truth(predictor, plan.has_color, film.path)
                parts.go_on()
                work = self._coloring(writer, parts, plan)
                work.look()
                work.color(queue)
                if config.confidence:
                    work.draw_map()
                if on_complete:
                    on_complete(work.records)
                if writer.cuts and predictor.origin:
                    parts.finish(predictor)
                else:
                    parts.remove()
                return work.records

    def run_as_helper(self, queue: WorkQueue) -> None:
        """Color shots that the ``board`` of the host hands out, until none is left. An error is the host's to tell."""
        with suppress(UserError), queue.sharing_errors(), explain_write_errors(self.output):
            writer = self._writer()
            parts = open_segment_store(self.predictor, self.film, self.output, writer, self.config)
            deadline = time.monotonic() + LATE
            while (found := parts.plan_so_far()) is None:
                if time.monotonic() > deadline:
                    raise UserError(f"{parts.folder} is not seen on all machines; choose an --output that is")
                time.sleep(POLL_SECONDS)
            plan, whole = found
            queue.end = len(plan.shots) if whole else len(plan.shots) - 1
            if not sum(1 for _ in self._coloring(writer, parts, plan).color_shots(queue, tqdm(disable=True))):
                time.sleep(POLL_SECONDS)  # another one was quicker, or this machine's disk is late

    def _find_plan(self, parts, queue, early):
        """The plan of the film. While it is found, who helps colors ``early`` the shots that are known, as if it had
        neither bars nor a Response; where that is not so, these are colored again."""
        outlines = []

        def found(plan):
            new = range(len(outlines), len(plan.shots) - 1)  # the last one may go over into one that is not known
            if new and queue.is_empty():
                parts.begin(plan, whole=False)
                outlines.extend(map(plan.shot_signature, new))
                queue.publish({number: plan.shots[number].end - plan.shots[number].start for number in new})

        plan = analyze_film(self.film, self.predictor, self.config, found if early and queue.is_shared else None)
        if outlines != [plan.shot_signature(number) for number in range(min(len(outlines), len(plan.shots)))]:
            queue.withdraw()
            for _ in queue.wait_for_helpers():
                pass
        parts.begin(plan)
        return plan

    def _writer(self) -> Writer:
        if isinstance(self.film, ImageSequence):
            return FrameWriter(self.film, self.output, self.overwrite)
        return FilmWriter(self.film.path, self.output, self.config)

    def _coloring(self, writer, parts, plan):
        through = self.predictor.with_response(plan.response)
        return FilmRendering(self.film, through, self.config, self.output, writer, parts, plan.requery_palettes(through))


def color_film(predictor: FilmPredictor, film: Film, output: str | Path, config: FilmConfig | None = None, *,
               overwrite: bool = False, on_complete: Callable[[Records], None] | None = None) -> Records:
    """Color ``film``, such as VideoFile("episode.mkv"), into ``output``; returns the Records of its shots.

    ``explain(records)`` is called when the film is whole, to write what goes with it. Numbered frames are written into
    the folder of ``output``, whose name is only that of what goes with them. An interrupted run goes on with its first
    unfinished shot, or with ``explain``. Where the output was colored in this way with other references, the shots that
    these change (``again.affected``) are colored again, and all others taken from it; it stays until the new film is
    whole. <output stem>_shots.jsonl gets a line for each finished shot, and with ``config.confidence``
    <output stem>_confidence.mp4 the map of what is known. Raises UserError for all that the user can mend; finished
    shots are kept then.
    """
    settings = part_of(config or FilmConfig(), FilmConfig)
    return RenderJob(predictor, film, Path(output), settings, overwrite).run_as_owner(WorkQueue(), on_complete)
