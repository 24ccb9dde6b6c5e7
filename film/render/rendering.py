"""Rendering of a film: each shot is colored into its own segment, and the segments are joined.

There are two stages. The analysis (film/analysis/film_analysis.py) finds the shots and their palettes, in one pass
over the film, or two if it finds a letterbox. The coloring stage then decodes the film once more.
Segments are kept in a hidden folder next to the output, so that an interrupted run can resume. Luma is copied from the
source sample by sample; only Cb and Cr are new. Image sequences are written picture by picture, without segments. If
several processes render a film that is not an image sequence, the helpers start coloring during the analysis.

RAM use grows by about 30 bytes per frame, plus at most 10 kB (palette) and about 50 kB (record) per shot. At most
124 + 32 * threads frames are held at a time, where threads is the number of cores but at most batch_size / 32, and 64
if a frame has LARGE_FRAME_PIXELS or more. The analysis also holds one downscaled copy of each frame of the longest
transition.
"""

import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
from tqdm import tqdm

from config import FilmConfig, part_of
from fileio.atomic import exclusive_lock
from fileio.outputs import accompanying_path, hidden_path, refuse_existing
from film.analysis.film_analysis import analyze_film
from film.analysis.film_scan import FRAMES_AHEAD
from film.analysis.plan import FilmPredictor, Plan
from film.io.encoding import EncodingTarget, explain_write_errors, write_segment
from film.io.image_sequence import ImageSequence
from film.io.interlacing import FIELD_ORDER_NAMES
from film.io.mux import segment_order
from film.io.thread_pool import prefetch
from film.io.video import LARGE_FRAME_PIXELS, Film, VideoFile
from film.render.fallback import FilmFallback, check_fallback, fit_film_fallback, open_fallback
from film.render.incremental import load_all_shots, open_segment_store, shot_digest
from film.render.pipeline import FrameTask, predict_tasks, read_tasks, to_planes
from film.render.segments import SegmentStore, read_completion
from film.render.shot_recorder import ShotRecorder
from film.render.work_queue import WorkQueue
from film.render.worker_group import POLL_SECONDS
from film.render.writers import FilmWriter, FrameWriter, Writer
from film.report.confidence_video import confidence_encoding, join_confidence_video, tint_frame
from film.report.records import Records
from utils import UserError, single_torch_thread, warn

FILE_TIMEOUT = 60  # seconds that a helper waits for the plan; covers the delay of network file systems


def color_film(predictor: FilmPredictor, film: Film, output: str | Path, config: FilmConfig | None = None, *,
               overwrite: bool = False, on_complete: Callable[[Records], None] | None = None) -> Records:
    """Color ``film``, such as ``VideoFile("episode.mkv")``, into ``output``; return the records of its shots.

    ``on_complete(records)`` is called when the film is written, to write its accompanying files. An image sequence is
    written into the parent folder of ``output``, whose name is only used to name the accompanying files.

    After an interruption, the same call colors the unfinished shots. If ``output`` was colored with different
    references, only the shots whose colors change are colored (``incremental.find_changed_shots``), and ``output`` is
    replaced when the new film is complete. <output stem>_shots.jsonl contains a line for each finished shot. If
    ``config.confidence`` is True, <output stem>_confidence.mp4 is written.

    Raises UserError for errors that the user can fix. Finished shots are kept.
    """
    settings = part_of(config or FilmConfig(), FilmConfig)
    return RenderJob(predictor, film, Path(output), settings, overwrite).run_as_owner(WorkQueue(), on_complete)


def confidence_video_path(output: Path) -> Path:
    """Return the path of the confidence video of the film ``output``."""
    return accompanying_path(output, "confidence.mp4")


def check_ground_truth(predictor: FilmPredictor, in_color: bool, path: Path) -> None:
    """Raise UserError if the colors are taken from the input ``path`` itself, but it is not ``in_color``."""
    if predictor.source == "ground_truth" and not in_color:
        raise UserError(f"{path} has no colors of its own for --color_feature ground_truth; use another "
                        "--color_feature")


