"""Writers of colored films: into a video file, or frame by frame into a folder of pictures."""

import heapq
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Protocol

import av

from config import FilmConfig
from fileio.atomic import atomic_write
from film.analysis.plan import Plan
from film.io.encoding import (
    EncodingTarget, add_encoder, choose_encoding, describe_losses, explain_write_errors, write_segment)
from film.io.image_sequence import ImageSequence, write_colored_frame
from film.io.mux import (
    add_cover, container_format, copyable_streams, is_cover, lost_tags, ordered_packets, segment_order, segment_packets,
    source_tags, timecode_tags)
from film.io.planes import Planes
from film.io.timestamps import PacketClock
from film.io.video import VideoFile, demux_packets, frame_rate, open_video
from film.render.segments import SegmentStore
from utils import UserError, warn

FINEST_SHIFT = Fraction(1, 48000)  # seconds; time bases of sound that are coarser, as in .avi, are divided for --start


class Writer(Protocol):
    """Writes the shots of a colored film, in any order, and joins them."""

    target: EncodingTarget
    single_file: bool  # whether the output is one file, which ``join`` replaces and from which it can copy shots

    def write_shot(self, segment: Path, pts: Sequence[int],
                   order: str = "") -> AbstractContextManager[Callable[[Planes, int], None]]:
        """Yield ``write(planes, pts)``, which writes one frame; ``pts`` are the timestamps of all frames of the shot,
        ``order`` its field order.

        A writer that uses segments creates the file ``segment`` when the block ends without an error.
        """

    def has_shot(self, segment: Path, pts: Sequence[int]) -> bool:
        """Return whether all frames of a shot are written."""

    def join(self, segments: SegmentStore, plan: Plan, digests: Sequence[str]) -> None:
        """Write the output atomically from the segments of all shots.

        Shots whose digest equals that of the current output are copied from the current output.
        """


