"""Dataclasses with the settings of all scripts and the constants of the algorithm, which are saved in each checkpoint.

Each field with a ``help`` text is a command-line flag of its script. The values of the constants were chosen in trials
(``benchmarks/trials.md``); ``benchmarks/search.py`` compares other values.
"""

import math
import re
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from utils import UserError, check_at_least, check_choices, parse_rate, parse_time, setting

SIZE_STEP = 128  # pixels; img_size is a multiple of this, since the generator halves the picture 7 times
BACKBONES = r"efficientnet_lite0|resnet18|timm/[A-Za-z0-9_.]+"  # allowed names; no paths, no names of repositories
SAMPLE_FILM = Path(__file__).resolve().parent / "resources" / "episode_1.mp4"

T = TypeVar("T")


def restore(kind: type[T], values: dict[str, Any]) -> T:
    """Rebuild an instance of the dataclass ``kind`` from the dict that ``dataclasses.asdict`` made of it.

    Raises TypeError for an unknown field, and ValueError for a constant of the algorithm whose type differs from that
    of its default or which is out of range.
    """
    values = dict(values)
    for f in fields(kind):  # type: ignore[arg-type]  # a dataclass
        if f.name not in values:
            continue
        if is_dataclass(f.type):
            values[f.name] = restore(typing.cast(type, f.type), values[f.name])
        elif kind in (SpatialConfig, PaletteClassifierConfig, TrainingConstants):
            _check_constant(f, values[f.name])
    return kind(**values)


def _check_constant(f, value):
    if type(value) is not f.type or not (f.type is int) <= value < math.inf:  # counts are at least 1, floats 0
        raise ValueError(f"{f.name} is {value!r}, which is out of range or not of type {f.type.__name__}")


# ---------------------------------------------------------------------------------------------------------------------
# Constants of the algorithm


@dataclass
class SpatialConfig:
    """Constants of the spatial memory (``colorizer/memory``), which are saved in each checkpoint."""

    # Storage
    grid: int = 32  # cells along a side of a picture; larger: finer colors, quadratic cost; the backbone has 32
    key_dim: int = 64  # PCA components of the features in a key; larger: more precise matching, larger files
    pca_pictures: int = 128  # maximum number of training pictures that the PCA is fitted to; larger: slower start
    picture_size: int = 192  # pixels along a side of the stored pictures; larger: sharper warped colors, slower
    max_frames: int = 50_000  # maximum number of remembered frames; a larger training set is sampled evenly
    max_inline_frames: int = 4096  # more frames are stored in an archive next to the checkpoint; 258 kB per frame
    duplicate_tolerance: int = 2  # maximum difference of duplicates, of 255; larger: more frames are dropped

    # Keys; with a larger weight, differences in that property count more
    lightness_weight: float = 2.0  # weight of L in [0, 1]
    position_weight: float = 0.1  # weight of (y, x) in [-1, 1]
    color_weight: float = 4.0  # weight of ab / 110

    # Retrieval and attention
    attended_frames: int = 4  # frames whose cells are attended to; larger: more candidate colors, slower
    candidate_frames: int = 64  # most similar frames that these are selected from; larger: more diverse, slower
    mmr_diversity: float = 0.5  # penalty for similarity to frames already selected; larger: more diverse
    reference_margin: float = 0.05  # references are preferred to frames more similar by up to this (cosine similarity)
    reference_bias: float = 0.5  # subtracted from squared key distances to preferred references; larger: more weight
    scope_gain: float = 0.5  # increase of both per rank of a scope, relative; larger: narrow scopes win more clearly
    inverse_temperature: float = 30.0  # of the softmax over attended cells; larger: only the nearest cells count
    disagreement_scale: float = 0.02  # variance of ab / 110 that divides the confidence by e; larger: higher confidence

    # Warping
    warped_frames: int = 2  # frames whose colors are warped; larger: more candidate colors, slower
    feature_weight: float = 0.27  # weight of the squared key distance in the matching cost; larger: lower confidence
    photometric_weight: float = 100.0  # weight of squared L differences (L in [0, 1]) in it; larger: lower confidence
    cost_inverse_temperature: float = 15.0  # of the softmax over warped frames; larger: only the best frame counts
    cost_clamp: float = 1.3  # maximum contribution of a pixel to the mean cost; larger: outliers reduce confidence more
    skip_attention_above: float = 0.95  # warp confidence above which a cell skips the attention; larger: slower


