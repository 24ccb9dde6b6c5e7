"""The detected shots of a film before it is colored, with thumbnails of its frames."""

from array import array
from dataclasses import dataclass, field
from typing import Any

import torch

from editing.project_settings import ProjectSettings
from film.io.frame_index import FrameIndex


@dataclass
class ShotPreview:
    """The timestamps, the detected cuts and the thumbnails of a film."""

    pts: array  # int64, of all frames
    starts: list[int]  # first frame of each detected shot, beginning with 0
    thumbnails: list[bytes]  # JPEG of every ``stride``-th frame
    stride: int
    checksums: array = field(default_factory=lambda: array("L"))  # ``luma_checksum`` of each frame

    @property
    def index(self) -> FrameIndex:
        """What identifies the frames."""
        return FrameIndex(self.pts, self.checksums)

    def shots(self, settings: ProjectSettings) -> list[tuple[int, int]]:
        """Return (start, end) of each shot after applying the edited cuts; the end is exclusive."""
        frames = len(self.pts)
        starts = sorted({0, *self.starts, *settings.cut_at} - set(settings.join_at))
        starts = [start for start in starts if start < frames]
        return list(zip(starts, [*starts[1:], frames], strict=True))

    def thumbnail(self, frame: int) -> bytes:
        """Return the JPEG thumbnail of the frame nearest to ``frame``."""
        return self.thumbnails[min(len(self.thumbnails) - 1, round(frame / self.stride))]

    def state(self) -> dict[str, Any]:
        """Return the preview as tensors and plain values."""
        thumbnails = [torch.frombuffer(bytearray(jpeg), dtype=torch.uint8) for jpeg in self.thumbnails]
        return {"pts": torch.tensor(self.pts, dtype=torch.int64), "starts": self.starts, "thumbnails": thumbnails,
                "stride": self.stride, "checksums": torch.tensor(self.checksums, dtype=torch.int64)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "ShotPreview":
        """Create a preview from the result of ``state``."""
        thumbnails = [jpeg.numpy().tobytes() for jpeg in state["thumbnails"]]
        return cls(array("q", state["pts"].tolist()), state["starts"], thumbnails, state["stride"],
                   array("L", state["checksums"].tolist()))
