"""What colors a picture? A trained colorizer, and where it takes its colors from."""

import copy
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from colorizer.adaptation.film_response import IDENTITY_RESPONSE, FilmResponse, fit_film_response, match
from colorizer.adaptation.reference_grading import Grade, fit_grade
from colorizer.backbone import Features, extract_features
from colorizer.colorizer import Colorizer, model_config_of
from colorizer.confidence import Confidence
from colorizer.memory.frame_archive import open_archive
from colorizer.memory.frame_retrieval import find_nearest_frames, quantize_embeddings
from colorizer.metrics import has_color
from colorizer.warping.in_betweens import InBetweens
from colorizer.warping.upsampling import upsample_colors
from config import GradeConfig, InBetweenConfig, ModelConfig, PredictorConfig, ResponseConfig
from dataset import (
    AB_SCALE, GRAY_SIZE, L_SCALE, REFERENCE_ID, color_feature, decode_lab8, lab_to_rgb, lab_to_tensors, resize,
    rgb_to_lab, tensors_to_lab)
from fileio.checkpoints import load_checkpoint, save_checkpoint
from fileio.images import IMAGE_SUFFIXES, read_image
from networks import Conditioning, MemoryMatches
from utils import UserError, autocast, list_files, select_device, to_device, warn


SHOWN = 256  # pictures of the memory, as a film shows them, that are held at a time


class Palette(NamedTuple):
    """The colors of a shot, and where they come from."""

    color_feature: torch.Tensor | None  # (1, 313) for the generator; None for a plain GAN
    slot_ids: list[int]  # image ids of the memory's best slots, best first; [] where no memory is read
    slot_scores: list[float]  # and their cosine similarities
    embedding: torch.Tensor  # (D,) what the backbone sees, mean over some frames; (0,) where no memory is read
    score: float = 1.0  # cosine similarity that the color feature was recalled with; 1 if it was given


