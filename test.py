"""What it does for you: ``python test.py`` colours a picture, a video or a folder of either by a checkpoint.

Colour input counts as the truth: it is turned grey first, and the result is measured against it.
"""

import hashlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dataset import AB_SCALE, GREY_SIZE, L_SCALE, color_feature, grey_image, lab_to_rgb, resize, rgb_to_lab
from episode import Palette, color_video, compare
from networks import Colorizer, ModelConfig
from utils import (
    IMAGE_SUFFIXES, VIDEO_SUFFIXES, ArgumentParser, Scores, UserError, autocast, boolean, is_color, list_files,
    load_checkpoint, metrics_table, picture_grid, read_image, replace_when_done, run_cli, select_device, warn,
    write_image)
from video import OUTPUT_SUFFIXES, VideoSettings, parse_time

# ---------------------------------------------------------------------------------------------------------------------
# Colouring


@dataclass
class Painter:
    """A trained colorizer and where it takes its colours from.

    ``source``: "memory" (the slot of ``rank`` 1, 2 or 3), "integrator", "truth" (style transfer from the input's own
    colours), "reference" (the colours of the picture whose feature is ``reference``, (313,)) or "none" (plain GAN).
    """

    colorizer: Colorizer
    device: torch.device
    precision: str = "auto"
    source: str = "memory"
    rank: int = 1
    reference: np.ndarray | None = None
    identity: str = ""  # differs for painters that colour differently

    @property
    def side(self):
        """Of the pictures that a shot is coloured by: enough for the backbone and for the generator."""
        return max(GREY_SIZE, self.colorizer.config.img_size)

    def look(self, L):
        """What the backbone sees of L (N, 1, 256, 256) in [0, 1]: of the frames (N, D) and their places."""
        with autocast(self.device, self.precision):
            return self.colorizer.backbone(grey_image(L))

    def hint(self, frames, places, L):
        """The spatial memory's hint (N, 3, 32, 32) for frames looked at."""
        spatial = self.colorizer.spatial
        return spatial.read(frames, spatial.key(places, L))

    def given_feature(self, labs):
        """The colour features (N, 313) of the user's own choice, for pictures (N, S, S, 3): "truth" or "reference"."""
        features = [self.reference if self.source == "reference" else color_feature(lab[..., 1:]) for lab in labs]
        return torch.from_numpy(np.stack(features)).to(self.device)

    def recalled_feature(self, recall):
        """The colour features (N, 313) by what the memory recalls."""
        return self.colorizer.choose(recall, self.rank if self.source == "memory" else None)

    def advice(self, labs, small):
        """What the memories say of pictures, by their Lab at full and at the network's size (N, S, S, 3).

        Returns the colour features (N, 313) and the hints (N, 3, 32, 32) for the colorizer, None where it takes none.
        The colours of the truth or of a reference are the user's own choice, which hints would contradict.
        """
        if self.source == "none":
            return None, None
        if self.source in ("truth", "reference"):
            return self.given_feature(small), None
        L = self._batch(np.stack([resize(lab[..., 0], GREY_SIZE, GREY_SIZE) for lab in labs]))
        frames, places = self.look(L)
        hint = self.hint(frames, places, L) if self.colorizer.config.use_spatial_memory else None
        return self.recalled_feature(self.colorizer.recall(frames)), hint

    def _batch(self, lightness):
        """L (N, S, S) in [0, 100] as the networks take it."""
        return torch.from_numpy(np.ascontiguousarray(lightness))[:, None].to(self.device) / L_SCALE

    @torch.inference_mode()
    def colorize(self, pictures):
        """Colour a list of equally large RGB uint8 pictures (H, W, 3), of which only the lightness is used (and the
        palette for "truth"). Returns RGB uint8 of the same size: ab is predicted at the network's size, enlarged and
        joined to the full-resolution L."""
        size = self.colorizer.config.img_size
        labs = [rgb_to_lab(picture) for picture in pictures]
        small = np.stack([resize(lab, size, size) for lab in labs])
        feature, hint = self.advice(labs, small)
        results = []
        for lab, colors in zip(labs, self._generate(small[..., 0], feature, hint), strict=True):
            lab[..., 1:] = resize(colors, *lab.shape[:2])
            results.append(lab_to_rgb(lab))
        return results

    def _generate(self, lightness, feature, hint):
        """ab float32 (N, S, S, 2) for L (N, S, S) in [0, 100]."""
        with autocast(self.device, self.precision):
            ab = self.colorizer(self._batch(lightness), feature, hint)
        return (ab * AB_SCALE).permute(0, 2, 3, 1).contiguous().cpu().numpy()

    @torch.inference_mode()
    def palette(self, labs):
        """One Palette for a shot, by the Lab (side, side, 3) of some of its frames: the memory is read once, with the
        mean of what the backbone sees of them."""
        nothing = torch.zeros(0)
        if self.source == "none":
            return Palette(None, [], [], nothing)
        if self.source in ("truth", "reference"):
            return Palette(self.given_feature(labs).mean(0, keepdim=True).cpu(), [], [], nothing)
        frames, _ = self.look(self._batch(np.stack([resize(lab[..., 0], GREY_SIZE, GREY_SIZE) for lab in labs])))
        frame = frames.mean(0, keepdim=True)
        recall = self.colorizer.recall(frame)
        filled = recall.scores[0].isfinite()
        return Palette(self.recalled_feature(recall).cpu(), recall.ids[0][filled].tolist(),
                       recall.scores[0][filled].tolist(), frame[0].cpu())

    @torch.inference_mode()
    def paint(self, lightness, palette):
        """Colour frames of one shot by its Palette: L (N, side, side) in [0, 100] -> ab (N, S, S, 2) and the mean
        confidence of the hints (N,), nan without hints."""
        hint = None
        if self.source in ("memory", "integrator") and self.colorizer.config.use_spatial_memory:
            L = self._batch(np.stack([resize(plane, GREY_SIZE, GREY_SIZE) for plane in lightness]))
            hint = self.hint(*self.look(L), L)
        size = self.colorizer.config.img_size
        feature = palette.color_feature
        if feature is not None:
            feature = feature.to(self.device).expand(len(lightness), -1)
        ab = self._generate(np.stack([resize(plane, size, size) for plane in lightness]), feature, hint)
        return ab, np.full(len(ab), np.nan) if hint is None else hint[:, 2].mean((1, 2)).cpu().numpy()


