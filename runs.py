"""What a run of train.py leaves behind: its files, sample grids and curves."""

import json
import math
from pathlib import Path

import torch
from matplotlib.figure import Figure

from dataset import AB_SCALE, L_SCALE, lab_to_rgb
from utils import UserError, picture_grid, replace_when_done


class Run:
    """The files of a run under ``save_path``: checkpoints, log.jsonl, curves.png, samples/ and tensorboard/."""

    OWN = ("epoch_*.pt", "last.pt", "best.pt", "log.jsonl", "curves.png", "samples/epoch_*.png",
           "tensorboard/events.out.tfevents.*")

    def __init__(self, config):
        self.path = Path(config.save_path)
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"save_path {self.path} is a file; name a folder")
        self.log = self.path / "log.jsonl"
        going_on = config.resume or config.start_epoch
        if not going_on and not config.overwrite and any(path.suffix == ".pt" for path in self._files()):
            raise UserError(f"{self.path} holds another run; pass --resume True to go on, --overwrite True to start "
                            "again, or another --save_path")

    def _files(self):
        return [path for pattern in self.OWN for path in self.path.glob(pattern)]

    def begin(self, epoch):
        """Make room for the epochs after ``epoch``: remove the files of an earlier run if 0, else what it logged."""
        try:
            (self.path / "samples").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}") from error
        if epoch == 0:
            for path in self._files():
                path.unlink()
        elif self.log.exists():
            lines = [line for line in self.log.read_text().splitlines() if json.loads(line)["epoch"] <= epoch]
            with replace_when_done(self.log) as temporary:
                temporary.write_text("".join(line + "\n" for line in lines))

    def add(self, record):
        """Append one record as a line of JSON."""
        with open(self.log, "a") as file:
            file.write(json.dumps(record) + "\n")

    def draw_curves(self):
        """Draw every logged number over the epochs into curves.png, losses above, validation below."""
        records = [json.loads(line) for line in self.log.read_text().splitlines()]
        skip = ("epoch", "step", "seconds", "images_per_second")
        names = dict.fromkeys(name for record in records for name in record if name not in skip)
        names = sorted(names, key=lambda name: name.startswith("val_"))
        figure = Figure(figsize=(3.2 * math.ceil(len(names) / 2), 5), layout="constrained")
        for axes, name in zip(figure.subplots(2, math.ceil(len(names) / 2)).flat, names, strict=False):
            axes.plot([r["epoch"] for r in records], [r.get(name, math.nan) for r in records], marker=".")
            axes.set_title(name)
            axes.set_xlabel("epoch")
            axes.grid(alpha=0.3)
        with replace_when_done(self.path / "curves.png") as temporary:
            figure.savefig(temporary, dpi=100)


# ---------------------------------------------------------------------------------------------------------------------
# Sample grids


def to_lab(L, ab):
    """L (N, 1, S, S) and ab (N, 2, S, S) as the networks see them -> Lab float32 array (N, S, S, 3)."""
    return torch.cat([L * L_SCALE, ab * AB_SCALE], 1).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def sample_grid(samples, val, train):
    """Rows of grey | result | truth | top-3 frames of the memory, RGB uint8."""
    place = {image_id: index for index, image_id in enumerate(train.ids)}
    rows = []
    for index, lab, top in samples:
        grey = lab.copy()
        grey[..., 1:] = 0
        pictures = [grey, lab, item_lab(val[index])]
        pictures += [item_lab(train[place[i]]) if i in place else grey * 0 for i in top]
        rows.append([lab_to_rgb(picture) for picture in pictures])
    return picture_grid(rows)


def item_lab(item):
    """An item of the dataset -> Lab float32 (S, S, 3)."""
    return to_lab(item["L"][None], item["ab"][None])[0]