@dataclass
class PaletteClassifierConfig:
    """Constants of the palette classifier (``colorizer/palette_classifier.py``), which are saved in each checkpoint.
    They were chosen on held-out shots of the drawn episode 1 and on episode 2."""

    input_size: int = 512  # pixels along a side of the input, a multiple of 32; larger: finer cells, slower
    palette_size: int = 48  # number of colors (classes); larger: finer distinctions, fewer examples of each color
    discriminant_axes: int = 47  # dimensions of the discriminant features, at most palette_size - 1
    hidden_dim: int = 256  # hidden units of the MLP; larger: more capacity, slower
    learning_rate: float = 2e-3  # learning rate of the MLP
    shrinkage: float = 0.1  # fraction of the mean variance added to the within-class variance; larger: more regularized
    label_sigma: float = 5.0  # standard deviation in Lab units of the soft labels; larger: softer
    region_scale: float = 600.0  # scale of the segmentation; larger: larger regions, which share class probabilities
    chroma_weight: float = 4.0  # in training, a cell of chroma 110 has 1 + chroma_weight times the weight of a gray one
    generator_sigma: float = 25.0  # standard deviation, in Lab units, of the generator's color; larger: less influence
    temperature: float = 0.4  # of the annealed mean; 0 selects the most probable color, 1 averages by probability
    character_threshold: float = 0.88  # minimum probability of a character; larger: fewer false ones, more are missed
    object_certainty: float = 32.0  # how much of an object gets the colors of its most probable character; larger: more
    object_radius: float = 0.05  # of parts that may differ from the object, in widths; larger: less of close characters
    training_views: int = 256  # minimum number of training views; the maximum is 4 times this
    views_per_picture: int = 16  # maximum number of views of one picture; takes precedence over training_views
    training_steps: int = 1000  # optimizer steps of the MLP; larger: closer fit, slower
    training_cell_step: int = 16  # one in this many cells of a view is a training sample; larger: faster


@dataclass
class ModelConfig:
    """Configuration of the networks in a checkpoint. TrainConfig describes the settings that are not described here."""

    img_size: int = 256  # pixels, a multiple of SIZE_STEP
    gen_norm: str = "adain"  # adain | batch
    use_memory: bool = True
    use_feat_integrator: bool = False
    use_spatial_memory: bool = True
    use_palette_classifier: bool = False
    backbone: str = "efficientnet_lite0"  # matches BACKBONES
    mem_size: int = 100  # slots
    spatial_size: int = 80  # frames
    archived_frames: int = 0  # number of frames, the first ones, that are stored in an archive on disk
    character_colors: int = 0  # number of colors of the character classifier; 0: there is none
    only_characters: bool = False  # whether the training pictures are character sheets
    reference_scopes: list[str] = field(default_factory=list)  # of the references in order (``colorizer/scopes.py``)
    top_k: int = 100  # nearest slots that the triplet loss searches
    alpha: float = 0.1  # margin of the triplet loss, in cosine similarity
    color_thres: float = 0.5  # maximum KL divergence, in nats, of equal color features
    width: int = 64  # channels of the first layers
    spatial: SpatialConfig = field(default_factory=SpatialConfig)
    palette_classifier: PaletteClassifierConfig = field(default_factory=PaletteClassifierConfig)

    @property
    def side(self) -> int:
        """Pixels along a side of the square input and output of a Colorizer."""
        return max(self.img_size, self.spatial.picture_size) if self.use_spatial_memory else self.img_size


