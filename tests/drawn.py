"""Helpers of several test modules: small pictures, films, datasets, and a predictor without networks."""

import os
from dataclasses import replace
from functools import partial

import av
import cv2
import numpy as np
import torch
import torch.nn.functional as F

import train
from colorizer import predictor
from colorizer.adaptation.film_response import fit_film_response
from colorizer.confidence import Confidence
from colorizer.predictor import Palette
from config import TrainConfig
from fileio.images import write_image
from film.analysis.plan import FilmPredictor
from film.io.planes import planes_from_frame
from training import calibration

# A program that holds the lock of a file until it reads a line.
HOLD_LOCK = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print(flush=True)
    input()
"""


def feature(*bins):
    """Return a color feature with equal weight in each of ``bins``."""
    v = torch.zeros(313)
    v[list(bins)] = 1 / len(bins)
    return v


def unit(*axes):
    """Return a key or query of unit length along the given axes."""
    key = torch.zeros(512)
    key[list(axes)] = 1
    return F.normalize(key, dim=0)


def fill(net, keys, values, ids=None, ages=None):
    """Fill slots of a MemoryNetwork, and return it."""
    for slot, (key, value) in enumerate(zip(keys, values, strict=True)):
        net.keys[slot], net.values[slot], net.used[slot] = key, value, True
        net.ids[slot] = ids[slot] if ids else slot
        net.ages[slot] = ages[slot] if ages else 0
    return net


def be_quick():
    """Make trainings and the coloring of films quick in this process and its forks.

    Epochs are short unless epoch_steps is set, palette classifiers are trained on few small views in few steps, the
    calibration colors few pictures, only a rough tone curve is fitted to films, and nothing waits for the disk.
    """
    original = train.Training.__init__

    def quick_init(self, config, *args):
        classifier = replace(config.palette_classifier, input_size=128, training_views=12, training_steps=20)
        steps = 2 if config.epoch_steps == TrainConfig.epoch_steps else config.epoch_steps
        original(self, replace(config, epoch_steps=steps, palette_classifier=classifier), *args)

    train.Training.__init__ = quick_init
    calibration.CalibrationConfig = partial(calibration.CalibrationConfig, pictures=3)
    predictor.fit_film_response = lambda embed, memory, lightness, config: fit_film_response(
        embed, memory, lightness[:2], replace(config, max_rounds=0, min_pairs=2**62))
    os.fsync = lambda file: None  # only needed for power failures


def draw_picture(seed, size=(96, 64)):
    """Return a drawing, RGB uint8: a red disc or a blue square on a background of one of two colors."""
    rng = np.random.default_rng(seed)
    picture = np.full((size[1], size[0], 3), ((190, 220, 160), (240, 210, 130))[seed % 2], np.uint8)
    x, y = int(rng.integers(20, size[0] - 20)), int(rng.integers(20, size[1] - 20))
    r = 9 + seed % 7  # no two pictures of a dataset have exactly the same color feature
    if seed % 2:
        cv2.circle(picture, (x, y), r, (210, 40, 50), -1, cv2.LINE_AA)
    else:
        cv2.rectangle(picture, (x - r, y - r), (x + r, y + r), (40, 80, 210), -1, cv2.LINE_AA)
    return picture


def draw_dataset(folder, train=6, val=2, test=2):
    """Write a dataset in the format of dataset_generator.py, and return the folder."""
    number = 0
    for split, count in (("train", train), ("val", val), ("test", test)):
        for _ in range(count):
            write_image(folder / split / f"raw_image_drawn_{number}.png", draw_picture(number))
            number += 1
    return folder


def mux_sound(film, stream, wave):
    """Encode and mux a sound track, int16 (1, samples); the channels of a stereo track are interleaved."""
    frame = av.AudioFrame.from_ndarray(wave, format="s16", layout=stream.layout.name)
    frame.sample_rate = stream.rate
    film.mux([*stream.encode(frame), *stream.encode(None)])


def mux_copy(film, stream, source):
    """Mux the packets of the only track of ``source`` as those of ``stream``."""
    for packet in source.demux():
        if packet.size:
            packet.stream = stream
            film.mux(packet)


def draw_film(path, sizes=(64, 48), times=range(20), codec="libx264", sound="aac", rate=10):
    """Write a film with a sound track. Frame i is a gray ramp plus 3 * i, at ``times`` in units of 1 / rate seconds."""
    with av.open(str(path), "w") as film:
        video = film.add_stream(codec, rate=rate)
        video.width, video.height = sizes
        video.pix_fmt = "yuv444p" if sizes[0] % 2 or sizes[1] % 2 else "yuv420p"
        audio_rate = 48000 if sound == "libopus" else 44100
        audio = film.add_stream(sound, rate=audio_rate, layout="mono") if sound else None
        ramp = np.linspace(0, 180, sizes[0], dtype=np.float32)[None, :, None].repeat(sizes[1], 0).repeat(3, 2)
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray((ramp + 3 * i).astype(np.uint8), format="rgb24")
            frame.pts = time
            film.mux(video.encode(frame))
        film.mux(video.encode(None))
        if audio:
            samples = int(audio_rate * (max(times) + 1) / rate)
            wave = (np.sin(np.arange(samples) / 20) * 8000).astype(np.int16)[None]
            mux_sound(film, audio, wave)
    return path


def times_and_sound(path):
    """Return (frame times in seconds, audio packets as bytes, (width, height))."""
    with av.open(str(path)) as film:
        times = [round(frame.time, 4) for frame in film.decode(video=0)]
        size = film.streams.video[0].width, film.streams.video[0].height
    with av.open(str(path)) as film:
        sound = [bytes(packet) for packet in film.demux(audio=0) if packet.size] if film.streams.audio else []
    return times, sound, size


class StubPredictor(FilmPredictor):
    """A predictor whose colors depend only on the mean lightness of the shot and of the frame. It counts its calls."""

    side, source, identity = 64, "memory", "stub"

    def __init__(self, fail_at=None, action=None):
        self.shots, self.frames, self.batches = 0, 0, []
        self.fail_at, self.action = fail_at, action

    def palette(self, labs):
        self.shots += 1
        assert all(lab.shape == (64, 64, 3) for lab in labs)
        mean = float(np.mean([lab[..., 0].mean() for lab in labs]))
        return Palette(torch.full((1, 313), mean), [self.shots, 7], [0.9, 0.5], torch.full((3,), mean))

    def predict(self, L, palette):
        self.batches.append(len(L))
        self.frames += len(L)
        if self.fail_at is not None and self.frames > self.fail_at:
            self.action()
        ab = np.empty((len(L), 16, 16, 2), np.float32)
        ab[..., 0] = palette.color_feature[0, 0].item() - 50
        ab[..., 1] = (L.mean((1, 2)) - 50)[:, None, None]
        return ab, Confidence(*np.full((3, len(L), 2, 2), 0.25, np.float32))


def draw_shots(path, shots, size=(128, 96), hold=1, options=None, codec="libx264", rate=12, pix_fmt="yuv420p", noise=0):
    """Write a gray film of shots [(gray level in [0, 255], number of frames)] with bars that move a pixel every
    ``hold`` frames.

    The gray level may be a function of the frame number in the shot. ``noise`` is the maximum of the added noise. Do
    not use a smaller size: x264 output is not always deterministic at a width of 64.
    """
    with av.open(str(path), "w") as film:
        stream = film.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        rng = np.random.default_rng(0)
        for number, (gray, count) in enumerate(shots):
            for i in range(count):
                level = gray(i) if callable(gray) else gray
                bars = 30 * np.sin((np.arange(size[0]) + i // hold) / (2 + number % 3))
                luma = (level + bars * min(1, level / 60)).astype(int) + rng.integers(-noise, noise + 1, size[::-1])
                picture = np.repeat(luma.clip(0, 255).astype(np.uint8)[:, :, None], 3, 2)
                film.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        film.mux(stream.encode(None))
    return path


def planes_in(path):
    """Return the (Y, Cb, Cr) arrays of each frame of a 4:2:0 or 4:4:4 film."""
    with av.open(str(path)) as film:
        return [tuple(np.array(plane) for plane in planes_from_frame(frame)[:3]) for frame in film.decode(video=0)]