@dataclass
class RenderJob:
    """A film to be colored into ``output`` by one owner process and any number of helpers."""

    predictor: FilmPredictor
    film: Film
    output: Path
    config: FilmConfig
    overwrite: bool = False

    @single_torch_thread()
    def run_as_owner(self, queue: WorkQueue, on_complete: Callable[[Records], None] | None = None) -> Records:
        """Color the film as ``color_film`` does, together with all processes that take shots from ``queue``."""
        predictor, film, output, config = self.predictor, self.film, self.output, self.config
        busy = f"another run is writing {output}; wait for it or choose another --output"
        with explain_write_errors(output):
            writer = self._writer()
            output.parent.mkdir(parents=True, exist_ok=True)
            with exclusive_lock(hidden_path(output, "lock"), busy):
                segments = open_segment_store(predictor, film, output, writer, config, self.overwrite)
                plan = self._load_plan(writer, segments) or self._analyze(segments, queue, writer.single_file)
                segments.save_manifest(plan)
                check_ground_truth(predictor, plan.has_color, film.path)
                if plan.field_order and writer.single_file:
                    writer = self._writer(plan.field_order)
                if order := writer.target.field_order:
                    warn(f"{film.path} is interlaced ({FIELD_ORDER_NAMES[order]}), and {output} will be, too: colors "
                         "are predicted from the mean of both fields and converted for each field")
                segments.mark_incomplete()
                rendering = self._rendering(writer, segments, plan)
                rendering.load_finished_shots()
                rendering.run(queue)
                if missing := rendering.records.fallback_facts().get("frames_without"):
                    warn(f"{config.fallback} has no frame at the times of {missing} of {len(plan.pts)} frames; their "
                         "colors are predicted or follow from the frames before")
                rendering.write_confidence_video()
                if on_complete:
                    on_complete(rendering.records)
                if writer.single_file and not predictor.base_identity:
                    shutil.rmtree(segments.folder)
                else:
                    segments.mark_complete(predictor, ("plan.pt", "[0-9]*") if not writer.single_file else
                                           ("*.segment",) if config.confidence else ("*.segment", "*.confidence"))
                return rendering.records

    def _load_plan(self, writer, segments):
        """Return the plan of an earlier run if its finished shots can be kept, else None.

        Warns if finished shots cannot be kept. Raises UserError if files would be overwritten without ``overwrite``, or
        if numbered frames of different colors would be mixed.
        """
        plan, completion, changes = segments.load_plan(), read_completion(self.output), segments.changes()
        if completion is not None and (self.overwrite or completion.predictor == self.predictor.identity):
            plan = None  # color all shots again, if ``overwrite`` allows it
        if plan is None or not segments.joined_digests():
            refuse_existing([self.output] if writer.single_file else [], self.overwrite)
        earlier = segments.earlier_operation()
        if self.config.confidence and not earlier.get("confidence"):
            refuse_existing([confidence_video_path(self.output)], self.overwrite)
        for name in ("confidence", "overwrite"):  # files that an interrupted run was allowed to write
            segments.manifest.operation[name] |= earlier.get(name, False)
        if isinstance(writer, FrameWriter):
            writer.overwrite = segments.manifest.operation["overwrite"]
            if changes and not writer.overwrite and (count := writer.count_existing()):
                raise UserError(f"{count} frames in {writer.folder} were colored in another way: {changes}; pass "
                                "--overwrite True or a different --output")
        elif plan is None and (count := segments.count_segments()):
            warn(f"the finished shots of {self.output} ({count}) are colored again, because "
                 f"{changes or 'their plan is damaged'}")
        return plan

    @single_torch_thread()
    def run_as_helper(self, queue: WorkQueue) -> None:
        """Color shots from the owner's ``queue`` until it is empty. Errors are passed on to the owner."""
        with suppress(UserError), queue.sharing_errors(), explain_write_errors(self.output):
            writer = self._writer()
            segments = open_segment_store(self.predictor, self.film, self.output, writer, self.config, self.overwrite)
            deadline = time.monotonic() + FILE_TIMEOUT
            while (loaded := segments.load_plan_state()) is None:
                if time.monotonic() > deadline:
                    raise UserError(self._why_no_help(segments))
                time.sleep(POLL_SECONDS)
            plan, is_complete = loaded
            writer = self._writer(plan.field_order)
            operation = segments.earlier_operation()  # of the owner
            self.config = replace(self.config, confidence=operation["confidence"])
            if isinstance(writer, FrameWriter):
                writer.overwrite = operation["overwrite"]
            queue.end = len(plan.shots) if is_complete else len(plan.shots) - 1
            rendering = self._rendering(writer, segments, plan)
            if not sum(1 for _ in rendering.color_shots(queue, tqdm(disable=True))):
                time.sleep(POLL_SECONDS)  # other processes took all shots, or the plan is outdated

    def _why_no_help(self, segments):
        """Return why a helper cannot read the plan of the owner."""
        if changes := segments.changes():
            return (f"not all processes can color {self.output} in the same way, because {changes} in one of them; "
                    "start them with the same flags, such as --precision, and on the same versions")
        return f"{segments.folder} is not visible on all machines; choose an --output on a shared file system"

    def _analyze(self, segments, queue, start_helpers):
        """Analyze the film, save the plan and return it.

        With ``start_helpers`` and without a fallback, helpers already color shots during the analysis, assuming that
        there is no letterbox and no film response. If the analysis finds one, these shots are colored again.
        """
        signatures, fallback = [], open_fallback(self.film, self.config)
        if fallback:
            check_fallback(fallback, self.film, self.output, self.config)

        def publish(plan):
            new = range(len(signatures), len(plan.shots) - 1)  # the last shot may end in a transition
            if new and queue.is_empty():
                segments.save_plan(plan, is_complete=False)
                signatures.extend(map(plan.shot_signature, new))
                queue.publish(_lengths(plan, new))

        plan = analyze_film(self.film, self.predictor, self.config,
                            publish if start_helpers and queue.is_shared and not self.predictor.needs_whole_film
                            and not fallback else None)
        if fallback:
            predictor = self.predictor.with_response(plan.response)
            plan.fallback = fit_film_fallback(fallback, self.film, plan.requery_palettes(predictor), predictor)
        if signatures != [plan.shot_signature(index) for index in range(min(len(signatures), len(plan.shots)))]:
            queue.withdraw()
            for _ in queue.wait_for_helpers():
                pass
        segments.save_plan(plan)
        return plan

    def _writer(self, order: str = "") -> Writer:
        if isinstance(self.film, ImageSequence):
            return FrameWriter(self.film, self.output, self.overwrite)
        return FilmWriter(cast(VideoFile, self.film), self.output, self.config, order)

    def _rendering(self, writer, segments, plan):
        predictor = self.predictor.with_response(plan.response)
        return FilmRendering(self.film, predictor, self.config, self.output, writer, segments,
                             plan.requery_palettes(predictor))


