"""What can be set? Every setting of the program, as dataclasses, from which the command lines are made.

A field with a ``help`` text is a flag of its script. The fields of SpatialConfig, PaletteClassifierConfig, TrainingConstants,
TemporalFilterConfig, InBetweenConfig and CalibrationConfig are constants of the method, chosen in
trials (``benchmarks/trials.md``; ``benchmarks/search.py`` varies them). All but the last three are saved with a
checkpoint.
"""

import math
import re
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from utils import UserError, check_at_least, check_choices, parse_time, setting

SIZE_STEP = 128  # pixels; the generator halves the picture 7 times
BACKBONES = r"efficientnet_lite0|resnet18|timm/[A-Za-z0-9_.]+"  # a pattern; no name of a file or of a repository fits
SAMPLE_FILM = Path(__file__).resolve().parent / "resources" / "episode_1.mp4"

T = TypeVar("T")


def restore(settings: type[T], plain: dict[str, Any]) -> T:
    """The inverse of ``dataclasses.asdict``. Raises TypeError for an unknown name, and ValueError for a constant of the
    method that is of another type than its default, negative, not finite, or a whole number of 0."""
    values = dict(plain)
    for f in fields(settings):  # type: ignore[arg-type]  # a dataclass
        if f.name not in values:
            continue
        if is_dataclass(f.type):
            values[f.name] = restore(typing.cast(type, f.type), values[f.name])
        elif settings in (SpatialConfig, PaletteClassifierConfig, TrainingConstants):
            _check_constant(f, values[f.name])
    return settings(**values)


def _check_constant(f, value):
    if type(value) is not f.type or not (f.type is int) <= value < math.inf:  # an int is a count, at least 1
        raise ValueError(f"{f.name} is {value!r}")


# ---------------------------------------------------------------------------------------------------------------------
# The method


@dataclass
class SpatialConfig:
    """Constants of the spatial memory (``colorizer/memory/spatial_memory.py``), saved with the checkpoint.

    Unless another place is named, each was chosen by ``benchmarks/search.py`` on held-out frames of two films.
    """

    grid: int = 32  # places along a side of the picture; 32 is the finest map of the backbone
    key_dim: int = 64  # numbers of a place's features after the PCA
    attended_frames: int = 8  # frames in memory that the attention reads for a picture
    candidate_frames: int = 64  # most similar frames, among which these are chosen
    mmr_diversity: float = 0.5  # a frame's score is its similarity minus this times that to the nearest frame already chosen
    inverse_temperature: float = 30.0  # of the attention: weights are softmax(-sharpness * squared distance of keys)
    disagreement_scale: float = 0.02  # variance of ab / 110 that divides the confidence by e
    lightness_weight: float = 2.0  # weight of L in [0, 1] in a key
    position_weight: float = 0.1  # weight of (y, x) in [-1, 1] in a key
    color_weight: float = 4.0  # weight of ab / 110 in a key
    reference_margin: float = 0.05  # a user's frame comes first if its cosine similarity is at most this below the best
    reference_bias: float = 0.5  # taken off the squared distances of keys to places of a user's frame that comes first
    warped_frames: int = 2  # frames whose colors are carried along the optical flow
    picture_size: int = 192  # pixels along a side of the picture kept of each frame; trials of carrying, trials.md
    feature_weight: float = 0.27  # weight of the squared distance of keys in the misfit; 50 random settings, trials.md
    photometric_weight: float = 100.0  # weight of the squared difference in L in [0, 1] in the misfit; chosen as unlike
    cost_inverse_temperature: float = 15.0  # carried frames are mixed with weights softmax(-choice * misfit); chosen as unlike
    cost_clamp: float = 1.3  # a pixel adds at most this to the mean misfit of its picture; chosen as unlike
    skip_attention_above: float = 0.95  # a place whose carried colors have at least this mean confidence is not looked up
    max_frames: int = 50_000  # frames in memory; of a larger training set, so many spread evenly
    max_inline_frames: int = 4096  # a memory of more frames, 258 kB each, is kept in a file beside the checkpoint
    duplicate_tolerance: int = 2  # codes of 255; a frame that nowhere differs by more from another one in memory is not kept
    pca_pictures: int = 128  # maximum number of pictures that the PCA is fit to, evenly spaced in the training set


