"""Small films whose frames show their number, with sound of distinct packets, and faults of their timestamps."""

from contextlib import closing
from fractions import Fraction

import av
import numpy as np

from config import FilmConfig
from film.analysis.film_scan import FilmScan
from film.analysis.plan import Plan, Shot
from film.io.video import VideoFile
from film.render.pipeline import FrameTask, to_planes
from film.render.manifest import Manifest
from film.render.segments import SegmentStore
from film.render.writers import FilmWriter

SIZE, BITS = (64, 48), 8  # (width, height); bits of the number, as black and white columns
RATE = 24


def draw_number(number, size=SIZE, pix_fmt="yuv420p"):
    """Return a frame that shows a number."""
    bits = np.array([110 + 40 * (number >> bit & 1) for bit in range(BITS)], np.uint8).repeat(SIZE[0] // BITS)
    frame = av.VideoFrame.from_ndarray(np.broadcast_to(bits, SIZE[::-1]).copy(), format="gray")
    return frame.reformat(*size, format=pix_fmt, src_color_range=1, dst_color_range=1)


def read_number(luma, depth=8):
    """Return the number that a luma plane of ``depth`` bits shows."""
    row = luma[len(luma) // 2, luma.shape[1] // 16::luma.shape[1] // 8]
    return sum(1 << bit for bit in range(BITS) if row[bit] >> depth - 8 > 130)


def noise(seconds, seed):
    """Yield frames of noise, 100 ms each."""
    samples = np.random.default_rng(seed).integers(-9000, 9000, int(48000 * seconds)).astype(np.int16)
    for begin in range(0, len(samples), 4800):
        frame = av.AudioFrame.from_ndarray(samples[None, begin:begin + 4800], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, begin, Fraction(1, 48000)
        yield frame


def write_numbers(path, codec="libx264", times=range(60), sound="mp2", options=None, pix_fmt="yuv420p", delay=0,
                  muxer=None, first=0, change=None, container=None, size=SIZE):
    """Write a film and return its path.

    Frame i shows the number ``first`` + i at ``times``[i], in frames. The picture begins ``delay`` frames after the
    sound. ``change(packets)`` returns changed video packets.
    """
    with av.open(str(path), "w", format=muxer, options=container or {}) as film:
        video = film.add_stream(codec, rate=RATE, options=options or {})
        video.width, video.height, video.pix_fmt = *size, pix_fmt
        audio = film.add_stream(sound, rate=48000, layout="mono") if sound else None
        packets = []
        for i, time in enumerate(times):
            frame = draw_number(first + i, size, pix_fmt)
            frame.pts, frame.time_base = time + delay, Fraction(1, RATE)
            packets += video.encode(frame)
        packets += video.encode(None)
        packets = change(packets) if change else packets
        if audio:
            for frame in noise((max(times) + 1 + delay) / RATE, first):
                packets += audio.encode(frame)
            packets += audio.encode(None)
        if not change:
            packets.sort(key=lambda packet: packet.dts * packet.time_base)
        for packet in packets:
            film.mux(packet)
    return path


def write_packets(path, change, codec="libx264", **options):
    """Write a .mkv with the video packets change(packets), pairs of a packet and its timestamp."""
    def changed(packets):
        copies = []
        for i, (packet, time) in enumerate(change(packets)):
            copy = av.Packet(bytes(packet))
            copy.stream, copy.time_base, copy.is_keyframe = packet.stream, packet.time_base, packet.is_keyframe
            copy.pts, copy.dts = time, i - 10**6  # the file stores the first only
            copies.append(copy)
        return copies
    return write_numbers(path, codec, change=changed, container={"avoid_negative_ts": "disabled"}, **options)


def contents(path):
    """Return (seconds, numbers) of the frames in the order of decoding from the beginning, and {hash of a packet:
    seconds} of the sound."""
    with av.open(str(path)) as film:
        frames = [(None if frame.pts is None else float(frame.pts * frame.time_base),
                   read_number(frame.reformat(*SIZE, format="gray").to_ndarray())) for frame in film.decode(video=0)]
    with av.open(str(path)) as film:
        sound = {hash(bytes(packet)): float(packet.pts * packet.time_base) for packet in film.demux(audio=0)
                 if packet.size} if film.streams.audio else {}
    return *map(list, zip(*frames, strict=True)), sound


def copy_film(source, output):
    """Copy a film as ``color_film`` does, but as one shot and without new colors; much faster than that."""
    film, segments = VideoFile(source), SegmentStore(output, Manifest({}, {}))
    writer, scan = FilmWriter(film, output, FilmConfig()), FilmScan(film)
    with closing(scan.frames()) as frames:
        results = [to_planes(FrameTask(0, i, planes), writer.target, False) for i, planes in enumerate(frames)]
    scan.require_frames()
    scan.damage.report(source)
    segments.folder.mkdir(exist_ok=True)
    with writer.write_shot(segments.segment_path(0), scan.pts) as write:
        for planes, pts in zip(results, scan.pts, strict=True):
            write(planes, pts)
    plan = Plan(scan.pts, scan.last_duration, [Shot(0, len(scan.pts), None, False)], False, None, None)
    writer.join(segments, plan, [""])
