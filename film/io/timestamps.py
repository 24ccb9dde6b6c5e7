"""Timestamps of films from archives: clocks that restart, and timestamps that are missing, repeated or wrong."""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction

import av

JUMP = 1  # seconds; a larger difference of successive timestamps is a gap, a wrong timestamp or a restarted clock
LONGEST_GAP = 10  # seconds; a longer gap in a format whose clock may jump (.ts, .vob, .ogv) is a restarted clock
MAX_REORDERING = 16  # frames; maximum difference between decoding and presentation order in H.264 and HEVC


class PacketClock:
    """Makes the clock of a film continuous: ``packets`` shifts the packets of all streams.

    A restarted clock (two .ts files joined with ``cat``) goes on after the last frame of the part before. The other
    streams of a part are shifted like its video, so that sound stays in sync. A video packet whose timestamp jumps
    while those around it do not loses its timestamp.
    """

    def __init__(self, film: av.container.InputContainer, video: av.VideoStream, rate: Fraction) -> None:
        self.video, self.base = video, video.time_base
        self.step = max(1, round(1 / (rate * self.base)))  # duration of a frame in ``base``
        self.jump = max(round(JUMP / self.base), 4 * self.step)
        self.longest_gap = round(LONGEST_GAP / self.base) if clock_may_restart(film) else None
        self.parts: list[tuple[int, int, int]] = []  # in ``base``: shift, first timestamp, last one of the part before
        self.progress: dict[int, tuple[int, Fraction]] = {}  # stream: part and time in ``base`` of its last packet
        self.wrong = self.replaced = 0  # numbers of video packets whose wrong timestamp was removed, replaced
        self.last = self.end = 0  # last decoding timestamp that is not wrong; shifted end of the video so far
        self.delay: int | None = None  # pts - dts of the first packet

    @property
    def is_continuous(self) -> bool:
        """Whether the packets so far have no wrong timestamps and the clock has not been restarted."""
        return len(self.parts) < 2 and not self.wrong + self.replaced

    def packets(self, packets: Iterable[av.Packet]) -> Iterator[av.Packet]:
        """Yield the packets, which start at the beginning of the film, in order with continuous timestamps."""
        held: deque[av.Packet] = deque()
        undecided: deque[av.Packet] = deque()  # the video packets in ``held`` that are not shifted yet
        previous = None  # the last one that is

        def decide():
            nonlocal previous
            packet, before = undecided.popleft(), previous
            self._decide(packet, [time for other in undecided if (time := _time(other)) is not None])
            previous = packet
            return self._release(held, before) if before else ()

        for packet in packets:
            held.append(packet)
            if packet.stream is self.video:
                undecided.append(packet)
            if len(undecided) > MAX_REORDERING:
                yield from decide()
        while undecided:
            yield from decide()
        yield from self._release(held, None)

    def _decide(self, packet, following):
        """Shift a video packet; ``following`` are timestamps of the next ones. Remove its timestamp if it is wrong."""
        time = _time(packet)
        if time is None:
            return
        if self.parts and self._is_wrong(time, following[0] if following else None):
            self.wrong += 1
            packet.pts = packet.dts = None
            return
        if not self.parts:
            if following and following[0] < time - self.jump:  # the first one is wrong, rather than all others
                self.replaced = 1
                time = packet.pts = packet.dts = following[0] - self.step
            self.parts.append((0, time, time))
        elif self._restarts(time):
            first = packet.pts if packet.pts is not None else time
            self.parts.append((self.end - first, time, self.last))
        self.last = time
        if packet.pts is not None and packet.dts is not None:
            delay = packet.pts - packet.dts
            self.delay = delay if self.delay is None else self.delay
            tolerance = self.jump + MAX_REORDERING * self.step
            if abs(delay - self.delay) > tolerance and not time < packet.pts < max(following, default=time) + tolerance:
                self.wrong += 1
                packet.pts = None
        _shift(packet, self.parts[-1][0])
        presented = packet.pts if packet.pts is not None else packet.dts
        self.end = max(self.end, presented + (packet.duration or self.step))

    def _restarts(self, time):
        jump = time - self.last
        return jump < -self.jump or self.longest_gap is not None and jump > self.longest_gap

    def _is_wrong(self, time, following):
        if self._restarts(time):
            return following is None or not 0 <= following - time <= self.jump
        return following is not None and time - self.last > self.jump and following < time - self.jump

    def _release(self, held, last):
        """Yield the held packets up to and including ``last``; the packets of other streams are shifted."""
        while held:
            packet = held.popleft()
            if packet.stream is not self.video and self.parts and _time(packet) is not None:
                part = self._part(packet)
                _shift(packet, round(self.parts[part][0] * self.base / packet.time_base))
            yield packet
            if packet is last:
                return

    def _part(self, packet):
        """Return the part of a packet of another stream: the newest one, or the one before if that has just ended and
        the stream goes on in it, since video and sound do not end at the same place of the file."""
        part, time = len(self.parts) - 1, _time(packet) * packet.time_base / self.base
        _, first, previous = self.parts[part]
        old_part, old = self.progress.get(packet.stream_index, (0, time if packet.stream.type == "audio" else math.inf))
        if old_part < part and (self.last == previous or self.last - first <= self.jump):
            begin = self.parts[part - 1][1]
            part -= old <= time and begin - self.jump < time < previous + self.jump
        self.progress[packet.stream_index] = part, time
        return part


def clock_may_restart(film: av.container.InputContainer) -> bool:
    """Return whether the clock of a film may restart, as in .ts, .vob and .ogv files that were joined with ``cat``."""
    return bool(film.format.flags & av.format.Flags.ts_discont.value)


def _time(packet):
    return packet.dts if packet.dts is not None else packet.pts


def _shift(packet, offset):
    packet.pts, packet.dts = (None if time is None else time + offset for time in (packet.pts, packet.dts))


class FrameClock:
    """Assigns strictly increasing timestamps to the decoded frames of a film, in order.

    A frame without a timestamp follows the frame before at the frame rate; one whose timestamp does not increase
    follows it by half of that. .avi files store no presentation times: their packets are counted in decoding order.
    """

    def __init__(self, film: av.container.InputContainer, video: av.VideoStream, rate: Fraction,
                 delay: int | None = None) -> None:
        """``delay``: decoding timestamp of a frame minus its time, in .avi files; None: measured at the first frame."""
        self.step = max(1, round(1 / (rate * video.time_base)))
        self.counts_packets = film.format.name == "avi"
        self.start = video.start_time or 0
        self.last: int | None = None
        self.delay = delay
        self.frames = self.missing = self.not_increasing = 0  # numbers of frames

    @property
    def wrong(self) -> int:
        """Number of frames so far whose timestamps were wrong; 0 if the film has no timestamps at all."""
        missing = 0 if self.counts_packets or self.missing == self.frames else self.missing
        return self.not_increasing + missing

    def time(self, frame: av.VideoFrame) -> int:
        """Return the timestamp of the next frame."""
        stamp = frame.pts
        if self.counts_packets and (stamp := frame.dts) is not None:
            self.delay = stamp - self.start if self.delay is None else self.delay
            stamp -= self.delay
        self.frames += 1
        if stamp is None:
            self.missing += 1
            stamp = self.start if self.last is None else self.last + self.step
        elif self.last is not None and stamp <= self.last:
            self.not_increasing += 1
        if self.last is not None and stamp <= self.last:
            stamp = self.last + max(1, self.step // 2)
        self.last = stamp
        return stamp