@dataclass
class PaletteClassifierConfig:
    """Constants of the voter (``colorizer/palette_classifier.py``), saved with the checkpoint. Chosen on held-out shots of the drawn
    episode 1 and on episode 2 (``benchmarks/trials.md``)."""

    input_size: int = 512  # side, in pixels, of the gray picture that the backbone looks at, 4 pixels a place
    palette_size: int = 48  # of the show, that are voted for
    discriminant_axes: int = 47  # directions in which the colors differ; one less than the colors is all that there are
    hidden_dim: int = 256  # width of the MLP
    learning_rate: float = 2e-3  # its learning rate
    shrinkage: float = 0.1  # share of the mean variance that is added to that of every direction
    label_sigma: float = 5.0  # ab that the labels of a color are blurred by
    region_scale: float = 600.0  # scale of the regions over which votes are pooled: larger ones for more
    chroma_weight: float = 4.0  # how much more a place of chroma 110 counts than a gray one
    generator_sigma: float = 25.0  # ab, standard deviation at which the generator's color counts as a vote
    temperature: float = 0.4  # of the joint votes: 1 paints their mean, 0 the winner
    keyframe_interval: int = 4  # drawings of a film of which at least one is painted
    flow_size: int = 128  # side, in pixels, of the pictures in which the motion between these is found
    training_views: int = 256  # minimum number of views that it is trained on; at most 4 times this
    views_per_picture: int = 16  # maximum for each picture, also if that gives fewer than training_views
    training_steps: int = 1000  # steps of the optimizer
    training_cell_step: int = 16  # the number of cells of a view divided by this is the number of its training samples


@dataclass
class ResponseConfig:
    """Constants of how a film's response is found (``colorizer/adaptation/film_response.py``). Chosen on the drawn episodes and what
    FFmpeg makes of them (``benchmarks/trials.md``)."""

    matched_frames: int = 4  # frames in memory that are matched with one of the film
    histogram_frames: int = 256  # and so many, spread evenly, have the lightness of what is known
    max_rounds: int = 2  # at most so many times is it mended by what matches
    min_distance_reduction: float = 0.03  # a curve must shorten the mean squared distance to what is known by this share
    min_pairs: int = 100  # places that match, at least, for a stock to be found
    min_sensitivity_reduction: float = 0.05  # a stock must lessen the misfit of what matches by this share
    min_curve_reduction: float = 0.4  # and a curve by this one


@dataclass
class GradeConfig:
    """Constants of how the colors of references are brought to the show's (``colorizer/adaptation/reference_grading.py``). Chosen on the
    drawn episodes (``benchmarks/trials.md``)."""

    sampled_references: int = 32  # references that are looked at, at equal steps
    min_pairs: int = 20  # places that show the same thing, at least
    color_tolerance: float = 3.0  # two Cb and Cr in [-128, 127] are the same color up to this distance
    min_explained_gain: float = 0.1  # a grade must explain more pairs of colors than no grade, by this share of all
    max_gain: float = 2.5  # a stronger or weaker saturation than this or its inverse is wanted so
    max_hue_rotation: float = 30.0  # degrees; hues that are turned by more are wanted so
    max_shift: float = 20.0  # of Cb and Cr in [-128, 127]; a stronger tint is wanted so


@dataclass
class ModelConfig:
    """What a checkpoint must know to build its networks again. TrainConfig explains each setting."""

    img_size: int = 256  # pixels, a multiple of SIZE_STEP
    gen_norm: str = "adain"  # adain | batch
    use_memory: bool = True
    use_feat_integrator: bool = False
    use_spatial_memory: bool = True
    use_palette_classifier: bool = False
    backbone: str = "efficientnet_lite0"  # fits BACKBONES
    mem_size: int = 100  # slots
    spatial_size: int = 80  # frames
    archived_frames: int = 0  # of these, the first so many are kept in a file beside the checkpoint
    top_k: int = 100  # slots
    alpha: float = 0.1  # cosine similarity
    color_thres: float = 0.5  # nats
    width: int = 64  # channels
    spatial: SpatialConfig = field(default_factory=SpatialConfig)
    palette_classifier: PaletteClassifierConfig = field(default_factory=PaletteClassifierConfig)

    @property
    def side(self) -> int:
        """Pixels along a side of the square pictures that a Colorizer takes and gives."""
        return max(self.img_size, self.spatial.picture_size) if self.use_spatial_memory else self.img_size


