"""What it does for you: ``python test.py`` colours a picture, a folder of pictures or a video by a checkpoint.

Colour input counts as the truth: it is turned grey first, and the result is measured against it.
"""

import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dataset import AB_SCALE, GREY_SIZE, L_SCALE, color_feature, grey_image, lab_to_rgb, resize, rgb_to_lab
from networks import Colorizer, ModelConfig
from utils import (
    IMAGE_SUFFIXES, VIDEO_SUFFIXES, ArgumentParser, Scores, UserError, autocast, boolean, is_color, list_files,
    load_checkpoint, metrics_table, picture_grid, read_image, replace_when_done, run_cli, save_checkpoint,
    select_device, transcode, video_length, warn, write_image)

# ---------------------------------------------------------------------------------------------------------------------
# Colouring


def look(backbone, labs, device, precision="auto"):
    """What the backbone sees of pictures of any size, Lab (H, W, 3) each: frames (N, D), places (N, E, 32, 32)."""
    grey = np.stack([resize(lab[..., 0], GREY_SIZE, GREY_SIZE) for lab in labs])
    L = torch.from_numpy(grey)[:, None].to(device) / L_SCALE
    with autocast(device, precision):
        return backbone(grey_image(L))


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

    def palette(self, small, seen):
        """The palette of pictures, by their Lab at the network's size and what the backbone sees: colour features (N,
        313) and scores (N,), None for a plain GAN."""
        if self.source == "none":
            return None
        if self.source in ("truth", "reference"):
            features = [self.reference if self.source == "reference" else color_feature(lab[..., 1:]) for lab in small]
            return torch.from_numpy(np.stack(features)).to(self.device), torch.ones(len(small), device=self.device)
        return self.colorizer.choose(self.colorizer.recall(seen[0]), self.rank if self.source == "memory" else None)

    @torch.inference_mode()
    def predict(self, labs):
        """The colours of pictures, Lab (H, W, 3) each, at the network's size: ab float32 (N, S, S, 2) in Lab units.

        Only the lightness is used (and the palette for "truth").
        """
        size = self.colorizer.config.img_size
        small = np.stack([resize(lab, size, size) for lab in labs])
        L = torch.from_numpy(small[:, None, :, :, 0]).to(self.device) / L_SCALE
        seen = None
        if self.colorizer.config.use_memory:
            seen = look(self.colorizer.backbone, labs, self.device, self.precision)
        palette = self.palette(small, seen)
        # Colours of the truth or of a reference are the user's own choice, which remembered ones would contradict.
        remember = self.source in ("memory", "integrator")
        with autocast(self.device, self.precision):
            ab, _ = self.colorizer(L, palette, seen, remember)
        return (ab * AB_SCALE).permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def colorize(self, pictures):
        """Colour a list of equally large RGB uint8 pictures (H, W, 3), of which only the lightness is used (and the
        palette for "truth"). Returns RGB uint8 of the same size: ab is predicted at the network's size, enlarged and
        joined to the full-resolution L."""
        labs = [rgb_to_lab(picture) for picture in pictures]
        results = []
        for lab, colors in zip(labs, self.predict(labs), strict=True):
            lab[..., 1:] = resize(colors, *lab.shape[:2])
            results.append(lab_to_rgb(lab))
        return results


