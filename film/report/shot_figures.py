"""Figures of the detected shots of a film: the curve of frame differences and contact sheets.

They are drawn with Pillow, since matplotlib would take longer than decoding a short film.
"""

import math
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from film.analysis.dataset_files import SIGNATURE
from film.analysis.detected_shots import MAX_THUMBNAILS, DetectedFilm

COLORS = {"train": "#2a9d4a", "val": "#2f6fd0", "test": "#d9821a", "dropped": "#8a8a8a"}
PALE = {"train": "#bfe2c9", "val": "#c1d4f1", "test": "#f4dabb", "dropped": "#dcdcdc"}
SHEET_COLUMNS, SHEET_ROWS = 6, 10
SHEET_PAGES = MAX_THUMBNAILS // (SHEET_COLUMNS * SHEET_ROWS)
CURVE_SIZE = 1540, 495
CURVE_BOX = 90, 36, 1270, 430  # left, top, right and bottom of the plot area; the legend is to its right


def save_figure(picture: Image.Image, path: Path) -> None:
    signature = PngImagePlugin.PngInfo()
    signature.add_text("Software", SIGNATURE)
    picture.save(path, pnginfo=signature, compress_level=1)  # fast


def draw_curve(film: DetectedFilm, path: Path) -> None:
    """Draw the differences between frames, the threshold, and the shots in the colors of their splits.

    The scale is logarithmic, with a difference of 0 at its lower end. Each pixel column shows a maximum.
    """
    left, top, right, bottom = CURVE_BOX
    count, columns = len(film.differences), right - left
    floor = film.threshold / 1000 or 1e-3
    values = np.maximum(np.frombuffer(film.differences, np.float32), floor)
    low, high = math.log10(floor), math.log10(max(values.max(), film.threshold) * 2)
    picture = Image.new("RGB", CURVE_SIZE, "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=14)

    def x_of(frame):
        return left + frame * columns / count

    def y_of(value):
        return bottom - (math.log10(value) - low) / (high - low) * (bottom - top)

    for shot in film.shots:
        first, end = x_of(shot.start), x_of(shot.end)
        draw.rectangle((first, top, max(first, end - 1), bottom), fill=PALE[shot.split])
    for power in range(math.ceil(low), math.floor(high) + 1):
        draw.line((left - 5, y_of(10.0**power), left, y_of(10.0**power)), fill="black")
        draw.text((left - 9, y_of(10.0**power)), f"{10.0**power:g}", fill="black", font=font, anchor="rm")
    step = next(size for power in range(12) for size in (10**power, 2 * 10**power, 5 * 10**power) if count <= 12 * size)
    for frame in range(0, count, step):
        draw.line((x_of(frame), bottom, x_of(frame), bottom + 5), fill="black")
        draw.text((x_of(frame), bottom + 9), str(frame), fill="black", font=font, anchor="mt")

    column = np.arange(count) * columns // count
    starts = np.flatnonzero(np.diff(column, prepend=-1))
    points = [(left + column[i], y_of(value)) for i, value in
              zip(starts, np.maximum.reduceat(values, starts), strict=True)]
    draw.line(points if len(points) > 1 else points * 2, fill="black")
    for x in range(left, right, 12):
        draw.line((x, y_of(film.threshold), x + 7, y_of(film.threshold)), fill="red", width=2)
    draw.rectangle(CURVE_BOX, outline="black")

    draw.text(((left + right) / 2, 12), film.path.name, fill="black", font=font, anchor="mt")
    draw.text(((left + right) / 2, bottom + 36), "frame", fill="black", font=font, anchor="mt")
    draw.text((left, 12), film.label, fill="black", font=font, anchor="lt")
    shots = Counter(shot.split for shot in film.shots)
    y = top
    for split in COLORS:
        if shots[split]:
            draw.rectangle((right + 20, y, right + 44, y + 14), fill=PALE[split], outline=COLORS[split])
            draw.text((right + 54, y + 7), f"{split}: {shots[split]} shots", fill="black", font=font, anchor="lm")
            y += 26
    draw.line((right + 20, y + 7, right + 44, y + 7), fill="red", width=2)
    draw.text((right + 54, y + 7), f"threshold {film.threshold:g}", fill="black", font=font, anchor="lm")
    save_figure(picture, path)


def draw_contact_sheets(film: DetectedFilm, folder: Path) -> None:
    """Draw the middle frame of each shot with its number, frames and split, on up to SHEET_PAGES pages."""
    cell_width, cell_height, margin = 240, 176, 28
    font = ImageFont.load_default(size=13)
    per_page = SHEET_COLUMNS * SHEET_ROWS
    shown = film.shots[:per_page * SHEET_PAGES]
    for page, start in enumerate(range(0, len(shown), per_page)):
        shots = shown[start:start + per_page]
        rows = -(-len(shots) // SHEET_COLUMNS)
        sheet = Image.new("RGB", (cell_width * SHEET_COLUMNS, margin + cell_height * rows), "white")
        draw = ImageDraw.Draw(sheet)
        title = f"{film.path.name}: shots {start} to {start + len(shots) - 1} of {len(film.shots)}"
        if len(shown) < len(film.shots):
            title += f" (only the first {len(shown)} are drawn)"
        draw.text((8, 6), title, fill="black", font=font)
        for position, shot in enumerate(shots):
            x, y = position % SHEET_COLUMNS * cell_width, margin + position // SHEET_COLUMNS * cell_height
            picture = cv2.imdecode(np.frombuffer(shot.thumbnail or b"", np.uint8), cv2.IMREAD_COLOR_RGB)
            draw.rectangle((x + 4, y, x + 235, y + 133), fill=COLORS[shot.split])
            sheet.paste(Image.fromarray(picture), (x + 120 - picture.shape[1] // 2, y + 67 - picture.shape[0] // 2))
            draw.text((x + 6, y + 137), f"{shot.number}: {shot.start}-{shot.end - 1}  {shot.split}", font=font,
                      fill=COLORS[shot.split])
            draw.text((x + 6, y + 153), f"{shot.length} frame{'s' * (shot.length > 1)}", font=font, fill="black")
        save_figure(sheet, folder / f"{film.path.name}_shots_{page}.png")