@dataclass
class TrainingConstants:
    """Constants of training, which are saved in each checkpoint. Chosen on the drawn episodes."""

    chroma_weight: float = 2.0  # a pixel of chroma 110 has 1 + chroma_weight times the weight of a gray one in the loss
    ema_decay: float = 0.995  # decay per step of the moving average of the generator; larger: smoother, slower
    max_zoom: float = 2.0  # maximum zoom factor of a training view; larger: more varied sizes
    fade_probability: float = 0.15  # probability that a view is darkened as in a fade
    min_exposure: float = 0.3  # a darkened view keeps at least min_exposure^3 of its light; larger: weaker fades
    paste_probability: float = 0.5  # probability that a part of another view is pasted into a view
    character_probability: float = 0.3  # probability that a character is pasted into a view, if there are sheets
    max_bad_steps: int = 10  # stop after this many consecutive steps without a finite loss and gradient
    val_pictures: int = 64  # maximum number of evenly spaced validation pictures; larger: less noise, slower
    min_improvement: float = 0.01  # minimum relative decrease of the validation error; larger: training ends earlier
    best_tolerance: float = 0.1  # best.pt is replaced while the error is at most (1 + best_tolerance) times the lowest


@dataclass
class DegradationConfig:
    """Constants of the degradation augmentations (``training/degradation.py``), which are saved in each checkpoint.
    They were chosen on degraded versions of the episodes. Larger values give stronger degradations."""

    probability: float = 0.5  # probability of each degradation; that of blur is half as large
    spectral_sensitivity: tuple = (1.2, 2.5, 0.8)  # Dirichlet parameters of the weights of red, green and blue light
    log_gamma: float = 0.15  # standard deviation of the logarithm of gamma
    contrast: tuple = (0.8, 1.15)  # range of the contrast factor
    blur: tuple = (0.3, 2.0)  # range of the standard deviation of the blur, in pixels of a picture of 512 rows
    grain: float = 8.0  # maximum standard deviation of the grain in L, which is in [0, 100]
    coarse_grain: float = 0.7  # standard deviation, in pixels, of the blur of coarse grain; half of all grain is coarse


@dataclass
class TemporalFilterConfig:
    """Constants of the temporal filter for the colors of a film (``colorizer/warping/optical_flow.py``)."""

    previous_weight: float = 0.8  # weight of the previous frame in a perfect match; larger: steadier, slower changes
    photometric_weight: float = 150.0  # of the squared difference of L (in [0, 1]); larger: fewer pixels are filtered
    flow_size: int = 128  # maximum side, in pixels, of the input of the optical flow; larger: finer motion, slower


# ---------------------------------------------------------------------------------------------------------------------
# Settings of the scripts