class FilmWriter:
    """Writes a video file: one segment per shot, joined at the end with the other streams of the source."""

    single_file = True

    def __init__(self, film: VideoFile, output: Path, config: FilmConfig, order: str = "") -> None:
        """Choose the encoding. Raises UserError if settings are incompatible or the output is the input."""
        path = film.path
        if output.exists() and output.samefile(path):
            raise UserError(f"the output {output} is the input itself; pass another --output")
        self.path, self.output, self.config = path, output, config
        self.target, self.losses = choose_encoding(film, output, config, order), set()

    @contextmanager
    def write_shot(self, segment: Path, pts: Sequence[int],
                   order: str = "") -> Iterator[Callable[[Planes, int], None]]:
        with write_segment(segment, self._shot_target(order), len(pts)) as write:
            yield partial(self._write, write)

    def _shot_target(self, order):
        return self.target._replace(field_order=order) if order and self.target.field_order else self.target

    def _write(self, write, planes, pts):
        """Write a frame. Warn about losses that no earlier frame had."""
        write(planes, pts)
        for loss in set(describe_losses(planes, self.target)) - self.losses:
            self.losses.add(loss)
            warn(f"{self.target.codec} cannot store the {loss} of {self.path}")

    def has_shot(self, segment: Path, pts: Sequence[int]) -> bool:
        return len(segment_order(segment)) == len(pts)

    def join(self, segments: SegmentStore, plan: Plan, digests: Sequence[str]) -> None:
        joined: Sequence[str | None] = segments.joined_digests() or [None] * len(digests)
        sources = [range(shot.start, shot.end) if digest == old else segments.segment_path(index)
                   for index, (shot, digest, old) in enumerate(zip(plan.shots, digests, joined, strict=True))]
        with atomic_write(self.output) as temporary:
            self._join(sources, plan, temporary)
            segments.record_join(temporary, digests)
        segments.remove_segments()

    def _join(self, sources, plan, temporary):
        """Mux the film: the video packets of ``sources``, and the other streams, chapters and tags of the input.

        A source is a segment (path) or frames of the current output (range). Nothing is encoded.
        """
        target, first_segment = self.target, next(source for source in sources if isinstance(source, Path))
        with (open_video(self.path) as (film, video), av.open(str(first_segment)) as segment,
              explain_write_errors(self.output),
              av.open(str(temporary), "w", format=container_format(self.output)) as out):
            out.flags |= av.container.Flags.bitexact.value  # no random numbers: the same film gives the same bytes
            others = copyable_streams(film, video, self.path, self.output)
            copied = sorted([video, *others], key=lambda stream: stream.index)
            streams, covers = {}, []
            for stream in copied:
                if is_cover(stream):
                    covers += add_cover(out, stream, self.path)
                    others.remove(stream)
                    continue
                if stream is video:
                    new = self._add_video(out, segment.streams.video[0], film, video)
                else:
                    new = out.add_stream_from_template(stream, opaque=True)
                    new.metadata.update(source_tags(stream.metadata))
                if out.format.name in ("mp4", "mov") and "title" in new.metadata:
                    new.metadata["handler_name"] = new.metadata["title"]  # these containers have no other title
                new.disposition = stream.disposition.value
                if stream.time_base:
                    new.time_base = stream.time_base
                streams[stream.index] = new
            for tag, value in target.tags.items():
                setattr(streams[video.index].codec_context, tag, value)
            out.metadata.update(self._tags(film.metadata))
            out.set_chapters(self._chapters(film))
            # Rounded like the picture, so that the other streams stay in sync
            origin = round(((film.start_time or 0) / 1e6 + self.config.start) / target.time_base) * target.time_base
            packets = [self._video_packets(sources, plan, origin)]
            if others:
                packets.append(self._copied_packets(film, video, others, origin))
            out.mux(covers)
            for _, packet, index in heapq.merge(*packets, key=lambda item: item[0]):
                packet.stream = streams[video.index if index is None else index]
                out.mux(packet)
            out.close()
            self._check(temporary, film, copied)

    def _add_video(self, out, template, film, video):
        """Add a stream for the packets of segments like ``template``, with the tags of the source ``video``."""
        tags, is_mov = self._tags({**video.metadata, **timecode_tags(film)}), out.format.name in ("mp4", "mov")
        if is_mov and "timecode" in map(str.lower, {**tags, **self._tags(film.metadata)}):
            new = add_encoder(out, self.target)  # a time code needs the frame rate, which PyAV sets for encoders only
            new.codec_context.open()
            new.codec_context.extradata = template.codec_context.extradata
        else:
            new = out.add_stream_from_template(template, opaque=True)
        if self.target.codec == "prores_ks":  # the tag tells ProRes 4444 and 422 apart
            new.codec_context.codec_tag = template.codec_context.codec_tag
        elif self.target.codec == "libx265" and is_mov:
            new.codec_context.codec_tag = "hvc1"  # Apple's players show no other HEVC
        new.metadata.update(tags)
        if "yuva" in self.target.pix_fmt:
            new.metadata["alpha_mode"] = "1"
        return new

    def _tags(self, metadata):
        """Return the metadata to copy; the time code belongs to the first frame of the film, not to that of --start."""
        tags = source_tags(metadata)
        return {key: tags[key] for key in tags if not (self.config.start and key.lower() == "timecode")}

    def _chapters(self, film):
        """Return the chapters of the input, shifted and cut to the colored part."""
        chapters, length = [], self.config.end - self.config.start
        for chapter in film.chapters():
            begin, end = (float(chapter[side] * chapter["time_base"]) - self.config.start for side in ("start", "end"))
            if end > 0 and begin < length:
                begin, end = (round(min(max(t, 0), length) / chapter["time_base"]) for t in (begin, end))
                chapters.append({**chapter, "start": begin, "end": end})
        return chapters

    def _video_packets(self, sources, plan, origin):
        """Yield (dts in seconds, packet, None) of the video; with --start, timestamps are relative to ``origin``."""
        base = self.target.time_base
        offset = round(origin / base) if self.config.start else 0
        pts = array("q", (time - offset for time in plan.pts)) if offset else plan.pts
        for packet in segment_packets(sources, pts, plan.last_duration, base, self.output):
            yield float(packet.dts * base), packet, None

    def _copied_packets(self, film, video, others, origin):
        """Yield (dts in seconds, packet, stream index) of the other streams, cut and shifted like the video."""
        config, shift = self.config, origin if self.config.start else 0.0
        clock = PacketClock(film, video, frame_rate(video))
        packets = clock.packets(demux_packets(film, [video, *others], self.path))
        kept = ordered_packets((packet for packet in packets if packet.stream is not video), self.path, self.output)
        for packet in kept:
            time = packet.dts if packet.dts is not None else packet.pts
            time = float(time * packet.time_base)
            if config.start and time < origin or time >= origin - config.start + config.end:
                continue
            if shift:
                scale = max(1, round(packet.time_base / FINEST_SHIFT))
                packet.time_base, packet.duration = packet.time_base / scale, (packet.duration or 0) * scale
                offset = round(shift / packet.time_base)
                packet.dts = packet.dts * scale - offset if packet.dts is not None else None
                packet.pts = packet.pts * scale - offset if packet.pts is not None else None
            yield time - shift, packet, packet.stream_index

    def _check(self, path, film, copied):
        """Warn if the container has not stored the sample aspect ratio, or tags of the film and ``copied`` streams."""
        target = self.target
        ratio = target.tags.get("sample_aspect_ratio", 1)
        with open_video(path) as (result, written):
            if lost := lost_tags(film, copied, result):
                advice = "" if container_format(self.output) == "matroska" else "; a .mkv keeps most"
                warn(f"{self.output} does not keep {', '.join(lost)} of {self.path}{advice}")
            if (written.sample_aspect_ratio or 1) != ratio:
                warn(f"{self.output} cannot store the pixel aspect ratio ({ratio}) with {target.codec}: set the player "
                     f"to a picture aspect ratio of {float(target.width * ratio / target.height):.3g}, or use --codec "
                     "h264")


class FrameWriter:
    """Writes an image sequence into the parent folder of ``output``, with the file names of the input.

    Existing pictures are kept unless ``overwrite`` is True.
    """

    single_file = False

    def __init__(self, film: ImageSequence, output: Path, overwrite: bool) -> None:
        """Read a frame to determine the frame size. Raises UserError if no frame can be read."""
        planes = next((planes for _, _, planes in film.read()), None)
        if planes is None:
            raise UserError(f"no picture of {film.path} can be read")
        self.film, self.folder, self.overwrite = film, output.parent, overwrite
        height, width = planes.y.shape
        self.target = EncodingTarget("pictures", {}, "", width, height, (height, width), planes.encoding,
                                     film.info.rate, film.info.time_base, {}, "")

    @contextmanager
    def write_shot(self, segment: Path, pts: Sequence[int],
                   order: str = "") -> Iterator[Callable[[Planes, int], None]]:
        yield self._write

    def _write(self, planes, pts):
        source = self.film.paths[pts]
        path = self.folder / source.name
        if self.overwrite or not path.exists():
            write_colored_frame(path, planes, source)

    def count_existing(self) -> int:
        """Return the number of frames that are already in the folder."""
        return sum((self.folder / path.name).exists() for path in self.film.paths.values())

    def has_shot(self, segment: Path, pts: Sequence[int]) -> bool:
        return all((self.folder / self.film.paths[number].name).exists() for number in pts)

    def join(self, segments: SegmentStore, plan: Plan, digests: Sequence[str]) -> None:
        """Do nothing, since all pictures are already in place."""