@dataclass
class TrainingConstants:
    """Constants of training, saved with the checkpoint. Chosen on the drawn episodes (``benchmarks/trials.md``)."""

    chroma_weight: float = 2.0  # a pixel of chroma 110 has 1 + chroma_weight times the color loss of a gray one
    ema_decay: float = 0.995  # decay per step of the moving average of the generator's weights
    max_zoom: float = 2.0  # maximum zoom of a training view
    fade_probability: float = 0.15  # of a view that is darkened as in a fade
    min_exposure: float = 0.3  # a darkened view has at least min_exposure^3 of its light
    paste_probability: float = 0.5  # of a view that has a part of another view pasted in, 1/4 to 3/4 of each side
    max_bad_steps: int = 10  # stop after this many consecutive steps without a finite loss and gradient
    val_pictures: int = 64  # maximum number of pictures in a validation, evenly spaced in the set
    best_tolerance: float = 0.1  # best.pt is replaced while the error is at most (1 + best_tolerance) times the lowest


@dataclass
class DegradationConfig:
    """Constants of the degradation augmentations (``training/degradation.py``) that the palette classifier is trained on,
    saved with the checkpoint. Chosen on degraded versions of the drawn episodes (``benchmarks/trials.md``)."""

    probability: float = 0.5  # of each degradation; blur has half of it
    spectral_sensitivity: tuple = (1.2, 2.5, 0.8)  # Dirichlet parameters of the weights of red, green and blue light
    log_gamma: float = 0.15  # standard deviation of the logarithm of gamma
    contrast: tuple = (0.8, 1.15)  # range of the contrast factor
    blur: tuple = (0.3, 2.0)  # range of the standard deviation of the blur, in pixels of a picture of 512 rows
    grain: float = 8.0  # maximum standard deviation of the grain in L, which is in [0, 100]
    coarse_grain: float = 0.7  # standard deviation, in pixels, of the blur of coarse grain; half of all grain is coarse


@dataclass
class TemporalFilterConfig:
    """Constants that keep the colors of a film steady (``colorizer/warping/optical_flow.py``; chosen in ``benchmarks/trials.md``)."""

    previous_weight: float = 0.8  # weight of the colors of the frame before, where it shows the same lightness
    photometric_weight: float = 150.0  # elsewhere that weight is multiplied by exp(-unlit * squared difference in L in [0, 1])
    flow_size: int = 128  # greatest side, in pixels, of the pictures in which the motion is found


@dataclass
class InBetweenConfig:
    """Constants that tell which drawings of a film need not be painted (``colorizer/warping/in_betweens.py``; chosen in
    ``benchmarks/trials.md``)."""

    photometric_weight: float = 150.0  # a pixel fits where the flow leads to by exp(-unlit * squared difference in L in [0, 1])
    grid: int = 16  # cells along a side
    power: int = 8  # of the mean
    max_mismatch: float = 0.55  # how much of a place may not fit, in a mean of the 8th power over a drawing


@dataclass
class CalibrationConfig:
    """Constants that tell how sure a color is (``colorizer/confidence.py``), fit by ``benchmarks/calibration.py`` on two
    films of which some shots were held out, the drawn episode 1 and Big Buck Bunny (``benchmarks/trials.md``). They
    belong to the program, not to a checkpoint."""

    probability_margin: float = 0.001  # no share is believed to be nearer to 0 or to 1
    bias: float = 0.63  # logit of the probability of a color that is half recalled and that half of the votes agree on
    recalled_weight: float = 0.69  # weight of the logit of how much of it is recalled
    agreement_weight: float = 0.42  # weight of the logit of how many votes agree


# ---------------------------------------------------------------------------------------------------------------------
# The scripts


