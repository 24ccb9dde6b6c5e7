"""TODO: module docstring."""

import errno
import heapq
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import av

from config import FilmConfig
from fileio.atomic import atomic_write
from film.analysis.plan import Plan
from film.io.encoding import EncodingTarget, SegmentWriter, choose_encoding, explain_write_errors
from film.io.image_sequence import ImageSequence, write_colored_frame
from film.io.mux import container_format, copyable_streams, segment_order, segment_packets, source_tags
from film.io.planes import Planes
from film.io.video import demux_packets, open_video
from film.render.segments import SegmentStore
from utils import UserError, warn


class FilmWriter:
    """Writes the colored film of the file ``path``, as ``parts.Writer`` says: one part a shot, joined at the end."""

    cuts = True

    def __init__(self, path: Path, output: Path, config: FilmConfig) -> None:
        """Raises UserError when the settings do not go together, or the output is the film itself."""
        if output.exists() and output.samefile(path):
            raise UserError(f"the output {output} is the input itself; name another --output")
        self.path, self.output, self.config = path, output, config
        self.target = choose_encoding(path, output, config)

    def replaces(self) -> bool:
        return self.output.exists()

    @contextmanager
    def shot(self, part: Path, times: Sequence[int]) -> Iterator[Callable[[Planes, int], None]]:
        with atomic_write(part) as temporary:
            with open(temporary, "wb") as file:
                with SegmentWriter(file, self.target) as writer:
                    yield writer.write
                file.flush()
                os.fsync(file.fileno())
            if not self.has_shot(temporary, times):
                raise OSError(errno.EIO, "not all frames were written")

    def has_shot(self, part: Path, times: Sequence[int]) -> bool:
        return len(segment_order(part)) == len(times)

    def join(self, parts: SegmentStore, plan: Plan, readings: Sequence[str]) -> None:
        held: Sequence[str | None] = parts.held() or [None] * len(readings)
        pieces = [range(shot.start, shot.end) if of_film == reading else parts.part(number) for
                  number, (shot, of_film, reading) in enumerate(zip(plan.shots, held, readings, strict=True))]
        with atomic_write(self.output) as temporary:
            self._join(pieces, plan, temporary)
            parts.note_joined(temporary, readings)
        parts.drop_pictures()

    def _join(self, parts, plan, temporary):
        """Write the film at ``temporary``: the packets of ``parts``, with the other streams, chapters and tags of the
        source. Nothing is encoded."""
        target, of_encoder = self.target, next(part for part in parts if isinstance(part, Path))
        with (open_video(self.path) as (film, video), av.open(str(of_encoder)) as first, explain_write_errors(self.output),
              av.open(str(temporary), "w", format=container_format(self.output)) as out):
            out.flags |= av.container.Flags.bitexact.value  # no random numbers: of the same film, the same bytes
            others = copyable_streams(film, video, self.path, self.output)
            streams = {}
            for stream in sorted([video, *others], key=lambda stream: stream.index):
                new = out.add_stream_from_template(first.streams.video[0] if stream is video else stream, opaque=True)
                new.metadata.update(source_tags(stream.metadata))
                new.disposition = stream.disposition.value
                if stream.time_base:
                    new.time_base = stream.time_base
                streams[stream.index] = new
            for tag, value in target.tags.items():
                setattr(streams[video.index].codec_context, tag, value)
            out.metadata.update(source_tags(film.metadata))
            out.set_chapters(self._chapters(film))
            origin = (film.start_time or 0) / 1e6 + self.config.start
            packets = [self._pictures(parts, plan, origin), self._rest(film, others, origin) if others else ()]
            for _, packet, index in heapq.merge(*packets, key=lambda item: item[0]):
                packet.stream = streams[video.index if index is None else index]
                out.mux(packet)
            out.close()
            self._check_shape(temporary)

    def _chapters(self, film):
        """The chapters of the source, moved and cut to the part that is colored."""
        chapters, length = [], self.config.end - self.config.start
        for chapter in film.chapters():
            begin, end = (float(chapter[side] * chapter["time_base"]) - self.config.start for side in ("start", "end"))
            if end > 0 and begin < length:
                begin, end = (round(min(max(t, 0), length) / chapter["time_base"]) for t in (begin, end))
                chapters.append({**chapter, "start": begin, "end": end})
        return chapters

    def _pictures(self, parts, plan, origin):
        """Yield (seconds, packet, None) of the pictures; with --start, times count from ``origin`` (seconds)."""
        base = self.target.time_base
        offset = round(origin / base) if self.config.start else 0
        pts = array("q", (time_ - offset for time_ in plan.pts)) if offset else plan.pts
        for packet, index in segment_packets(parts, pts, self.output):
            packet.time_base = base
            packet.duration = pts[index + 1] - pts[index] if index + 1 < len(pts) else plan.last_duration
            yield float(packet.dts * base), packet, None

    def _rest(self, film, others, origin):
        """Yield (seconds, packet, index of its stream) of the source's ``others``, cut and moved as pictures are."""
        config, shift = self.config, origin if self.config.start else 0.0
        for packet in demux_packets(film, others, self.path):
            at = packet.dts if packet.dts is not None else packet.pts
            if at is None or not packet.size:
                continue
            at = float(at * packet.time_base)
            if config.start and at < origin or at >= origin - config.start + config.end:
                continue
            if shift:
                moved = round(shift / packet.time_base)
                packet.dts = packet.dts - moved if packet.dts is not None else None
                packet.pts = packet.pts - moved if packet.pts is not None else None
            yield at - shift, packet, packet.stream_index

    def _check_shape(self, path):
        """Warn when the container has lost the shape of the pixels."""
        target = self.target
        ratio = target.tags.get("sample_aspect_ratio", 1)
        with open_video(path) as (_, written):
            if (written.sample_aspect_ratio or 1) != ratio:
                warn(f"{self.output} cannot carry the shape of the pixels ({ratio}) with {target.codec}: tell the "
                     f"player to show it {float(target.width * ratio / target.height):.3g} times as wide as high, or "
                     "write h264")