@dataclass
class GeneratorConfig:
    """Settings of dataset_generator.py."""

    video_path: Path = setting(SAMPLE_FILM, "video, or folder of videos", default_text="the bundled episode",
                               group="files")
    video_names: Sequence[str] = setting((), "names of the videos to use, with or without suffix; default: all",
                                         nargs="+", metavar="NAME", type=str)
    save_path: Path = setting(Path("dataset"), "output folder for train/, val/, test/, frames.csv and figures/")
    range: str = setting("auto", "luma range of films; auto: stated or by levels", choices=["auto", "full", "limited"])
    overwrite: bool = setting(False, "replace the files of an earlier run; other files are never changed")

    detector: str = setting("adaptive", "histogram compares color distributions; adaptive and content compare pixels "
                            "(PySceneDetect), adaptive relative to neighboring frames, which tolerates fast motion",
                            choices=["histogram", "adaptive", "content"], group="shot detection")
    col_diff_thres: float = setting(7000.0, "histogram: minimum mean squared difference of pixel counts at a cut; a "
                                    "larger value finds fewer cuts")
    scene_thres: float | None = setting(None, "adaptive, content: detector threshold; a larger value finds fewer cuts; "
                                        "default: 3 for adaptive, 27 for content")

    shots_len_thres: int = setting(12, "minimum length of a shot in frames; others are dropped", group="selection")
    frames_per_shot: int = setting(3, "number of evenly spaced frames to save per shot; 1 is the middle frame")
    split: Sequence[float] = setting((0.7, 0.2, 0.1), "fractions of the shots in train, val and test",
                                     nargs=3, metavar=("TRAIN", "VAL", "TEST"), type=float)
    seed: int = setting(0, "seed of the split")

    def check(self) -> None:
        """Raise UserError for a value out of range."""
        check_choices(self)
        check_at_least(self, 1, "frames_per_shot", "shots_len_thres", flag="--")
        check_at_least(self, 0, "seed", "col_diff_thres", flag="--")
        if self.scene_thres is not None and not self.scene_thres > 0:
            raise UserError(f"--scene_thres is {self.scene_thres} but must be above 0")
        if len(self.split) != 3 or not all(0 <= share <= 1 for share in self.split) or abs(sum(self.split) - 1) > 1e-6:
            raise UserError(f"--split is {' '.join(map(str, self.split))} but must be three fractions from 0 to 1 "
                            "(train, val, test) that add up to 1, such as 0.7 0.2 0.1")


