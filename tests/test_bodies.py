"""The measure of what a viewer looks at: the characters of a drawn episode."""

import av
import numpy as np
import pytest

from benchmarks import bodies
from benchmarks.bodies import RESOURCES, main, measure
from resources.draw_episodes import PALETTE, draw_frame
from utils import UserError


def test_the_truth_is_no_distance_from_itself(capsys):
    path = RESOURCES / "episode_2.mp4"
    found = measure(path, 2, 200)
    assert len(found["whole"]) == 4 * 360 * 640 and found["whole"].max() == 0
    assert len(found["bodies"]) == sum(len(found[name]) for name in PALETTE)
    assert len(found["ruby"]) == sum(draw_frame(2, index, mask_of="ruby").sum() for index in range(0, 642, 200))
    main([str(path), "--every", "400"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("| further away than 10 | 0.0% | 0.0% | 0.0% | nan%")


def test_a_wrong_character_counts_as_such(monkeypatch):
    """A film that is right but for ruby, who is gray."""
    frame = draw_frame(2, 0)
    wrong = frame.copy()
    wrong[draw_frame(2, 0, mask_of="ruby")] = 128
    monkeypatch.setattr(bodies, "pictures", lambda path, every: iter([(0, wrong if path == "ours" else frame)]))
    found = measure("ours", 2, 1)
    assert (found["ruby"] > 10).all() and np.array_equal(found["ruby"], found["bodies"])
    assert 0 < (found["whole"] > 10).mean() < 0.5 and not len(found["tilo"])


@pytest.mark.parametrize("kind", ["other", "broken", "missing"])
def test_what_is_no_colored_episode_is_refused(tmp_path, kind):
    path = tmp_path / "film.mp4"
    if kind == "broken":
        path.write_bytes(b"no film")
    elif kind == "other":
        with av.open(str(path), "w") as film:
            stream = film.add_stream("libx264", rate=24)
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
            film.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
            film.mux(stream.encode(None))
    with pytest.raises(UserError, match="is not episode 2|is not a film"):
        main([str(path)])
    with pytest.raises(UserError, match="--every is 0"):
        main([str(path), "--every", "0"])