def load_colorizer(path, device):
    """The Colorizer of a checkpoint and all that the checkpoint holds. Raises UserError when it is not whole."""
    content = load_checkpoint(path)
    try:
        colorizer = Colorizer(ModelConfig(**content["model_config"]))
        colorizer.load_state_dict(content["colorizer"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} does not hold a whole colorizer ({str(error).partition(chr(10))[0]})") from error
    return colorizer.to(device).eval(), content


@torch.no_grad()
def add_references(colorizer, folder, device, precision="auto"):
    """Add the colour pictures of a folder to the memories of a colorizer, pinned; nothing is trained.

    Raises UserError when there is no memory to add to, or a picture cannot be read or is grey.
    """
    if not colorizer.config.use_memory:
        raise UserError("references are kept in the memory, and the checkpoint is a plain GAN; leave --references out "
                        "or train with use_memory True")
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; name one with colour pictures by --references")
    paths = list_files(folder, IMAGE_SUFFIXES)
    if not paths:
        raise UserError(f"there is no picture in {folder} (expected {', '.join(IMAGE_SUFFIXES)})")
    size, labs = colorizer.config.img_size, []
    for path in paths:
        picture = read_image(path)
        if not is_color(picture):
            raise UserError(f"the reference {path} is grey; give a picture in colour")
        labs.append(rgb_to_lab(picture))
    for lab in labs:
        frames, places = seen = look(colorizer.backbone, [lab], device, precision)
        small = resize(lab, size, size)
        L, ab = torch.from_numpy(small / np.float32([L_SCALE, AB_SCALE, AB_SCALE])).permute(2, 0, 1)[None].to(
            device).split([1, 2], 1)
        if colorizer.config.use_spatial_memory:
            with autocast(device, precision):
                guess, _ = colorizer(L, colorizer.choose(colorizer.recall(frames)), seen, remember=False)
            colorizer.spatial.pin(frames, places, L, ab, guess)
        feature = torch.from_numpy(color_feature(small[..., 1:]))[None].to(device)
        colorizer.memory.pin(colorizer.memory.query(frames), feature)
    if colorizer.config.use_spatial_memory:
        colorizer.config = replace(colorizer.config, spatial_size=colorizer.config.spatial_size + len(paths))
    colorizer.config = replace(colorizer.config, mem_size=colorizer.config.mem_size + len(paths))


def load_painter(args):
    """The Painter that the command line asks for. Raises UserError when the checkpoint cannot do it."""
    device = select_device(args.device)
    colorizer, content = load_colorizer(args.checkpoint, device)
    config = colorizer.config
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
    if args.references:
        if painter.source in ("truth", "reference"):
            raise UserError("--references adds to the memory, which --color_feature truth and --reference leave aside; "
                            "use one of them")
        add_references(colorizer, args.references, device, args.precision)
        if args.save_checkpoint:
            save_checkpoint(args.save_checkpoint, {**content, "colorizer": colorizer.state_dict(),
                                                   "model_config": asdict(colorizer.config)})
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


def color_video(painter, source, target, evaluation, batch_size):
    """Colour a video frame by frame; returns the number of frames. One frame a second, at most 200, is measured."""
    frames, rate = video_length(source)
    every = max(1, round(rate), math.ceil(frames / 200))
    count = 0

    def paint(pictures):
        nonlocal count
        if count == 0:
            need_color(painter, pictures[0], source)
        results = painter.colorize(pictures)
        for picture, result in zip(pictures, results, strict=True):
            if count % every == every // 2:
                evaluation.add(picture, result)
            count += 1
        bar.update(len(pictures))
        return results

    with tqdm(total=frames or None, unit="frame", disable=None) as bar:
        transcode(source, target, paint, batch_size)
    return count


def run(args):
    """Colour ``args.input`` into ``args.output`` as the command line says."""
    source, output = Path(args.input), Path(args.output)
    if not source.exists():
        raise UserError(f"there is no {source}; name a picture, a folder of pictures or a video by --input")
    evaluation = Evaluation()
    single = not source.is_dir()
    if single:
        is_video = source.suffix.lower() in VIDEO_SUFFIXES
        if not is_video and source.suffix.lower() not in IMAGE_SUFFIXES:
            raise UserError(f"{source} is neither a picture ({', '.join(IMAGE_SUFFIXES)}) nor a video "
                            f"({', '.join(VIDEO_SUFFIXES)})")
        if output.suffix.lower() not in (VIDEO_SUFFIXES if is_video else IMAGE_SUFFIXES):
            output = output / (source.stem + ".mp4" if is_video else source.name)
        pairs, folder, prefix = [(source, output)], output.parent, f"{output.stem}_"
    else:
        is_video = False
        pairs = [(path, output / path.name) for path in list_files(source, IMAGE_SUFFIXES)]
        folder, prefix = output, ""
        if not pairs:
            raise UserError(f"there is no picture in {source} (expected {', '.join(IMAGE_SUFFIXES)})")
    if any(target.resolve() == path.resolve() for path, target in pairs):
        raise UserError(f"the output {output} is the input itself; name another --output")
    if args.save_checkpoint and not args.references:
        raise UserError("--save_checkpoint keeps the references; name their folder by --references")
    kept = [args.save_checkpoint] if args.save_checkpoint else []
    refuse_existing([target for _, target in pairs] + kept, args.overwrite)
    painter = load_painter(args)

    started = time.monotonic()
    if is_video:
        count = color_video(painter, source, output, evaluation, args.batch_size)
    else:
        count = color_pictures(painter, pairs, evaluation)
    seconds = time.monotonic() - started
    print(f"coloured {count} {'frames' if is_video else 'pictures'} in {seconds:.1f} s: "
          f"{pairs[0][1] if single else output}")
    evaluation.report(folder, prefix, {
        "input": str(source), "checkpoint": str(args.checkpoint), "color_feature": painter.source,
        "pictures": count, "seconds": round(seconds, 2)}, args.overwrite)


# ---------------------------------------------------------------------------------------------------------------------
# Command line


def main(argv):
    parser = ArgumentParser(prog="test.py", description=__doc__)
    group = parser.add_argument_group("files")
    group.add_argument("--checkpoint", type=Path, default="checkpoints/best.pt", help="what train.py wrote")
    group.add_argument("--input", type=Path, default="dataset/test", help="a picture, a folder of pictures, or a video")
    group.add_argument("--output", type=Path, default="results",
                       help="a folder, or for a single input the file to write (.mp4, .mkv or .mov for a video)")
    group.add_argument("--overwrite", type=boolean, default=False, help="replace results that exist")
    group = parser.add_argument_group("colours")
    group.add_argument("--color_feature", choices=["auto", "memory", "integrator", "truth"], default="auto",
                       help="where the palette of each picture comes from: the memory's slot of --rank, the integrator "
                       "or the input's own colours; auto is the way that the checkpoint was trained")
    group.add_argument("--rank", type=int, choices=[1, 2, 3], default=1, help="which of the memory's best slots")
    group.add_argument("--reference", type=Path, help="a picture in colour whose palette is used for everything")
    group.add_argument("--references", type=Path, help="a folder of colour pictures to add to the memory: frames like "
                       "them take their colours, with no training")
    group.add_argument("--save_checkpoint", type=Path, help="write the checkpoint with the references to this file")
    group = parser.add_argument_group("machine")
    group.add_argument("--batch_size", type=int, default=8, help="frames of a video in one pass of the network")
    group.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to run the networks")
    group.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto",
                       help="of the networks; auto is bf16 where the hardware is fast at it")
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        raise UserError(f"batch_size is {args.batch_size}; set it to at least 1")
    run(args)


if __name__ == "__main__":
    run_cli(main)
