"""What does the memory recall? ``color_panel`` writes a second film that shows it beside the results.

A frame of it shows the truth, where there is one, the grey picture, what each of the memory's three best slots and what
the true colour feature make of it, and a mosaic of all frames in memory with the three chosen ones framed.
"""

import math

import cv2
import numpy as np
import torch

from dataset import AB_BINS, AB_SCALE, GREY_SIZE, L_SCALE, color_feature, grey_image, lab_to_rgb, resize, rgb_to_lab
from utils import UserError, autocast, is_color, open_video, transcode

COLORS = ((66, 133, 255), (60, 190, 90), (240, 70, 70))  # blue, green, red: slots 1, 2, 3
GROUND = (24, 24, 27)

# ---------------------------------------------------------------------------------------------------------------------
# The frames in memory


def memory_pictures(colorizer):
    """The frames in a colorizer's memory as small pictures {frame id: RGB uint8 (32, 32, 3)}, in order of the film.

    The spatial memory keeps the lightness and colour of 32 x 32 places. Without it, all that is known of a frame is its
    colour feature, and the picture shows its colours as stripes, each as wide as its share.
    """
    if colorizer.config.use_spatial_memory:
        spatial = colorizer.spatial
        ids = spatial.ids.tolist()
        lightness = spatial.keys[..., -3:-2].float() / spatial.LIGHTNESS * L_SCALE
        lab = np.concatenate([lightness.cpu().numpy(), spatial.ab.float().cpu().numpy() * AB_SCALE], -1)
        pictures = [lab_to_rgb(picture) for picture in lab.reshape(-1, spatial.GRID, spatial.GRID, 3)]
    else:
        memory = colorizer.memory
        ids = memory.ids[memory.used].tolist()
        pictures = [palette(value) for value in memory.values[memory.used].cpu().numpy()]
    return {i: picture for i, picture in sorted(zip(ids, pictures, strict=True), key=lambda pair: pair[0]) if i >= 0}


def palette(color_feature, side=32):
    """The colours of a colour feature (313,) as stripes of one lightness, RGB uint8 (side, side, 3), sorted by hue."""
    order = np.argsort(np.arctan2(AB_BINS[:, 1], AB_BINS[:, 0]))
    ends = np.cumsum(color_feature[order]) / color_feature.sum()
    ab = AB_BINS[order][np.searchsorted(ends, (np.arange(side) + 0.5) / side)]
    lab = np.concatenate([np.full((side, 1), 65, np.float32), ab], 1)
    return lab_to_rgb(np.repeat(lab[None], side, 0))


class Mosaic:
    """All frames in memory on one picture of the given size, made once; ``framed`` marks some of them."""

    def __init__(self, pictures, height, width, aspect=16 / 9):
        """``pictures``: {frame id: RGB uint8}, all shown at ``aspect`` (width / height), as large as fits."""
        cell_height, rows = max((min(height / rows, width / math.ceil(len(pictures) / rows) / aspect), rows)
                                for rows in range(1, len(pictures) + 1))
        columns, cell_width = math.ceil(len(pictures) / rows), cell_height * aspect
        top, left = (height - rows * cell_height) / 2, (width - columns * cell_width) / 2
        gap = 1 if cell_height < 24 else 4  # pixels between two frames
        self.picture = np.full((height, width, 3), GROUND, np.uint8)
        self.boxes = {}
        for place, (i, picture) in enumerate(pictures.items()):
            row, column = divmod(place, columns)
            y0, x0 = round(top + row * cell_height), round(left + column * cell_width)
            y1 = max(y0 + 1, round(top + (row + 1) * cell_height) - gap)
            x1 = max(x0 + 1, round(left + (column + 1) * cell_width) - gap)
            self.boxes[i] = (y0, y1, x0, x1)
            self.picture[y0:y1, x0:x1] = resize(picture, y1 - y0, x1 - x0)

    def framed(self, chosen):
        """A copy with the frames of the ids ``chosen`` framed in COLORS; one that is chosen again keeps its first."""
        picture = self.picture.copy()
        for i, color in reversed(list(zip(chosen, COLORS, strict=False))):
            if i in self.boxes:
                y0, y1, x0, x1 = self.boxes[i]  # the frame is drawn around it, so that small ones can be seen as well
                frame(picture[max(y0 - 3, 0):y1 + 3, max(x0 - 3, 0):x1 + 3], color, 3)
        return picture