@dataclass
class GeneratorConfig:
    """One run of dataset_generator.py."""

    video_path: Path = setting(SAMPLE_FILM, "a folder of videos, or one video", default_text="the bundled episode",
                               group="what to read and where to write")
    video_names: Sequence[str] = setting((), "only these videos of the folder, named with or without suffix; none "
                                         "named: all", nargs="+", metavar="NAME", type=str)
    save_path: Path = setting(Path("dataset"), "folder to write train/, val/, test/, frames.csv and figures/ to")
    overwrite: bool = setting(False, "replace what an earlier run wrote there; other files are never touched")

    detector: str = setting("adaptive", "histogram compares color distributions; adaptive and content are "
                            "PySceneDetect's, which compare pixels, adaptive against the frames around and so calmer "
                            "in fast motion", choices=["histogram", "adaptive", "content"],
                            group="where a shot ends")
    col_diff_thres: float = setting(7000.0, "histogram: a greater difference between neighboring frames is a cut; "
                                    "lower finds more")
    scene_thres: float | None = setting(None, "adaptive, content: the same for these two; not given: 3 for adaptive, "
                                        "27 for content")

    shots_len_thres: int = setting(12, "drop shots of fewer frames; 12 is half a second at 24 frames a second",
                                   group="what is kept")
    frames_per_shot: int = setting(3, "frames to save of each shot, spread evenly: 1 is the middle, 3 first, middle "
                                   "and last")
    split: Sequence[float] = setting((0.7, 0.2, 0.1), "shares of the shots for train, val and test, which add up to 1",
                                     nargs=3, metavar=("TRAIN", "VAL", "TEST"), type=float)
    seed: int = setting(0, "decides which shot goes where")

    def check(self) -> None:
        """Raises UserError for a value out of its range."""
        check_choices(self)
        check_at_least(self, 1, "frames_per_shot", "shots_len_thres", flag="--")
        check_at_least(self, 0, "seed", "col_diff_thres", flag="--")
        if self.scene_thres is not None and not self.scene_thres > 0:
            raise UserError(f"--scene_thres is {self.scene_thres} but must be above 0")
        if len(self.split) != 3 or not all(0 <= share <= 1 for share in self.split) or abs(sum(self.split) - 1) > 1e-6:
            raise UserError(f"--split is {' '.join(map(str, self.split))} but must be three shares from 0 to 1 (train, "
                            "val, test) that add up to 1, such as 0.7 0.2 0.1")