@dataclass
class TrainConfig:
    """Settings of train.py."""

    data_path: str = setting("dataset", "folder with pictures in train/ and val/", group="files")
    characters: str = setting("", "folder of character sheets, NAME/*.png; without pictures in train/, they suffice")
    save_path: str = setting("checkpoints", "folder for checkpoints, log and samples")
    save_freq: int = setting(10, "write epoch_NNNN.pt every save_freq epochs")
    save_seconds: float = setting(120.0, "interval for writing last.pt, which an interrupted run resumes from")
    overwrite: bool = setting(False, "replace another run in save_path")
    merge: Sequence[str] = setting((), "do not train, but merge checkpoints of one series into save_path/best.pt: the "
                                   "networks of the first one and the remembered frames of all", nargs="+",
                                   metavar="CHECKPOINT", type=str)

    use_memory: bool = setting(True, "recall color features from a memory", group="mode")
    use_feat_integrator: bool = setting(False, "combine the best three slots of the memory with learned weights")
    use_spatial_memory: bool = setting(True, "also recall the colors of single grid cells; requires use_memory")
    use_palette_classifier: bool = setting(True, "classify each cell into the colors of the series, which avoids pale "
                                           "averages of two colors; requires use_spatial_memory")
    gen_norm: str = setting("adain", "norm of the generator; adain applies the color feature",
                            choices=["adain", "batch"])
    dis_norm: str = setting("adain", "norm of the discriminator; adain applies the color feature",
                            choices=["adain", "None"])

    start_epoch: int = setting(0, "resume from epoch_NNNN.pt of this epoch in save_path", group="length")
    end_epoch: int = setting(100, "train up to this epoch")
    epoch_steps: int = setting(50, "minimum number of steps in an epoch; a small training set is repeated within it")
    max_minutes: float = setting(0.0, "maximum duration; learning rates decay within it; 0 for no limit")
    patience: int = setting(4, "stop after this many epochs without a lower validation error; 0 to train to the end")
    resume: bool = setting(False, "resume from last.pt in save_path")

    img_size: int = setting(128, f"side of the square input of the networks, a multiple of {SIZE_STEP}",
                            group="networks")
    width: int = setting(16, "channels of the first layers; inner layers have up to 8 times as many")
    backbone: str = setting("efficientnet_lite0", "network that extracts features: efficientnet_lite0, resnet18, or "
                            "timm/NAME for a model of the timm package")
    backbone_weights: str = setting("", "file with the state dict of the backbone; default: weights of its package or "
                                    "a download")

    mem_size: int = setting(0, "slots of the memory; 0 for 1.2 times the number of training pictures", group="memory")
    top_k: int = setting(0, "nearest slots that the triplet loss searches; 0 for all, up to 256")
    color_thres: float = setting(0.5, "maximum KL divergence, in nats, of color features that count as equal")
    alpha: float = setting(0.1, "margin of the triplet loss, in cosine similarity")
    conditioning_dropout: float = setting(0.5, "fraction of the views that the generator colors with the color feature "
                                          "of a different frame, as it does for shots that it was not trained on")

    batch_size: int = setting(8, "pictures per step, in all processes together", group="optimization")
    gen_lr: float = setting(2e-3, "learning rate of the generator")
    dis_lr: float = setting(2e-4, "learning rate of the discriminator")
    mem_lr: float = setting(1e-4, "learning rate of the query encoder of the memory")
    int_lr: float = setting(1e-3, "learning rate of the feature integrator")
    lr_decay_start: float = setting(0.5, "fraction of the training after which learning rates decay linearly to 0")
    lambda_l1: float = setting(100.0, "weight of the L1 loss relative to the adversarial loss")
    dis_every: int = setting(4, "use and train the discriminator every N steps")
    label_smoothing: float = setting(0.9, "discriminator target for real pictures, at most 1")
    clip_grad: float = setting(0.0, "maximum norm of the gradient of a network; 0 for no limit")

    device: str = setting("auto", "device to train on", choices=["auto", "cpu", "cuda"], group="machine")
    precision: str = setting("auto", "precision of the networks; auto is bf16 where the hardware is fast at it",
                             choices=["auto", "fp32", "bf16"])
    num_workers: int = setting(0, "processes that prepare batches")
    cache_gb: float = setting(1.0, "GB of prepared pictures to keep in memory; others are read from the folder .cache "
                              "in train/ or val/")
    seed: int = setting(0, "seed of all random numbers")
    deterministic: bool = setting(False, "make results on a GPU reproducible, but slower; on a CPU they always are")

    spatial: SpatialConfig = field(default_factory=SpatialConfig)
    palette_classifier: PaletteClassifierConfig = field(default_factory=PaletteClassifierConfig)
    training: TrainingConstants = field(default_factory=TrainingConstants)
    degradation: DegradationConfig = field(default_factory=DegradationConfig)

    def check(self) -> None:
        """Raise UserError for settings that are out of range or contradict each other."""
        check_choices(self)
        check_at_least(self, 1, "end_epoch", "epoch_steps", "save_freq", "batch_size", "img_size", "width", "dis_every")
        check_at_least(self, 0, "start_epoch", "max_minutes", "patience", "mem_size", "top_k", "color_thres", "alpha",
                       "gen_lr", "dis_lr", "mem_lr", "int_lr", "lambda_l1", "clip_grad", "num_workers", "cache_gb",
                       "seed", "save_seconds")
        for name in ("lr_decay_start", "label_smoothing", "conditioning_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; set it between 0 and 1")
        if self.img_size % SIZE_STEP:
            raise UserError(f"img_size is {self.img_size}, which is not a multiple of {SIZE_STEP}; set img_size to "
                            f"{max(SIZE_STEP, round(self.img_size / SIZE_STEP) * SIZE_STEP)}")
        self._check_mode()
        if self.characters and not (self.use_palette_classifier and self.use_spatial_memory and self.use_memory):
            raise UserError("characters are recognized by a classifier; set use_palette_classifier, use_spatial_memory "
                            "and use_memory True or leave characters out")
        if not re.fullmatch(BACKBONES, self.backbone):
            raise UserError(f"backbone is {self.backbone!r}; choose from efficientnet_lite0, resnet18 and timm/NAME, "
                            "with a NAME of timm.list_models()")
        if bool(self.resume) + bool(self.start_epoch) + bool(self.overwrite) > 1:
            raise UserError("resume True resumes from last.pt, start_epoch from an earlier epoch, and overwrite True "
                            "starts again; use one of them")

    def _check_mode(self):
        """Raise UserError for a combination of memory, integrator and norms that cannot work."""
        if self.use_feat_integrator and not self.use_memory:
            raise UserError("the integrator combines slots of the memory; set use_memory True or "
                            "use_feat_integrator False")
        if self.use_memory and self.gen_norm == "batch":
            raise UserError("gen_norm batch ignores the color features of the memory; set gen_norm adain or use_memory "
                            "False")
        if not self.use_memory and self.gen_norm == "adain":
            raise UserError("gen_norm adain needs color features of a memory; set gen_norm batch or use_memory True")
        if self.gen_norm == "batch" and self.dis_norm == "adain":
            raise UserError("dis_norm adain needs the color feature, which a generator with gen_norm batch does not "
                            "have; set dis_norm None or gen_norm adain")


