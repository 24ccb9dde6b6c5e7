"""Films of any container: what FFmpeg finds in a file is read, and nothing that a file names."""

import av
import pytest
from drawn import draw_film

from film import video
from film.video import VideoFile, open_video
from utils import UserError


def frames_of(path):
    return sum(1 for _ in VideoFile(path).read())


def test_an_flv_is_read(tmp_path):
    """PyAV could crash where streams turn up only once packets are read."""
    assert frames_of(draw_film(tmp_path / "in.flv", times=range(6), codec="flv", sound=None)) == 6


PLAYLISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{film}\n#EXT-X-ENDLIST\n",
    "list.ts": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/whole.ts\n#EXT-X-ENDLIST\n",
    "list.mp4": "ffconcat version 1.0\nfile {film}\n",
    "list.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
                'mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" '
                'bandwidth="9"><BaseURL>{film}</BaseURL></Representation></AdaptationSet></Period></MPD>',
    "list.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5000 RTP/AVP 96\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_what_a_file_names_is_not_opened(tmp_path, name):
    film = draw_film(tmp_path / "whole.ts", times=range(6))
    path = tmp_path / name
    path.write_text(PLAYLISTS[name].format(film=film.name))
    with pytest.raises(UserError, match=name) as refused, open_video(path):
        pass
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["list.m3u8", "list.mp4"])
def test_ffmpeg_itself_opens_nothing_beside_the_film(tmp_path, monkeypatch, name):
    monkeypatch.setattr(video, "LISTS", b"nothing begins like this")
    test_what_a_file_names_is_not_opened(tmp_path, name)
    with av.open(str(tmp_path / name)) as followed:
        assert followed.streams.video
