"""How the default of ``--color_thres`` was chosen: color distances within shots and between shots of a film.

    python benchmarks/color_distance.py DATASET [DATASET ...]

Each DATASET is a folder that dataset_generator.py wrote (with its frames.csv). Prints percentiles of
D = KL(V || v) over all ordered pairs of frames of the same shot and of different shots of one film.
"""

import csv
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dataset import ColorizationDataset
from networks import color_distance


def main(folders):
    for folder in map(Path, folders):
        with open(folder / "frames.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        features = ColorizationDataset([folder / row["file"] for row in rows], 128).color_features
        distance = color_distance(features[:, None], features[None]).numpy()
        shot = np.array([f"{row['video']}/{row['shot']}" for row in rows])
        same = shot[:, None] == shot[None]
        off_diagonal = ~np.eye(len(rows), dtype=bool)
        print(f"{folder}: {len(rows)} frames of {len(set(shot))} shots; D in nats at percentiles 5, 25, 50, 75, 95")
        for name, chosen in (("same shot", same & off_diagonal), ("different shots", ~same)):
            print(f"  {name:16s}" + "".join(f"{p:8.3f}" for p in np.percentile(distance[chosen], [5, 25, 50, 75, 95])))


if __name__ == "__main__":
    main(sys.argv[1:])