@dataclass
class PredictorConfig:
    """Settings of a Predictor."""

    checkpoint: Path = setting(Path("checkpoints/best.pt"), "checkpoint of train.py", group="files")
    color_feature: str = setting("auto", "source of the palette of each picture: the memory slot selected by --rank, "
                                 "the integrator, or the colors of the input itself; auto is the source that the "
                                 "checkpoint was trained with",
                                 choices=["auto", "memory", "integrator", "ground_truth"], group="colors")
    rank: int = setting(1, "rank of the memory slot to use", choices=[1, 2, 3])
    reference: Path | None = setting(None, "color picture whose palette is used for all inputs")
    references: Path | None = setting(None, "folder of color pictures to add to the memory, without training; "
                                      "subfolders, such as only_this_shot, limit them to shots")
    characters: Path | None = setting(None, "folder of character sheets, NAME/*.png, to recognize, without training")
    palette: Path | None = setting(None, "palette file (.ini, .gpl or .ase) whose locked colors become exact and whose "
                                   "exchanged colors are replaced, or a folder of them; subfolders limit them to shots")
    match_references: bool = setting(True, "adjust colors of references from another source to those of the series")
    save_checkpoint: Path | None = setting(None, "save the checkpoint with references and characters to this file")
    device: str = setting("auto", "device for the networks", choices=["auto", "cpu", "cuda"], group="machine")
    precision: str = setting("auto", "precision of the networks; auto is bf16 where the hardware is fast at it",
                             choices=["auto", "fp32", "bf16"])

    def check(self) -> None:
        """Raise UserError for an invalid choice, or for --save_checkpoint with nothing to save."""
        check_choices(self)
        if self.save_checkpoint and not (self.references or self.characters):
            raise UserError("--save_checkpoint saves references and characters; pass their folder to --references or "
                            "--characters")


@dataclass
class FilmConfig:
    """How a film is colored and encoded. None for ``codec``, ``crf`` or ``pix_fmt`` selects a value for the output."""

    start: float = setting(0.0, "start time, in seconds or hh:mm:ss", type=parse_time, metavar="TIME", group="video")
    end: float = setting(math.inf, "end time", type=parse_time, metavar="TIME")
    codec: str | None = setting(None, "FFmpeg encoder: h264, hevc, vp9, av1, ...; default: vp9 for .webm, else h264")
    crf: int | None = setting(None, "quality of the encoder, lower is better; default: 16 for h264")
    pix_fmt: str | None = setting(None, "FFmpeg pixel format; default: 4:2:0 with the depth and alpha of the source")
    color_only: bool = setting(False, "write only the chroma, with constant luma, for compositing")
    keep_color_shots: bool = setting(False, "copy shots that are already in color without changes")
    cut_at: Sequence[int] = setting((), "frames, from 0, that also start a shot", nargs="+", metavar="FRAME", type=int)
    join_at: Sequence[int] = setting((), "frames, from 0, that start no shot", nargs="+", metavar="FRAME", type=int)
    boundaries: Sequence[tuple[int, int, bool]] | None = None  # (start, end, wipe) of each shot's end; None: detect
    response: str = setting("auto", "auto: compensate for the tone curve and spectral sensitivity of a faded or graded "
                            "film; none: do not", choices=["auto", "none"])
    fallback: Path | None = setting(None, "the input colored by another program, a film, picture or folder: its colors "
                                    "replace uncertain ones")
    confidence: bool = setting(False, "also write maps of the confidence: recalled, predicted and unknown colors")
    batch_size: int = setting(128, "frames to color at the same time; fewer need less memory", group="machine")
    temporal_filter: TemporalFilterConfig = field(default_factory=TemporalFilterConfig)