@dataclass
class TrainConfig:
    """Settings of train.py."""

    data_path: str = setting("dataset", "folder with pictures in train/ and val/", group="files")
    save_path: str = setting("checkpoints", "folder for checkpoints, log and samples")
    save_freq: int = setting(10, "write epoch_NNNN.pt every save_freq epochs")
    save_seconds: float = setting(120.0, "write last.pt, from which an interrupted run resumes, at this interval")
    overwrite: bool = setting(False, "replace another run in save_path")
    merge: Sequence[str] = setting((), "do not train, but merge checkpoints of one show into save_path/best.pt: the "
                                   "networks of the first one and the remembered frames of all", nargs="+",
                                   metavar="CHECKPOINT", type=str)

    use_memory: bool = setting(True, "recall color features from a memory", group="mode")
    use_feat_integrator: bool = setting(False, "combine the best three slots of the memory with learned weights")
    use_spatial_memory: bool = setting(True, "recall colors of single grid cells, too; requires use_memory")
    use_palette_classifier: bool = setting(True, "choose among the colors of the show in each cell, which avoids pale "
                                           "averages of two colors; requires use_spatial_memory")
    gen_norm: str = setting("adain", "norm of the generator; adain applies the color feature",
                            choices=["adain", "batch"])
    dis_norm: str = setting("adain", "norm of the discriminator; adain applies the color feature",
                            choices=["adain", "None"])

    start_epoch: int = setting(0, "resume from epoch_NNNN.pt of this epoch in save_path", group="length")
    end_epoch: int = setting(100, "train up to this epoch")
    epoch_steps: int = setting(50, "minimum number of steps in an epoch; a small training set is repeated within it")
    max_minutes: float = setting(0.0, "maximum duration, to which the schedule is adapted; 0 for no limit")
    resume: bool = setting(False, "resume from last.pt in save_path")

    img_size: int = setting(128, f"side of the square input of the networks, a multiple of {SIZE_STEP}",
                            group="networks")
    width: int = setting(32, "channels of the first layers; inner layers have up to 8 times as many")
    backbone: str = setting("efficientnet_lite0", "network that extracts features: efficientnet_lite0, resnet18, or "
                            "timm/NAME for a model of the timm package")
    backbone_weights: str = setting("", "state dict with the weights of the backbone; by default those of its package "
                                    "or a download")

    mem_size: int = setting(0, "slots of the memory; 0 for 1.2 times the number of training pictures", group="memory")
    top_k: int = setting(0, "nearest slots that the triplet loss searches; 0 for all, up to 256")
    color_thres: float = setting(0.5, "maximum KL divergence, in nats, of color features that count as equal")
    alpha: float = setting(0.1, "margin of the triplet loss, in cosine similarity")
    conditioning_dropout: float = setting(0.5, "share of the pictures that the generator colors with the color feature "
                                          "of another frame, as it does for shots that are not in the training set")

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
    deterministic: bool = setting(False, "give the same result each time on a GPU, but slower; a CPU always does")

    spatial: SpatialConfig = field(default_factory=SpatialConfig)
    palette_classifier: PaletteClassifierConfig = field(default_factory=PaletteClassifierConfig)
    training: TrainingConstants = field(default_factory=TrainingConstants)
    degradation: DegradationConfig = field(default_factory=DegradationConfig)

    def check(self) -> None:
        """Raise UserError for settings that are out of range or contradict each other."""
        check_choices(self)
        check_at_least(self, 1, "end_epoch", "epoch_steps", "save_freq", "batch_size", "img_size", "width", "dis_every")
        check_at_least(self, 0, "start_epoch", "max_minutes", "mem_size", "top_k", "color_thres", "alpha", "gen_lr",
                       "dis_lr", "mem_lr", "int_lr", "lambda_l1", "clip_grad", "num_workers", "cache_gb", "seed",
                       "save_seconds")
        for name in ("lr_decay_start", "label_smoothing", "conditioning_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; set it between 0 and 1")
        if self.img_size % SIZE_STEP:
            raise UserError(f"img_size is {self.img_size}, which is not a multiple of {SIZE_STEP}; set img_size to "
                            f"{max(SIZE_STEP, round(self.img_size / SIZE_STEP) * SIZE_STEP)}")
        self._check_mode()
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
            raise UserError("dis_norm adain compares with a color feature, which a generator with gen_norm batch does "
                            "not have; set dis_norm None or gen_norm adain")


@dataclass
class PredictorConfig:
    """What colors, and where it takes its colors from."""

    checkpoint: Path = setting(Path("checkpoints/best.pt"), "what train.py wrote", group="files")
    color_feature: str = setting("auto", "where the palette of each picture comes from: the memory's slot of --rank, "
                                 "the integrator or the input's own colors; auto is the way that the checkpoint was "
                                 "trained", choices=["auto", "memory", "integrator", "ground_truth"], group="colors")
    rank: int = setting(1, "which of the memory's best slots", choices=[1, 2, 3])
    reference: Path | None = setting(None, "a picture in color whose palette is used for everything")
    references: Path | None = setting(None, "a folder of color pictures to add to the memory: frames like them take "
                                      "their colors, with no training")
    match_references: bool = setting(True, "bring references from another source, which is more or less saturated or "
                                     "of another hue where both show the same thing, to the colors of the show")
    save_checkpoint: Path | None = setting(None, "write the checkpoint with the references to this file")
    device: str = setting("auto", "where to run the networks", choices=["auto", "cpu", "cuda"], group="machine")
    precision: str = setting("auto", "of the networks; auto is bf16 where the hardware is fast at it",
                             choices=["auto", "fp32", "bf16"])


    def check(self) -> None:
        """Raises UserError for a value that is none of the choices, or without what it needs."""
        check_choices(self)
        if self.save_checkpoint and not self.references:
            raise UserError("--save_checkpoint keeps the references; name their folder by --references")