@dataclass
class Predictor:
    """A trained colorizer and where it takes its colors from. ``Predictor.load("best.pt")`` makes one.

    ``source``: "memory" (the slot of ``rank`` 1, 2 or 3), "integrator", "ground_truth" (style transfer from the input's own
    colors), "reference" (the colors of the picture whose feature is ``reference``, (313,)) or "none" (plain GAN).
    """

    colorizer: Colorizer
    device: torch.device
    precision: str = "auto"
    source: str = "memory"
    rank: int = 1
    reference: np.ndarray | None = None
    identity: str = ""  # differs for predictors that color differently
    origin: str = ""  # its identity before references were added
    names: dict[int, str] = field(default_factory=dict)  # image id -> file name, of the frames in memory
    checkpoint: Path | None = None  # that it was loaded from
    response: FilmResponse | None = None  # through which it looks at gray pictures
    films: frozenset[int] = frozenset()  # slots of frames that the user painted over the gray of a film with a response
    grade: Grade | None = None  # that brought its references to the colors of the show

    @classmethod
    def load(cls, checkpoint: str | Path, **settings: Any) -> "Predictor":
        """The Predictor of a checkpoint of train.py; ``settings`` are those of PredictorConfig, such as ``rank=2``.

        Raises UserError when the checkpoint cannot be read, or cannot do what the settings ask for.
        """
        return load_predictor(PredictorConfig(checkpoint=Path(checkpoint), **settings))

    @property
    def config(self) -> ModelConfig:
        return self.colorizer.config

    @property
    def side(self) -> int:
        """Pixels along a side of the pictures for ``palette`` and ``predict``: enough for all networks."""
        return max(GRAY_SIZE, self.config.side, self.config.palette_classifier.input_size if self.config.use_palette_classifier else 0)

    @property
    def uses_memory(self) -> bool:
        """Whether memories are read. Colors of the truth or of a reference are the user's own choice, which remembered
        ones would contradict."""
        return self.source in ("memory", "integrator")

    @property
    def uses_spatial_memory(self) -> bool:
        """Whether the spatial memory is read."""
        return self.uses_memory and self.config.use_spatial_memory

    def extract_features(self, lightness: Iterable[np.ndarray]) -> Features | None:
        """What the backbone sees of pictures of any size, L (H, W) in [0, 100] each, and the votes for their colors;
        None for a plain GAN, which has no backbone."""
        if not self.config.use_memory:
            return None
        lightness = list(lightness)
        return self._backbone_features(lightness)._replace(class_logits=self._vote(lightness))

    def _backbone_features(self, lightness):
        return extract_features(self.colorizer.backbone, self._through_response(lightness), self.device, self.precision)

    def _through_response(self, lightness):
        return lightness if self.response is None else [self.response(L) for L in lightness]

    def _vote(self, lightness):
        """The votes (N, K, G, G) for the colors of pictures, L (H, W) each; None where there is no voter, or none who
        is asked."""
        if not (self.config.use_palette_classifier and self.uses_memory):
            return None
        L = self._tensor(lightness, self.config.palette_classifier.input_size)
        with autocast(self.device, self.precision):
            return self.colorizer.classify(L)

    def _tensor(self, lightness, side):
        """Pictures of any size, L (H, W) in [0, 100] each, as a tensor (N, 1, side, side) in [0, 1]."""
        planes = np.stack([resize(plane, side, side) for plane in self._through_response(lightness)])
        return to_device(planes, self.device)[:, None] / L_SCALE

    def pictures_conditioning(self, labs: Sequence[np.ndarray]) -> Conditioning:
        """The advice for pictures, Lab (H, W, 3), without a memory: the colors of each, or those of the reference."""
        if self.reference is None:
            features = self.color_features(labs)
        else:
            features = torch.from_numpy(self.reference).to(self.device).expand(len(labs), -1)
        return Conditioning(features, torch.ones(len(labs), device=self.device))

    def color_features(self, labs: Sequence[np.ndarray]) -> torch.Tensor:
        """The color features (N, 313) of pictures, Lab (H, W, 3) each, at the size that the networks see."""
        size = self.config.img_size
        features = [color_feature(resize(lab, size, size)[..., 1:]) for lab in labs]
        return torch.from_numpy(np.stack(features)).to(self.device)

    def memory_conditioning(self, recall: MemoryMatches) -> Conditioning:
        """The advice by what the memory recalls."""
        return self.colorizer.conditioning(recall, self.rank if self.source == "memory" else None)

    def generate_ab(self, lightness: Iterable[np.ndarray], advice: Conditioning | None, seen: Features | None,
                 shown: Callable[[int], np.ndarray] | None = None) -> tuple[np.ndarray, Confidence]:
        """ab float32 (N, S, S, 2) in Lab units, S the colorizer's side, for pictures of any size, L (H, W) each, and
        what is Known of their places, arrays (N, G, G), nan (N, 1, 1) where no spatial memory is read; ``shown`` is as
        for ``SpatialMemory.carry``."""
        L = self._tensor(lightness, self.config.side)
        if seen is not None and not self.uses_memory:
            seen = seen._replace(class_logits=None)
        with autocast(self.device, self.precision):
            ab, known = self.colorizer(L, advice, seen, self.uses_memory, shown)
        known = Confidence.unknown(len(ab)) if known is None else Confidence(*(x.cpu().numpy() for x in known))
        return (ab * AB_SCALE).permute(0, 2, 3, 1).contiguous().cpu().numpy(), known

    @torch.inference_mode()
    def predict_ab(self, labs: Sequence[np.ndarray]) -> tuple[np.ndarray, Confidence]:
        """Predict ab float32 (N, S, S, 2) in Lab units, S the colorizer's side, of pictures, Lab (H, W, 3) each, and the
        Confidence of their grid cells. Only the lightness is used, except for "ground_truth"."""
        lightness = [lab[..., 0] for lab in labs]
        seen, advice = self.extract_features(lightness), None
        if self.uses_memory:
            advice = self.memory_conditioning(self.colorizer.recall(seen.embedding))  # type: ignore[union-attr]  # has a memory
        elif self.source != "none":
            advice = self.pictures_conditioning(labs)
        return self.generate_ab(lightness, advice, seen, self._shown if self.response else None)

    def colorize(self, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Color pictures, RGB uint8 (H, W, 3) of any sizes. Returns RGB uint8 of the same sizes: ab is predicted at
        the colorizer's side, enlarged along lightness and joined to the full-resolution L."""
        return self.colorize_with_confidence(pictures)[0]

    def colorize_with_confidence(self, pictures: Sequence[np.ndarray]) -> tuple[list[np.ndarray], Confidence]:
        """Color pictures as ``colorize`` does; returns them and what is Known of their places, as ``generate`` does."""
        labs = [rgb_to_lab(picture) for picture in pictures]
        results, (colors, known) = [], self.predict_ab(labs)
        for lab, ab in zip(labs, colors, strict=True):
            lab[..., 1:] = upsample_colors(ab, lab[..., 0])
            results.append(lab_to_rgb(lab))
        return results, known

    @torch.inference_mode()
    def palette(self, labs: Sequence[np.ndarray]) -> Palette:
        """One Palette for a shot, by the Lab (side, side, 3) of some of its frames: the memory is read once, with the
        mean of what the backbone sees of them."""
        nothing = torch.zeros(0)
        if self.source == "none":
            return Palette(None, [], [], nothing)
        if not self.uses_memory:
            return Palette(self.pictures_conditioning(labs).color_feature.mean(0, keepdim=True).cpu(), [], [], nothing)
        return self._recalled_by(self._backbone_features([lab[..., 0] for lab in labs]).embedding.mean(0))

    def _recalled_by(self, feature):
        """The Palette of a shot by what the backbone sees of it, (D,)."""
        recall = self.colorizer.recall(feature[None].to(self.device))
        advice, filled = self.memory_conditioning(recall), recall.scores[0].isfinite()
        return Palette(advice.color_feature.cpu(), recall.ids[0][filled].tolist(), recall.scores[0][filled].tolist(),
                       feature.cpu(), advice.score.item())

    def predict(self, lightness: np.ndarray, palette: Palette) -> tuple[np.ndarray, Confidence]:
        """Color frames of one shot by its Palette: L (N, side, side) in [0, 100] -> ab (N, S, S, 2) in Lab units, S the
        colorizer's side, and what is Known of their places, as ``generate`` gives it."""
        return self.predict_with_embeddings(lightness, palette)[:2]

    @torch.inference_mode()
    def predict_with_embeddings(self, lightness: np.ndarray, palette: Palette) -> tuple[np.ndarray, Confidence, np.ndarray]:
        """``predict``, and the looks int16 (N, D) by which it chose what to read of the spatial memory; (N, 0) where it
        reads none. Where the motion tells the colors of a frame, they and its looks are those of frames beside it."""
        between = InBetweens(lightness, self.config.palette_classifier, InBetweenConfig())
        painted, advice, seen = lightness[between.painted], None, None
        if palette.color_feature is not None:
            feature = to_device(palette.color_feature, self.device).expand(len(painted), -1)
            advice = Conditioning(feature, torch.full((len(painted),), palette.score, device=self.device))
        if self.config.use_memory:
            seen = self._backbone_features(painted)._replace(class_logits=self._vote(painted))
        ab, known = self.generate_ab(painted, advice, seen, self._shown)
        looks = np.zeros((len(painted), 0), np.int16)
        if seen is not None and self.uses_spatial_memory:
            looks = quantize_embeddings(seen.embedding).cpu().numpy()
        return between.colors(ab), between.known(known), between.looks(looks)

    # -----------------------------------------------------------------------------------------------------------------
    # With other references

    @torch.inference_mode()
    def requery_palette(self, palette: Palette) -> Palette:
        """The Palette of the same frames, by the memory as it is now."""
        return self._recalled_by(palette.embedding) if self.uses_memory else palette

    @torch.inference_mode()
    def lookup_digest(self, palette: Palette, looks: np.ndarray) -> str:
        """A hash of all that is read of the memories for a shot, by its Palette and the looks, int16 (n, D), that
        ``predict_with_embeddings`` gave of its frames; predictors of one ``origin`` that read the same give the same colors."""
        if not self.uses_memory:
            return ""
        digest = hashlib.sha256(repr(palette.score).encode())
        digest.update(palette.color_feature.numpy().tobytes())  # type: ignore[union-attr]  # one is recalled
        if looks.size:
            nearest = find_nearest_frames(self.colorizer.spatial, torch.from_numpy(looks).to(self.device))
            for slots, preferred in zip(*(x.tolist() for x in nearest), strict=True):
                digest.update(b"".join(self._digests[slot] for slot in slots) + bytes(preferred))
        return digest.hexdigest()

    @cached_property
    def _digests(self):
        return self.colorizer.spatial.digests()

    # -----------------------------------------------------------------------------------------------------------------
    # A film in another gray

    @cached_property
    def _shown(self):
        """A function that gives the picture of a slot as a film shows it, codes of encode_lab8, uint8 (S, S, 3); None
        where no spatial memory is read."""
        if not self.uses_spatial_memory:
            return None
        response, spatial = self.response or IDENTITY_RESPONSE, self.colorizer.spatial

        @lru_cache(SHOWN)
        def shown(slot):
            picture = spatial.picture(slot)
            if slot not in self.films:
                lab = tensors_to_lab(*decode_lab8(torch.from_numpy(picture).float().permute(2, 0, 1)[None]))[0]
                picture[..., 0] = np.rint(response.shown(lab) * (255 / L_SCALE))
            return picture

        return shown

    @torch.inference_mode()
    def fit_response(self, lightness: Sequence[np.ndarray]) -> FilmResponse | None:
        """The Response of a film by some of its frames, L (H, W) in [0, 100] each; None where none makes it clearly
        more like what is known, or where no spatial memory is read."""
        if not self.uses_spatial_memory:
            return None
        return fit_film_response(self._backbone_features, self.colorizer.spatial, lightness, ResponseConfig())

    @torch.inference_mode()
    def with_response(self, response: FilmResponse | None) -> "Predictor":
        """A Predictor that looks at gray pictures through a Response, for None this one.

        Frames that the user painted over such a film are in its gray, too. They are kept as seen through the Response
        if so they fit better to what matches them.
        """
        if response is None:
            return self
        pinned = self.colorizer.spatial.pinned.nonzero()[:, 0].tolist()
        if not pinned:
            return replace(self, response=response)
        predictor, films = replace(self, colorizer=copy.deepcopy(self.colorizer), response=response), []
        memory, spatial = predictor.colorizer.memory, predictor.colorizer.spatial
        own = memory.pinned.nonzero()[:, 0].tolist()
        for slot, own_slot in zip(pinned, own, strict=True):
            lab = spatial.lab_pictures([slot])[0]
            plain, better = (each.misfit(match(self._backbone_features, spatial, [lab[..., 0]], each, ResponseConfig()))
                             for each in (IDENTITY_RESPONSE, response))
            if better < plain:
                seen, L, ab, guess = predictor.encode_reference(lab)
                spatial.write(torch.tensor([slot]), seen, L, ab, torch.tensor([REFERENCE_ID]), guess)
                memory.keys[own_slot] = memory.query(seen.embedding)[0]
                films.append(slot)
        return replace(predictor, films=frozenset(films))

    # -----------------------------------------------------------------------------------------------------------------
    # References

    @torch.no_grad()
    def add_references(self, pictures: Sequence[np.ndarray], matched: bool = True) -> None:
        """Add pictures in color, RGB uint8 (H, W, 3) of any sizes, to the memories, pinned; nothing is trained.

        If they are to be ``matched`` and have clearly the colors of another source, a ``grade``, one for all, brings
        them to those of the show, and that is told. Raises UserError when there is no memory to add to, or when it is
        not read.
        """
        colorizer, config = self.colorizer, self.config
        if not config.use_memory:
            raise UserError("references are kept in the memory, and the checkpoint is a plain GAN; leave --references "
                            "out or train with use_memory True")
        if not self.uses_memory:
            raise UserError("--references adds to the memory, which --color_feature ground_truth and --reference leave aside; "
                            "use one of them")
        self.identity = _digest([self.identity.encode(), bytes([matched]), *(each.tobytes() for each in pictures)])
        self.grade = None
        if matched and config.use_spatial_memory:
            self.grade = fit_grade(self._backbone_features, colorizer.spatial, pictures, GradeConfig())
        if self.grade is not None:
            warn(f"the references are {self.grade}; brought to its colors (--match_references False keeps theirs)")
            pictures = [self.grade(picture) for picture in pictures]
        for lab in map(rgb_to_lab, pictures):
            seen, L, ab, guess = self.encode_reference(lab)
            if config.use_spatial_memory:
                colorizer.spatial.pin(seen, L, ab, guess)
            colorizer.memory.pin(colorizer.memory.query(seen.embedding), self.color_features([lab]))
        self.__dict__.pop("_digests", None)
        colorizer.config = replace(config, mem_size=config.mem_size + len(pictures),
                                   spatial_size=config.spatial_size + config.use_spatial_memory * len(pictures))

    def encode_reference(self, lab: np.ndarray) -> tuple[Features, torch.Tensor, torch.Tensor, torch.Tensor]:
        """What is Seen of a picture in color, Lab (H, W, 3), its L (1, 1, S, S) and ab (1, 2, S, S), S the colorizer's
        side, and the ab that is guessed of it, without what is remembered of places."""
        seen: Any = self.extract_features([lab[..., 0]])
        side = self.config.side
        L, ab = self._tensor([lab[..., 0]], side), lab_to_tensors(resize(lab, side, side))[1].to(self.device)
        with autocast(self.device, self.precision):
            advice = self.colorizer.conditioning(self.colorizer.recall(seen.embedding))
            return seen, L, ab, self.colorizer(L, advice, seen, remember=False)[0]

    def save(self, path: str | Path) -> None:
        """Write the checkpoint that it was loaded from, with the references added since, to ``path``; the file of its
        frames, if it has one, is brought there, too. Raises ValueError for a Predictor that was not loaded."""
        if self.checkpoint is None:
            raise ValueError("this Predictor was not loaded from a checkpoint")
        if self.config.use_spatial_memory and self.colorizer.spatial.archive is not None:
            self.colorizer.spatial.archive.copy_to(Path(path).parent)
        save_checkpoint(path, {**load_checkpoint(self.checkpoint), "colorizer": self.colorizer.state_dict(),
                               "model_config": asdict(self.config)})


def _digest(parts):
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


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
    colorizer.to(device).eval()
    if colorizer.config.use_spatial_memory:
        colorizer.spatial.attach_archive(open_archive(path, content))
    return colorizer, content


def read_references(folder: Path) -> list[np.ndarray]:
    """The pictures in color of a folder, RGB uint8 (H, W, 3).

    Gray ones are left out, by name: they wait to be painted. Raises UserError when there is no picture in color, or one
    that cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; name one with color pictures by --references")
    pictures = []
    for path in list_files(folder, IMAGE_SUFFIXES):
        picture = read_image(path)
        if has_color(picture):
            pictures.append(picture)
        else:
            warn(f"{path} is gray, so not painted yet; left out")
    if not pictures:
        raise UserError(f"there is no picture in color in {folder} (expected {', '.join(IMAGE_SUFFIXES)})")
    return pictures


def _read_reference(path):
    """A picture to take colors from, RGB uint8 (H, W, 3). Raises UserError when it is gray."""
    picture = read_image(path)
    if not has_color(picture):
        raise UserError(f"the reference {path} is gray; give a picture in color")
    return picture


def _source(config, model_config):
    """The value of ``Predictor.source`` that ``config`` asks for. Raises UserError when the checkpoint cannot do it."""
    trained = "integrator" if model_config.use_feat_integrator else "memory" if model_config.use_memory else "none"
    if config.reference and config.color_feature != "auto":
        raise UserError("--reference brings its own colors; leave --color_feature out")
    asked = "reference" if config.reference else config.color_feature
    source = trained if asked == "auto" else asked
    if source != "none" and model_config.gen_norm == "batch":
        raise UserError(f"{config.checkpoint} is a plain GAN, which takes no color feature; leave --color_feature and "
                        "--reference out or train with use_memory True")
    if source == "integrator" and not model_config.use_feat_integrator:
        raise UserError(f"{config.checkpoint} was trained without an integrator; use --color_feature memory or train "
                        "with use_feat_integrator True")
    return source


def load_predictor(config: PredictorConfig) -> Predictor:
    """The Predictor that ``config`` asks for. Raises UserError when the checkpoint cannot do it."""
    PredictorConfig.check(config)
    device = select_device(config.device)
    torch.backends.cudnn.deterministic = True  # else two runs on a GPU differ: cuDNN may add in any order
    colorizer, content = load_colorizer(config.checkpoint, device)
    predictor = Predictor(colorizer, device, config.precision, _source(config, colorizer.config), config.rank,
                      names={**content["frames"], REFERENCE_ID: "a reference"}, checkpoint=config.checkpoint)
    if config.reference:
        predictor.reference = predictor.color_features([rgb_to_lab(_read_reference(config.reference))])[0].cpu().numpy()
    colors = b"" if predictor.reference is None else predictor.reference.tobytes()
    settings = repr((predictor.source, predictor.rank, config.precision, device.type)).encode()
    with open(config.checkpoint, "rb") as file:  # frames that are beside it are in it by their digests
        parts = iter(partial(file.read, 2**20), b"")
        predictor.identity = predictor.origin = _digest(chain(parts, [settings, colors]))
    if config.references:
        predictor.add_references(read_references(config.references), config.match_references)
        if config.save_checkpoint:
            predictor.save(config.save_checkpoint)
    return predictor
