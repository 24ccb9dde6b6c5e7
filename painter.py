"""What colours a picture: a trained colorizer, and where it takes its colours from."""

import hashlib
from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataset import AB_SCALE, GREY_SIZE, L_SCALE, color_feature, grey_image, lab_to_rgb, resize, rgb_to_lab
from episode import Palette
from memory import REFERENCE_ID, Recall
from networks import Backbone, Colorizer, model_config_of
from utils import (
    IMAGE_SUFFIXES, UserError, autocast, is_color, list_files, load_checkpoint, read_image, save_checkpoint,
    select_device, warn)


def look(backbone: Backbone, lightness: Iterable[np.ndarray], device: torch.device,
         precision: str = "auto") -> tuple[torch.Tensor, torch.Tensor]:
    """What the backbone sees of pictures of any size, L (H, W) in [0, 100] each: frames (N, D), places (N, E, 32, 32).
    """
    L = np.stack([resize(plane, GREY_SIZE, GREY_SIZE) for plane in lightness])
    with autocast(device, precision):
        return backbone(grey_image(torch.from_numpy(L)[:, None].to(device) / L_SCALE))


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
    names: dict[int, str] = field(default_factory=dict)  # of the frames in memory, by their id

    @property
    def side(self) -> int:
        """Of the pictures that a shot is coloured by: enough for the backbone and for the generator."""
        return max(GREY_SIZE, self.colorizer.side)

    @property
    def remembers(self) -> bool:
        """Whether memories are read. Colours of the truth or of a reference are the user's own choice, which remembered
        ones would contradict."""
        return self.source in ("memory", "integrator")

    def look(self, lightness: Iterable[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """``look`` with the colorizer's backbone; None for a plain GAN, which has none."""
        if not self.colorizer.config.use_memory:
            return None
        return look(self.colorizer.backbone, lightness, self.device, self.precision)

    def given(self, labs: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """The palette, colour features (N, 313) and scores (N,), of pictures (H, W, 3) by the user's own choice."""
        size = self.colorizer.config.img_size
        features: list[Any] = [
            self.reference if self.source == "reference" else color_feature(resize(lab, size, size)[..., 1:])
            for lab in labs]
        return torch.from_numpy(np.stack(features)).to(self.device), torch.ones(len(labs), device=self.device)

    def choose(self, recall: Recall) -> tuple[torch.Tensor, torch.Tensor]:
        """The palette by what the memory recalls."""
        return self.colorizer.choose(recall, self.rank if self.source == "memory" else None)

    def generate(self, lightness: Iterable[np.ndarray], palette: tuple[torch.Tensor, torch.Tensor] | None,
                 seen: tuple[torch.Tensor, torch.Tensor] | None) -> tuple[np.ndarray, np.ndarray]:
        """ab float32 (N, S, S, 2) in Lab units, S the colorizer's side, for pictures of any size, L (H, W) each, and
        the mean confidence of the spatial memory (N,), nan where it is not read."""
        size = self.colorizer.side
        L = torch.from_numpy(np.stack([resize(plane, size, size) for plane in lightness]))[:, None].to(self.device)
        with autocast(self.device, self.precision):
            ab, confidence = self.colorizer(L / L_SCALE, palette, seen, self.remembers)
        confidence = np.full(len(ab), np.nan) if confidence is None else confidence.mean((1, 2)).cpu().numpy()
        return (ab * AB_SCALE).permute(0, 2, 3, 1).contiguous().cpu().numpy(), confidence

    @torch.inference_mode()
    def predict(self, labs: Sequence[np.ndarray]) -> np.ndarray:
        """The colours of pictures, Lab (H, W, 3) each: ab float32 (N, S, S, 2) in Lab units, S the colorizer's side.

        Only the lightness is used (and the palette for "truth"); each picture has a palette of its own.
        """
        lightness = [lab[..., 0] for lab in labs]
        seen, palette = self.look(lightness), None
        if self.remembers:
            palette = self.choose(self.colorizer.recall(seen[0]))  # type: ignore[index]  # there is a memory
        elif self.source != "none":
            palette = self.given(labs)
        return self.generate(lightness, palette, seen)[0]

    def colorize(self, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Colour a list of equally large RGB uint8 pictures (H, W, 3). Returns RGB uint8 of the same size: ab is
        predicted at the colorizer's side, enlarged and joined to the full-resolution L."""
        labs = [rgb_to_lab(picture) for picture in pictures]
        results = []
        for lab, colors in zip(labs, self.predict(labs), strict=True):
            lab[..., 1:] = resize(colors, *lab.shape[:2])
            results.append(lab_to_rgb(lab))
        return results

    @torch.inference_mode()
    def palette(self, labs: Sequence[np.ndarray]) -> Palette:
        """One Palette for a shot, by the Lab (side, side, 3) of some of its frames: the memory is read once, with the
        mean of what the backbone sees of them."""
        nothing = torch.zeros(0)
        if self.source == "none":
            return Palette(None, [], [], nothing)
        if not self.remembers:
            return Palette(self.given(labs)[0].mean(0, keepdim=True).cpu(), [], [], nothing)
        seen = self.look([lab[..., 0] for lab in labs])
        frame = seen[0].mean(0, keepdim=True)  # type: ignore[index]  # there is a memory
        recall = self.colorizer.recall(frame)
        feature, score = self.choose(recall)
        filled = recall.scores[0].isfinite()
        return Palette(feature.cpu(), recall.ids[0][filled].tolist(), recall.scores[0][filled].tolist(),
                       frame[0].cpu(), score.item())

    @torch.inference_mode()
    def paint(self, lightness: np.ndarray, palette: Palette) -> tuple[np.ndarray, np.ndarray]:
        """Colour frames of one shot by its Palette: L (N, side, side) in [0, 100] -> ab (N, S, S, 2) and the mean
        confidence of the hints (N,), nan without hints."""
        colors = None
        if palette.color_feature is not None:
            feature = palette.color_feature.to(self.device).expand(len(lightness), -1)
            colors = feature, torch.full((len(lightness),), palette.score, device=self.device)
        return self.generate(lightness, colors, self.look(lightness))


# ---------------------------------------------------------------------------------------------------------------------
# From checkpoints and references


def load_colorizer(path: str | Path, device: torch.device) -> tuple[Colorizer, dict[str, Any]]:
    """The Colorizer of a checkpoint and all that the checkpoint holds. Raises UserError when it is not whole."""
    content = load_checkpoint(path)
    try:
        colorizer = Colorizer(model_config_of(content))
    except ValueError as error:
        raise UserError(f"{path} does not hold a whole colorizer ({error})") from error
    if not isinstance(content.get("frames"), dict):
        raise UserError(f"{path} does not hold the names of its frames; train again")
    colorizer.load_state_dict(content["colorizer"])
    return colorizer.to(device).eval(), content


@torch.no_grad()
def add_references(colorizer: Colorizer, folder: Path, device: torch.device, precision: str = "auto") -> None:
    """Add the colour pictures of a folder to the memories of a colorizer, pinned; nothing is trained.

    Grey ones are left out, by name: they wait to be painted. Raises UserError when there is no memory to add to, no
    picture in colour, or one that cannot be read.
    """
    if not colorizer.config.use_memory:
        raise UserError("references are kept in the memory, and the checkpoint is a plain GAN; leave --references out "
                        "or train with use_memory True")
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; name one with colour pictures by --references")
    labs = []
    for path in list_files(folder, IMAGE_SUFFIXES):
        picture = read_image(path)
        if is_color(picture):
            labs.append(rgb_to_lab(picture))
        else:
            warn(f"{path} is grey, so not painted yet; left out")
    if not labs:
        raise UserError(f"there is no picture in colour in {folder} (expected {', '.join(IMAGE_SUFFIXES)})")
    size, config = colorizer.config.img_size, colorizer.config
    for lab in labs:
        frames, places = look(colorizer.backbone, [lab[..., 0]], device, precision)
        scaled = resize(lab, colorizer.side, colorizer.side) / np.array([L_SCALE, AB_SCALE, AB_SCALE], np.float32)
        L, ab = torch.from_numpy(scaled).permute(2, 0, 1)[None].to(device).split([1, 2], 1)
        if config.use_spatial_memory:
            with autocast(device, precision):
                guess, _ = colorizer(L, colorizer.choose(colorizer.recall(frames)), (frames, places), remember=False)
            colorizer.spatial.pin(frames, places, L, ab, guess)
        feature = torch.from_numpy(color_feature(resize(lab, size, size)[..., 1:]))[None].to(device)
        colorizer.memory.pin(colorizer.memory.query(frames), feature)
    colorizer.config = replace(config, mem_size=config.mem_size + len(labs),
                               spatial_size=config.spatial_size + config.use_spatial_memory * len(labs))


def read_colors(path: str | Path) -> np.ndarray:
    """Read a picture to take colours from, RGB uint8 (H, W, 3). Raises UserError when it is grey."""
    picture = read_image(path)
    if not is_color(picture):
        raise UserError(f"the reference {path} is grey; give a picture in colour")
    return picture


def load_painter(args: Namespace) -> Painter:
    """The Painter that the command line asks for. Raises UserError when the checkpoint cannot do it."""
    device = select_device(args.device)
    colorizer, content = load_colorizer(args.checkpoint, device)
    config = colorizer.config
    painter = Painter(colorizer, device, args.precision, rank=args.rank,
                      names={**content["frames"], REFERENCE_ID: "a reference"})

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
    if args.references and painter.source != "none" and not painter.remembers:
        raise UserError("--references adds to the memory, which --color_feature truth and --reference leave aside; "
                        "use one of them")
    if painter.source == "reference":
        size = config.img_size
        painter.reference = color_feature(resize(rgb_to_lab(read_colors(args.reference)), size, size)[..., 1:])
    added = b""
    if args.references:
        add_references(colorizer, args.references, device, args.precision)
        added = b"".join(path.read_bytes() for path in list_files(args.references, IMAGE_SUFFIXES))
        if args.save_checkpoint:
            save_checkpoint(args.save_checkpoint, {**content, "colorizer": colorizer.state_dict(),
                                                   "model_config": asdict(colorizer.config)})
    settings = (painter.source, painter.rank, args.precision, device.type, None if painter.reference is None
                else painter.reference.tolist())
    painter.identity = hashlib.sha256(args.checkpoint.read_bytes() + added + repr(settings).encode()).hexdigest()
    return painter