# ---------------------------------------------------------------------------------------------------------------------
# One frame of the panel

CELL = (320, 426)  # the largest height and width of a picture
GAP, LABEL = 8, 22  # pixels between pictures, and for the label above each


def cell_size(height, width):
    """Height and width of a picture of the panel, even, for a film of the given size."""
    return min(CELL[0], 2 * round(CELL[1] * height / width / 2) or 2), CELL[1]


def mosaic_size(height, width, truth):
    """Height and width of the mosaic for a film of the given size: three pictures wide, two without a truth."""
    height, width = cell_size(height, width)
    cells = 3 if truth else 2
    return height, cells * width + (cells - 1) * GAP


def panel_size(height, width, truth):
    """Height and width of a frame of the panel, both even, for a film of the given size."""
    height, width = cell_size(height, width)
    rows = 3 if truth else 2
    return rows * (LABEL + height + GAP) + GAP, 3 * width + 4 * GAP


def panel_frame(truth, grey, slot_results, true_feature_result, mosaic, chosen):
    """Compose one frame of the panel, RGB uint8 of ``panel_size``.

    Pictures are RGB uint8 (H, W, 3): the truth and the result of its colour feature (both None where there is none),
    the grey picture and the results of the three slots, of the frames ``chosen`` (ids, -1 for an empty slot) in
    ``mosaic``, a Mosaic of ``mosaic_size``.
    """
    height, width = cell_size(*grey.shape[:2])
    slots = [(f"slot {i}: frame {chosen_id}" if chosen_id >= 0 else f"slot {i}: empty", result, color)
             for i, (chosen_id, result, color) in enumerate(zip(chosen, slot_results, COLORS, strict=True), 1)]
    memory = (f"{len(mosaic.boxes)} frames in memory", mosaic.framed(chosen), None)
    if truth is None:
        rows = [[("grey", grey, None), memory], slots]
    else:
        rows = [[("truth", truth, None), ("grey", grey, None), ("true colour feature", true_feature_result, None)],
                slots, [memory]]
    sheet = np.full((*panel_size(*grey.shape[:2], truth is not None), 3), GROUND, np.uint8)
    y = GAP
    for row in rows:
        x = GAP
        for label, picture, color in row:
            cv2.putText(sheet, label, (x, y + LABEL - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.48, color or (215, 215, 215), 1,
                        cv2.LINE_AA)
            if picture.shape[:2] != mosaic.picture.shape[:2]:
                picture = fit(picture, height, width)
            cell = sheet[y + LABEL:y + LABEL + height, x:x + picture.shape[1]]
            cell[:] = picture
            if color:
                frame(cell, color, 4)
            x += picture.shape[1] + GAP
        y += LABEL + height + GAP
    return sheet


def fit(picture, height, width):
    """A picture, RGB uint8, as large as fits into (height, width), in the middle of it."""
    scale = min(height / picture.shape[0], width / picture.shape[1])
    inner = [max(1, round(side * scale)) for side in picture.shape[:2]]
    if inner == [height, width]:
        return resize(picture, height, width)
    cell = np.full((height, width, 3), GROUND, np.uint8)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    cell[top:top + inner[0], left:left + inner[1]] = resize(picture, *inner)
    return cell


def frame(picture, color, thickness):
    """Draw a frame inside the edges of a picture, in place."""
    picture[:thickness] = picture[-thickness:] = color
    picture[:, :thickness] = picture[:, -thickness:] = color


# ---------------------------------------------------------------------------------------------------------------------
# The film of the panel


def has_color(path):
    """True when a film has colour in some frame that decodes without others (about one in 250)."""
    with open_video(path) as (film, video):
        video.codec_context.skip_frame = "NONKEY"
        return any(is_color(picture.to_ndarray(format="rgb24")) for picture in film.decode(video))


class Panel:
    """Makes the frames of the panel of a film, of ``size`` (height, width).

    Results are painted at the size that is shown, each from another colour feature, and all with the same hints of the
    spatial memory, where there is one. Raises UserError when the checkpoint has no memory.
    """

    def __init__(self, painter, height, width, truth):
        """For a film of the given size, in colour (``truth``) or not; ``painter`` has colorizer, device, precision."""
        self.colorizer, self.device, self.precision = painter.colorizer, painter.device, painter.precision
        if not self.colorizer.config.use_memory:
            raise UserError("--panel shows the memory, and this checkpoint has none; train with use_memory True")
        self.truth = truth
        self.cell, self.size = cell_size(height, width), panel_size(height, width, truth)
        self.mosaic = Mosaic(memory_pictures(self.colorizer), *mosaic_size(height, width, truth), width / height)

    @torch.inference_mode()
    def paint(self, pictures, shot=None):
        """Frames of the panel for frames of the film, RGB uint8 (H, W, 3), one for each.

        ``shot`` (D,) is what the backbone sees of the shot they are from, to read the memory once for all of them;
        None reads it for each frame.
        """
        colorizer = self.colorizer
        pictures = [fit(picture, *self.cell) for picture in pictures]
        labs = [rgb_to_lab(picture) for picture in pictures]
        L, hint = self._lightness(labs, GREY_SIZE), None
        with autocast(self.device, self.precision):
            frames, places = colorizer.backbone(grey_image(L))
        if colorizer.config.use_spatial_memory:
            hint = colorizer.spatial.read(frames, colorizer.spatial.key(places, L))
        recall = colorizer.recall(frames if shot is None else shot.to(frames).expand(len(frames), -1))
        features = [colorizer.choose(recall, rank) for rank in (1, 2, 3)]
        if self.truth:
            true = np.stack([color_feature(lab[..., 1:]) for lab in labs])
            features.append(torch.from_numpy(true).to(self.device))
        L = self._lightness(labs, colorizer.config.img_size)
        results = [self._results(labs, L, feature, hint) for feature in features]
        sheets = []
        for i, (picture, lab, ids) in enumerate(zip(pictures, labs, recall.ids.tolist(), strict=True)):
            first, second, third, *by_truth = [result[i] for result in results]
            sheets.append(panel_frame(picture if self.truth else None, lab_to_rgb(lab * np.float32([1, 0, 0])),
                                      [first, second, third], *(by_truth or [None]), self.mosaic, (ids + [-1, -1])[:3]))
        return sheets

    def _lightness(self, labs, side):
        """L (N, 1, side, side) of Lab pictures, as the networks see it."""
        L = np.stack([resize(lab[..., 0], side, side) for lab in labs])
        return torch.from_numpy(L)[:, None].to(self.device) / L_SCALE

    def _results(self, labs, L, feature, hint):
        """What Lab pictures of lightness ``L`` become by colour features (N, 313) and hints, as RGB."""
        with autocast(self.device, self.precision):
            ab = self.colorizer(L, feature, hint) * AB_SCALE
        return [lab_to_rgb(np.dstack([lab[..., 0], resize(colors, *lab.shape[:2])]))
                for lab, colors in zip(labs, ab.permute(0, 2, 3, 1).contiguous().cpu().numpy(), strict=True)]


def color_panel(painter, source, target, batch_size):
    """Write the panel of the film ``source`` as the film ``target``, with its times and sound."""
    with open_video(source) as (_, video):
        size = video.codec_context.height, video.codec_context.width
    panel = Panel(painter, *size, has_color(source))
    transcode(source, target, panel.paint, batch_size, panel.size)