class Writer(Protocol):
    """What writes a colored film: into a file (``encoding.py``), or picture by picture (``sequence.py``)."""

    target: EncodingTarget
    cuts: bool  # whether it can take shots out of a film that it wrote

    def replaces(self) -> bool:
        """Whether there is a file already that ``join`` would replace."""

    def shot(self, part: Path, times: Sequence[int]) -> AbstractContextManager[Callable[[Planes, int], None]]:
        """Yield a function that takes planes and pts of each frame of a shot in order; ``times`` are all its pts. The
        file ``part``, if the writer uses one, gets its name when the block ends and all frames are on the disk."""

    def has_shot(self, part: Path, times: Sequence[int]) -> bool:
        """Whether all frames of the shot, whose pts are ``times``, are written."""

    def join(self, parts: SegmentStore, plan: Plan, readings: Sequence[str]) -> None:
        """Write the output from the Parts of all shots, and from the film that is there, of which those shots are taken
        for which the same ``readings`` were read; it appears under its name only when it is complete."""


class FrameWriter:
    """A ``parts.Writer`` of NumberedFrames: writes pictures of the same names into the folder of ``output``. A picture
    that exists there is kept, unless ``overwrite``."""

    cuts = False

    def __init__(self, film: ImageSequence, output: Path, overwrite: bool) -> None:
        """Raises UserError when no frame can be read."""
        planes = next((planes for _, _, planes in film.read()), None)
        if planes is None:
            raise UserError(f"no picture of {film.path} can be read")
        self.film, self.folder, self.overwrite = film, output.parent, overwrite
        height, width = planes.y.shape
        self.target = EncodingTarget("pictures", {}, "", width, height, (height, width), planes.coding, film.rate,
                             film.time_base, {}, "")

    def replaces(self) -> bool:
        """False: ``join`` writes nothing, and existing pictures are kept or replaced one by one."""
        return False

    @contextmanager
    def shot(self, part: Path, times: Sequence[int]) -> Iterator[Callable[[Planes, int], None]]:
        """As ``parts.Writer`` says; the pictures appear one by one, and ``part`` is not needed."""
        yield self._write

    def _write(self, planes, pts):
        source = self.film.paths[pts]
        path = self.folder / source.name
        if self.overwrite or not path.exists():
            write_colored_frame(path, planes, source)

    def has_shot(self, part: Path, times: Sequence[int]) -> bool:
        return all((self.folder / self.film.paths[pts].name).exists() for pts in times)

    def join(self, parts: SegmentStore, plan: Plan, readings: Sequence[str]) -> None:
        """Does nothing: all pictures are in place."""