@dataclass
class FilmConfig:
    """How a film is colored and written. ``codec``, ``crf`` and ``pix_fmt`` None take what suits the output."""

    start: float = setting(0.0, "color only from here on, in seconds or hh:mm:ss", type=parse_time, metavar="TIME",
                           group="video")
    end: float = setting(math.inf, "and up to here", type=parse_time, metavar="TIME")
    codec: str | None = setting(None, "FFmpeg's encoder, such as h264, hevc, vp9 or av1; vp9 for .webm, else h264")
    crf: int | None = setting(None, "quality of that encoder, lower is better; 16 for h264")
    pix_fmt: str | None = setting(None, "FFmpeg's pixel format; 4:2:0 with 10 bits for a source of more than 8")
    color_only: bool = setting(False, "write the chroma alone, on neutral lightness, for compositing")
    keep_color_shots: bool = setting(False, "leave shots that are already in color as they are")
    cut_at: Sequence[int] = setting((), "frames, counted from 0, that begin a shot though none is found there",
                                    nargs="+", metavar="FRAME", type=int)
    join_at: Sequence[int] = setting((), "frames at which a shot is found to begin and none does", nargs="+",
                                     metavar="FRAME", type=int)
    response: str = setting("auto", "auto: a film that is faded, graded, printed hard or of a stock that sees colors "
                            "otherwise is compared with what the networks know as if both were alike; none: as it is",
                            choices=["auto", "none"])
    confidence: bool = setting(False, "write a map beside each film or picture: what is recalled, guessed and unknown")
    batch_size: int = setting(8, "frames of a video in one pass of the network", group="machine")
    temporal_filter: TemporalFilterConfig = field(default_factory=TemporalFilterConfig)


@dataclass
class ColorConfig(FilmConfig, PredictorConfig):
    """One run of test.py."""

    input: Path = setting(Path("dataset/test"), "a picture, a video, or a folder of either", group="files")
    output: Path = setting(Path("results"), "a folder, or for a single input the file to write (.mp4, .mkv, .mov or "
                           ".webm for a video)")
    overwrite: bool = setting(False, "replace results that exist; else those of a folder are skipped")
    suggest: int = setting(10, "how many frames to write as gray pictures whose coloring would help most; 0 for none",
                           group="video")
    panel: bool = setting(False, "write a second film that shows what the memory recalls")
    proof: bool = setting(False, "compare the luma of the colored film with the film's, sample by sample, and tell")

    def check(self) -> None:
        """Raises UserError for a value out of its range."""
        PredictorConfig.check(self)
        check_choices(self)
        check_at_least(self, 1, "batch_size")
        check_at_least(self, 0, "suggest")
        if self.proof and self.color_only:
            raise UserError("--proof compares the luma, which --color_only leaves out; use one of them")
        if self.end <= self.start:
            raise UserError(f"--end {self.end:g} s is not after --start {self.start:g} s")


@dataclass
class ExportConfig:
    """One run of ``python -m colorizer.export``."""

    checkpoint: Path = setting(Path("checkpoints/best.pt"), "what train.py wrote", group="files")
    output: Path = setting(Path("exported"), "a new folder for the networks as ONNX and all that goes with them")


@dataclass
class StudioConfig:
    """One run of studio.py."""

    input: Path | None = setting(None, "the gray film; not given: that of the project, or of the demo", group="files")
    checkpoint: Path | None = setting(None, "what train.py wrote; not given: that of the project, or that of the demo; "
                                      "if there is none, one is trained on the page")
    project: Path = setting(Path("results/studio"), "folder of the project; one that is there is opened again")
    folders: Sequence[Path] = setting((), "folders whose films and pictures may be chosen on the page", nargs="+",
                                      metavar="FOLDER", type=Path)
    host: str = setting("127.0.0.1", "address to listen on; another one than this machine's own needs a password in "
                        "the environment variable STUDIO_PASSWORD", group="page")
    port: int = setting(7860, "port to listen on")

    def check(self) -> None:
        """Raises UserError for a value out of its range."""
        if not 0 < self.port < 65536:
            raise UserError(f"--port is {self.port}; set it between 1 and 65535")
        for folder in self.folders:
            if not folder.is_dir():
                raise UserError(f"there is no folder {folder}; name others by --folders")


def part_of(settings: Any, kind: Callable[..., T]) -> T:
    """A ``kind``, a dataclass, with the values of ``settings``, whose class extends it."""
    return kind(**{f.name: getattr(settings, f.name) for f in fields(kind)})  # type: ignore[arg-type]