@dataclass
class FilmRendering:
    """The coloring stage of a film, in one process."""

    film: Film
    predictor: FilmPredictor
    config: FilmConfig
    output: Path
    writer: Writer
    segments: SegmentStore
    plan: Plan
    records: Records = field(init=False)  # of the finished shots; the others have an empty dict
    remaining: list[int] = field(init=False)  # indices of the shots that are not finished
    digests: list[str] = field(init=False)  # ``shot_digest`` of each shot
    confidence_target: EncodingTarget | None = field(init=False)  # encoding of the confidence video, if there is one

    def __post_init__(self) -> None:
        self.confidence_target = confidence_encoding(self.writer.target) if self.config.confidence else None
        self.remaining = list(range(len(self.plan.shots)))
        self.records = Records(self.plan.pts, self.plan.response, [{} for _ in self.remaining], self.plan.fallback)
        self.digests = ["" for _ in self.remaining]

    def load_finished_shots(self) -> None:
        """Add the shots that earlier runs have finished and whose colors have not changed since."""
        joined: Sequence[str | None] = self.segments.joined_digests() or [None] * len(self.plan.shots)
        changed = 0
        for index, (stored, digest) in enumerate(load_all_shots(self.predictor, self.plan, self.segments, self.config)):
            self.digests[index] = digest or ""
            changed += stored is not None and stored["digest"] != digest
            if (stored is not None and stored["digest"] == digest
                    and self._has_files(index, is_joined=joined[index] == digest)):
                self._add_finished(index, stored)
        if changed and not self.segments.joined_digests():
            warn(f"finished shots of {self.output} ({changed}) are colored again, because the references or the "
                 "palette have changed")

    def _add_finished(self, index, stored):
        """Add a finished shot to the records, given its stored state."""
        palette = self.plan.shots[index].palette
        self.records.states[index] = {**stored["record"], "embedding": palette.embedding,
                                      "slot_ids": list(palette.slot_ids), "slot_scores": list(palette.slot_scores)}
        self.digests[index] = stored["digest"]
        self.remaining.remove(index)

    def _has_files(self, index, is_joined):
        """Return whether a shot's frames (in the output if ``is_joined``, else on disk) and those of the confidence
        video exist."""
        segments, pts = self.segments, self.plan.shot_pts(self.plan.shots[index])
        if self.confidence_target and len(segment_order(segments.confidence_path(index))) != len(pts):
            return False
        return is_joined or self.writer.has_shot(segments.segment_path(index), pts)

    def run(self, queue: WorkQueue) -> None:
        """Color the remaining shots together with all helpers, and join all shots."""
        plan = self.plan
        missing = sum(_lengths(plan, self.remaining).values())
        if self.segments.joined_digests():
            print(_describe(self.remaining, len(plan.shots)))
        with (queue.sharing_errors(),
              open(accompanying_path(self.output, "shots.jsonl"), "w", encoding="utf-8") as file,
              tqdm(total=len(plan.pts), initial=len(plan.pts) - missing, unit=" frames", desc=self.output.name,
                   disable=None) as bar):
            lines: dict[int, str] = {}
            self._log(file, lines)
            while self.remaining:
                queue.publish(_lengths(plan, self.remaining))
                for _ in itertools.chain(self.color_shots(queue, bar), queue.wait_for_helpers()):
                    self._add_finished_by_helpers(queue, bar)
                    self._log(file, lines)
            file.seek(0)
            file.truncate()
            file.writelines(lines[index] for index in sorted(lines))
        if self.segments.joined_digests() != self.digests:
            self.writer.join(self.segments, plan, self.digests)

    def color_shots(self, queue: WorkQueue, bar: tqdm) -> Iterator[int]:
        """Color shots from the queue until it is empty; yield the index of each finished shot."""
        config, target = self.config, self.writer.target
        large = target.width * target.height >= LARGE_FRAME_PIXELS
        fallback = FilmFallback.open(self.film, self.plan, config)
        tasks = prefetch(read_tasks(self.film, self.plan, queue, self.predictor, config.keep_color_shots, fallback),
                         1 if large else FRAMES_AHEAD)
        colored = prefetch(self._with_results(predict_tasks(tasks, self.predictor, self.plan, config, large)),
                           FRAMES_AHEAD // 2 if large else FRAMES_AHEAD)
        with closing(colored) as colored, ThreadPoolExecutor(1) as scorer:
            for index, shot_tasks in itertools.groupby(colored, key=lambda task: task.shot):
                self._color_shot(index, shot_tasks, bar, scorer)
                self.remaining.remove(index)
                queue.mark_done(index)
                yield index

    def _with_results(self, tasks):
        """Set the output frames of each task. Runs in a different thread than the encoder."""
        with closing(tasks):
            for task in tasks:
                box = self.plan.shots[task.shot].box
                task.result = to_planes(task, self.writer.target, self.config.color_only, box)
                if self.confidence_target:
                    task.tinted = tint_frame(task.planes, task.confidence, box, self.confidence_target)
                yield task

    def _add_finished_by_helpers(self, queue, bar):
        """Add the shots that helpers have finished to the records."""
        for index in queue.finished(self.remaining):
            if stored := self.segments.load_shot(self.plan, index):  # None until a slow network file system shows it
                self._add_finished(index, stored)
                bar.update(self.plan.shots[index].end - self.plan.shots[index].start)

    def _log(self, file, lines):
        """Write a log line for each finished shot that is not in ``lines``, {index: line}, and add it there."""
        for index in sorted(set(range(len(self.plan.shots))).difference(self.remaining, lines)):
            lines[index] = json.dumps(self.records[index].log_line()) + "\n"
            file.write(lines[index])
        file.flush()

    def write_confidence_video(self) -> None:
        """Write the confidence video, if it is requested, from the segments of all shots."""
        if self.confidence_target:
            plan, origin = self.plan, self.plan.pts[0] if self.config.start else 0
            join_confidence_video(
                confidence_video_path(self.output), list(map(self.segments.confidence_path, range(len(plan.shots)))),
                [pts - origin for pts in plan.pts], plan.last_duration, self.confidence_target)

    def _color_shot(self, index, tasks, bar, scorer):
        """Encode a shot, given its tasks, and store its record and embeddings. Frames are scored in the pool
        ``scorer``."""
        plan, shot, segments = self.plan, self.plan.shots[index], self.segments
        recorder = ShotRecorder(plan, index, self.writer.target, self.config, scorer)
        segments.discard_shot(index)
        with self._write_shot(index) as write:
            for task in itertools.islice(tasks, shot.end - shot.start):
                write(task)
                recorder.add(task)
                bar.update()
        embeddings = np.stack(recorder.embeddings) if recorder.embeddings else np.zeros((0, 0), np.int16)
        self.digests[index] = shot_digest(self.predictor, plan, index, embeddings, self.config)
        self.records.states[index] = segments.save_shot(plan, recorder.record(), embeddings, self.digests[index])

    @contextmanager
    def _write_shot(self, index: int) -> Iterator[Callable[[FrameTask], None]]:
        """Yield a function that encodes the next frame of a shot and that of its confidence video."""
        shot, tint = self.plan.shots[index], None
        pts = self.plan.shot_pts(shot)
        with ExitStack() as stack:
            write = stack.enter_context(
                self.writer.write_shot(self.segments.segment_path(index), pts, shot.field_order))
            if self.confidence_target:
                tint = stack.enter_context(
                    write_segment(self.segments.confidence_path(index), self.confidence_target, len(pts)))

            def write_frame(task):
                write(task.result, self.plan.pts[task.index])
                if tint:
                    tint(task.tinted, self.plan.pts[task.index])

            yield write_frame


def _lengths(plan: Plan, indices: Iterable[int]) -> dict[int, int]:
    """Return {index: number of frames} of the shots ``indices``."""
    return {index: plan.shots[index].end - plan.shots[index].start for index in indices}


def _describe(indices, count):
    """Return a message that lists the shots ``indices``, which are colored again, out of ``count`` shots."""
    if not indices:
        return "no shot changes; the film is kept"
    runs = (list(run) for _, run in itertools.groupby(enumerate(indices, 1), lambda pair: pair[1] - pair[0]))
    names = [f"{run[0][1] + 1}" + (f" to {run[-1][1] + 1}" if len(run) > 1 else "") for run in runs]
    return f"{len(indices)} of {count} shots are colored again: {', '.join(names)}"