@dataclass
class ColorConfig(FilmConfig, PredictorConfig):
    """Settings of test.py."""

    input: Path = setting(Path("dataset/test"), "picture, video, or folder of either", group="files")
    output: Path = setting(Path("results"), "folder, or for a single input a file (videos: .mp4, .mkv, .mov, .webm)")
    overwrite: bool = setting(False, "replace existing results; otherwise, those in a folder are skipped")
    fps: Fraction = setting(Fraction(24), "frames per second of numbered frames", type=parse_rate, group="video")
    cuts: Path | None = setting(None, "cut list (.csv, .edl or .otio) with all cuts of the film; default: detect them")
    save_palette: Path | None = setting(None, "color nothing, but write the colors that the checkpoint knows to this "
                                        "file (.ini, .gpl or .ase)")
    write_cuts: Sequence[str] = setting((), "also write cut lists", nargs="+", type=str, metavar="csv|edl|otio")
    suggest: int = setting(10, "grayscale frames to write for coloring by hand, the most useful ones; 0 for none")
    range: str = setting("auto", "luma range of films; auto: stated or by levels", choices=["auto", "full", "limited"])
    memory_video: bool = setting(False, "also write a film with the recalled frames next to the result")
    verify_luma: bool = setting(False, "verify that the luma of the colored film is identical to that of the input")

    def check(self) -> None:
        """Raise UserError for a value out of range."""
        PredictorConfig.check(self)
        check_at_least(self, 1, "batch_size")
        check_at_least(self, 0, "suggest")
        if self.verify_luma and self.color_only:
            raise UserError("--verify_luma compares the luma, which --color_only leaves out; use one of them")
        if self.end <= self.start:
            raise UserError(f"--end {self.end:g} s is not after --start {self.start:g} s")


@dataclass
class StudioConfig:
    """Settings of studio.py."""

    input: Path | None = setting(None, "grayscale film; default: the film of the project or the demo", group="files")
    checkpoint: Path | None = setting(None, "checkpoint of train.py; default: the checkpoint of the project or the "
                                      "demo; without one, train on the page")
    project: Path = setting(Path("results/studio"), "folder of the project; an existing project is opened")
    folders: Sequence[Path] = setting((), "folders to select films and pictures from", nargs="+", metavar="FOLDER",
                                      type=Path)
    host: str = setting("127.0.0.1", "address to listen on; an address that other machines can reach requires a "
                        "password in the environment variable STUDIO_PASSWORD", group="page")
    port: int = setting(7860, "port to listen on")

    def check(self) -> None:
        """Raise UserError for a value out of range."""
        if not 0 < self.port < 65536:
            raise UserError(f"--port is {self.port}; set it between 1 and 65535")
        for folder in self.folders:
            if not folder.is_dir():
                raise UserError(f"there is no folder {folder}; pass existing folders to --folders")


def part_of(settings: Any, kind: Callable[..., T]) -> T:
    """Return an instance of the dataclass ``kind`` with the values of ``settings``, an instance of a subclass."""
    return kind(**{f.name: getattr(settings, f.name) for f in fields(kind)})  # type: ignore[arg-type]