def load_painter(args):
    """The Painter that the command line asks for. Raises UserError when the checkpoint cannot do it."""
    content = load_checkpoint(args.checkpoint)
    device = select_device(args.device)
    try:
        config = ModelConfig(**content["model_config"])
        colorizer = Colorizer(config)
        colorizer.load_state_dict(content["colorizer"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{args.checkpoint} does not hold a whole colorizer "
                        f"({str(error).partition(chr(10))[0]})") from error
    colorizer.to(device).eval()
    painter = Painter(colorizer, device, args.precision, rank=args.rank)

    trained = "integrator" if config.use_feat_integrator else "memory" if config.use_memory else "none"
    asked = "reference" if args.reference else args.color_feature
    if args.reference and args.color_feature != "auto":
        raise UserError("--reference brings its own colours; leave --color_feature out")
    painter.source = trained if asked == "auto" else asked
    if painter.source != "none" and config.gen_norm == "batch":
        raise UserError(f"{args.checkpoint} is a plain GAN, which takes no colour feature; leave --color_feature and "
                        "--reference out or train with use_memory True")
    if painter.source == "integrator" and not config.use_feat_integrator:
        raise UserError(f"{args.checkpoint} was trained without an integrator; use --color_feature memory or train "
                        "with use_feat_integrator True")
    if painter.source == "reference":
        picture = read_image(args.reference)
        if not is_color(picture):
            raise UserError(f"the reference {args.reference} is grey; give a picture in colour")
        painter.reference = color_feature(resize(rgb_to_lab(picture), config.img_size, config.img_size)[..., 1:])
    settings = (painter.source, painter.rank, args.precision, device.type, None if painter.reference is None
                else painter.reference.tolist())
    painter.identity = hashlib.sha256(args.checkpoint.read_bytes() + repr(settings).encode()).hexdigest()
    return painter


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation


class Evaluation:
    """Scores of results and of plain grey against the truth, and pictures for the comparison."""

    ROWS = 6  # of the comparison picture
    WIDTH = 320  # of a picture in it

    def __init__(self):
        self.scores = {"grey": Scores(), "result": Scores()}
        self.rows = []
        self.stride = 1  # every so many pictures one is kept for the comparison
        self.seen = 0

    def add(self, truth, result):
        """Add a picture, RGB uint8; one without colour is no truth and does not count."""
        if not is_color(truth):
            return
        lab = rgb_to_lab(truth)
        lab[..., 1:] = 0
        grey = lab_to_rgb(lab)
        self.scores["grey"].add(grey, truth)
        self.scores["result"].add(result, truth)
        if self.seen % self.stride == 0:
            height = max(1, round(self.WIDTH * truth.shape[0] / truth.shape[1]))
            self.rows.append([resize(picture, height, self.WIDTH) for picture in (grey, result, truth)])
            if len(self.rows) == 2 * self.ROWS:  # bounded, and spread evenly over however many pictures come
                self.rows, self.stride = self.rows[::2], 2 * self.stride
        self.seen += 1

    def report(self, folder, prefix, facts, overwrite):
        """Print the table and write <prefix>metrics.json and, with a truth, <prefix>comparison.png into ``folder``."""
        summary = dict(facts)
        if self.seen:
            rows = {name: scores.summary() for name, scores in self.scores.items()}
            summary |= {"measured_pictures": self.seen, **rows}
            print(metrics_table(rows) + f"\nmeasured on {self.seen} pictures")
            heights = {row[0].shape[0] for row in self.rows}
            if len(heights) > 1:
                self.rows = [[resize(p, max(heights), self.WIDTH) for p in row] for row in self.rows]
            comparison = folder / f"{prefix}comparison.png"
            if not (folder / f"{prefix}metrics.json").exists():  # else it is our own, of an earlier run
                refuse_existing([comparison], overwrite)
            write_image(comparison, picture_grid(self.rows[:self.ROWS]))
            print(f"compare grey | result | truth in {comparison}")
        with replace_when_done(folder / f"{prefix}metrics.json") as temporary:
            temporary.write_text(json.dumps(summary, indent=2) + "\n")


# ---------------------------------------------------------------------------------------------------------------------
# Pictures and videos


def refuse_existing(paths, overwrite):
    """Raises UserError when one of the files exists and may not be replaced."""
    existing = [path for path in paths if path.exists()]
    if existing and not overwrite:
        raise UserError(f"{existing[0]} exists already; pass --overwrite True or another --output")


def need_color(painter, picture, path):
    """Raises UserError when the colours of the truth are asked for and the input has none."""
    if painter.source == "truth" and not is_color(picture):
        raise UserError(f"{path} has no colours of its own for --color_feature truth; use another --color_feature")


def color_pictures(painter, pairs, evaluation):
    """Colour pictures one by one, pairs of (input, output) paths; returns how many. An unreadable one is skipped."""
    done = 0
    for source, target in tqdm(pairs, unit="picture", disable=None):
        try:
            picture = read_image(source)
        except UserError as error:
            warn(f"{error}; skipped")
            continue
        need_color(painter, picture, source)
        result = painter.colorize([picture])[0]
        write_image(target, result)
        evaluation.add(picture, result)
        done += 1
    if not done:
        raise UserError(f"no picture could be read in {pairs[0][0].parent}")
    return done


def measure_video(records, source, target, settings, evaluation):
    """Measure one frame a second, at most 200, of a coloured film as it is in its file; shots left as they were do not
    count."""
    kept = [range(record.start_frame, record.end_frame) for record in records if record.kept]
    frames = records[-1].end_frame
    rate = frames / (records[-1].end_time - records[0].start_time)
    every = max(1, round(rate), math.ceil(frames / 200))
    for index, truth, result in compare(source, target, settings, every):
        if not any(index in shot for shot in kept):
            evaluation.add(truth, result)


def find_work(source, output):
    """(pictures, videos), each a list of (input, output), for --input and --output. Raises UserError when there is
    none, or when two outputs or an input and an output are the same file."""
    def video_name(path):
        return path.stem + (path.suffix if path.suffix.lower() in OUTPUT_SUFFIXES else ".mkv")  # .mkv carries all

    if not source.exists():
        raise UserError(f"there is no {source}; name a picture, a video or a folder of either by --input")
    if source.is_dir():
        pictures = [(path, output / path.name) for path in list_files(source, IMAGE_SUFFIXES)]
        videos = [(path, output / video_name(path)) for path in list_files(source, VIDEO_SUFFIXES)]
        if not pictures and not videos:
            raise UserError(f"there is no picture in {source} (expected {', '.join(IMAGE_SUFFIXES)}), and no video "
                            f"({', '.join(VIDEO_SUFFIXES)})")
    elif source.suffix.lower() in VIDEO_SUFFIXES:
        pictures = []
        videos = [(source, output if output.suffix.lower() in VIDEO_SUFFIXES else output / video_name(source))]
    elif source.suffix.lower() in IMAGE_SUFFIXES:
        pictures = [(source, output if output.suffix.lower() in IMAGE_SUFFIXES else output / source.name)]
        videos = []
    else:
        raise UserError(f"{source} is neither a picture ({', '.join(IMAGE_SUFFIXES)}) nor a video "
                        f"({', '.join(VIDEO_SUFFIXES)})")
    pairs = pictures + videos
    if any(target.resolve() == path.resolve() for path, target in pairs):
        raise UserError(f"the output {output} is the input itself; name another --output")
    names = {}
    for path, target in pairs:
        if target in names:
            raise UserError(f"{names[target]} and {path} would both be written to {target}; rename one of them")
        names[target] = path
    return pictures, videos


def run(args):
    """Colour ``args.input`` into ``args.output`` as the command line says."""
    source, output = Path(args.input), Path(args.output)
    pictures, videos = find_work(source, output)
    if source.is_dir() and not args.overwrite:
        done = sum(target.exists() for _, target in pictures + videos)
        pictures, videos = ([pair for pair in pairs if not pair[1].exists()] for pairs in (pictures, videos))
        if done:
            print(f"{done} of {source} are in {output} already and skipped (--overwrite True does them again)")
    refuse_existing([target for _, target in pictures + videos], args.overwrite)
    if not pictures and not videos:
        return
    painter = load_painter(args)
    facts = {"checkpoint": str(args.checkpoint), "color_feature": painter.source}

    if pictures:
        evaluation, started = Evaluation(), time.monotonic()
        count = color_pictures(painter, pictures, evaluation)
        seconds = time.monotonic() - started
        place = output if source.is_dir() else pictures[0][1]
        print(f"coloured {count} pictures in {seconds:.1f} s: {place}")
        folder, prefix = (output, "") if source.is_dir() else (place.parent, f"{place.stem}_")
        evaluation.report(folder, prefix, {"input": str(source), **facts, "pictures": count,
                                           "seconds": round(seconds, 2)}, args.overwrite)
    settings = VideoSettings(args.codec, args.crf, args.pix_fmt, args.colour_only, args.keep_colour_shots, args.start,
                             args.end, args.batch_size)
    for path, target in videos:
        try:
            evaluation, started = Evaluation(), time.monotonic()
            records = color_video(painter, path, target, settings)
        except UserError as error:
            if len(videos) == 1:
                raise
            warn(f"{error}; left out")
            continue
        seconds, count = time.monotonic() - started, records[-1].end_frame
        print(f"coloured {count} frames of {len(records)} shots in {seconds:.1f} s: {target}")
        if not args.colour_only and any(record.truth is not None for record in records):
            measure_video(records, path, target, settings, evaluation)
        evaluation.report(target.parent, f"{target.stem}_", {
            "input": str(path), **facts, "pictures": count, "shots": len(records), "seconds": round(seconds, 2)},
            args.overwrite)


# ---------------------------------------------------------------------------------------------------------------------
# Command line


def main(argv):
    parser = ArgumentParser(prog="test.py", description=__doc__)
    group = parser.add_argument_group("files")
    group.add_argument("--checkpoint", type=Path, default="checkpoints/best.pt", help="what train.py wrote")
    group.add_argument("--input", type=Path, default="dataset/test", help="a picture, a video, or a folder of either")
    group.add_argument("--output", type=Path, default="results",
                       help="a folder, or for a single input the file to write (.mp4, .mkv, .mov or .webm for a video)")
    group.add_argument("--overwrite", type=boolean, default=False,
                       help="replace results that exist; else those of a folder are skipped")
    group = parser.add_argument_group("colours")
    group.add_argument("--color_feature", choices=["auto", "memory", "integrator", "truth"], default="auto",
                       help="where the palette of each picture comes from: the memory's slot of --rank, the integrator "
                       "or the input's own colours; auto is the way that the checkpoint was trained")
    group.add_argument("--rank", type=int, choices=[1, 2, 3], default=1, help="which of the memory's best slots")
    group.add_argument("--reference", type=Path, help="a picture in colour whose palette is used for everything")
    group = parser.add_argument_group("video")
    group.add_argument("--start", type=parse_time, default=0.0, metavar="TIME",
                       help="colour only from here on, in seconds or hh:mm:ss")
    group.add_argument("--end", type=parse_time, default=math.inf, metavar="TIME", help="and up to here")
    group.add_argument("--codec", help="FFmpeg's encoder, such as h264, hevc, vp9 or av1; vp9 for .webm, else h264")
    group.add_argument("--crf", type=int, help="quality of that encoder, lower is better; 16 for h264")
    group.add_argument("--pix_fmt", help="FFmpeg's pixel format; 4:2:0 with 10 bits for a source of more than 8")
    group.add_argument("--colour_only", type=boolean, default=False,
                       help="write the chroma alone, on neutral lightness, for compositing")
    group.add_argument("--keep_colour_shots", type=boolean, default=False,
                       help="leave shots that are already in colour as they are")
    group = parser.add_argument_group("machine")
    group.add_argument("--batch_size", type=int, default=8, help="frames of a video in one pass of the network")
    group.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to run the networks")
    group.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto",
                       help="of the networks; auto is bf16 where the hardware is fast at it")
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        raise UserError(f"batch_size is {args.batch_size}; set it to at least 1")
    if args.end <= args.start:
        raise UserError(f"--end {args.end:g} s is not after --start {args.start:g} s")
    run(args)


if __name__ == "__main__":
    run_cli(main)
