import numpy as np
import pytest
from PIL import Image

from g2rpo_trainer.config import Data
from g2rpo_trainer.data import open_source
from g2rpo_trainer.data.videos import Frames, open_video
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.record import BrokenRecord

from ..films import film, numbers_of
from .conftest import opened, records_of, sums


def rows_with(*videos, **columns):
    return [{**row, "videos": list(videos), **columns} for row in sums(3)]


@pytest.fixture
def saved(tmp_path):
    """Return a function that saves a video and returns its name."""

    def save(name="a.mp4", data=None):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(film() if data is None else data)
        return name

    return save


def test_paths_are_relative_to_the_file(write, saved):
    source = opened(write(rows_with(saved("films/a.mp4"), data_type="video")), video_frames=4)
    for record in records_of(source):
        (video,) = record.videos
        assert (video.width, video.height, video.duration) == (32, 24, 2.0)
        assert (record.as_row()["data_type"], record.images) == ("video", [])
        clip = video.read()
        assert clip.frames.shape == (4, 24, 32, 3)
        assert numbers_of(clip.frames) == [0, 4, 8, 12]
        assert clip.times == [0.0, 0.5, 1.0, 1.5]


def test_paths_are_relative_to_video_dir_then_image_dir(write, saved, tmp_path):
    saved("films/a.mp4")
    path, films = write(rows_with("a.mp4"), "rows/sums.jsonl"), str(tmp_path / "films")
    with pytest.raises(RunError, match=r"line 1: video 'a.mp4' does not exist in data.video_dir"):
        opened(path)
    assert len(opened(path, video_dir=films)) == len(opened(path, image_dir=films)) == 3
    assert len(opened(path, image_dir=str(tmp_path), video_dir=films)) == 3
    with pytest.raises(RunError, match=r"data.video_dir is '.*nowhere', which is not a folder"):
        opened(path, video_dir=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("../a.mp4", "lies outside data.video_dir"),
        ("link.mp4", "lies outside data.video_dir"),
        ("https://example.org/a.mp4", "is an address; save the file and name its path"),
        ("file:///a.mp4", "is an address"),
        ("none.mp4", "does not exist in data.video_dir"),
    ],
)
def test_no_path_leads_outside(path, text, saved, tmp_path):
    saved()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link.mp4").symlink_to(tmp_path / "a.mp4")
    for source in (path, Frames((path,), 1.0)):
        with pytest.raises(BrokenRecord, match=text):
            open_video(source, tmp_path / "root", 4)


# Files that FFmpeg would follow to other files and addresses.
PLAYLISTS = {
    "concat": "ffconcat version 1.0\nfile secret.mp4\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nsecret.mp4\n#EXT-X-ENDLIST\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_file_leads_to_no_other(name, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved("secret.mp4")
    for end in ("mp4", "m3u8", "sdp"):
        saved(f"a.{end}", PLAYLISTS[name].encode())
        with pytest.raises(BrokenRecord, match=rf"video 'a.{end}' cannot be read \(Invalid "):
            open_video(f"a.{end}", tmp_path, 4)


FORMS = [
    ("mp4", "mpeg4", 2),
    ("mp4", "libx264", 3),
    ("avi", "mpeg4", 0),
    ("matroska", "mpeg4", 0),
    ("webm", "libvpx", 0),
    ("mpegts", "mpeg2video", 2),
    ("mpeg", "mpeg2video", 2),
    ("gif", "gif", 0),
]


@pytest.mark.parametrize(("form", "codec", "b_frames"), FORMS)
@pytest.mark.parametrize("count", [3, 8, 40])
def test_frames_of_each_format(form, codec, b_frames, count):
    data = film(16, form=form, codec=codec, b_frames=b_frames, key_every=5)
    video = open_video(data, None, count)
    clip = video.read()
    # The time stamps of GIF are hundredths of seconds.
    assert clip.duration == video.duration == pytest.approx(2.0, abs=0.02)
    if codec == "gif":
        assert len(clip.frames) == min(count, 16)
    else:
        expected = {3: [0, 5, 10], 8: list(range(0, 16, 2)), 40: list(range(16))}
        assert numbers_of(clip.frames) == expected[count]
    assert clip.times == pytest.approx(
        [2.0 * k / min(count, 16) for k in range(min(count, 16))], abs=0.02
    )


def test_what_is_shown_counts_where_frames_are_uneven():
    # The last frame but one is shown for a long time.
    data = film(5, stamps=[0, 1, 2, 3, 19], form="matroska")
    clip = open_video(data, None, 8).read()
    assert clip.duration == pytest.approx((19 + 19 / 4) / 8, abs=0.01)
    assert len(clip.frames) == 5
    assert numbers_of(clip.frames) == [0, 3, 3, 3, 4]


def test_a_video_of_one_frame():
    clip = open_video(film(1), None, 8).read()
    assert (len(clip.frames), clip.times) == (1, [0.0])
    assert clip.duration == pytest.approx(1 / 8)


def test_pictures_are_turned_upright():
    data = film(2, size=(32, 16), left=100)
    place = data.index(b"tkhd") + 4 + 4 + 5 * 4 + 8 + 8
    assert data[place : place + 4] == bytes([0, 1, 0, 0])
    one, zero = bytes([0, 1, 0, 0]), bytes(4)
    # A quarter turn to the right: what was left is above.
    quarter = zero + one + zero + bytes([255, 255, 0, 0]) + zero * 4 + bytes([64, 0, 0, 0])
    video = open_video(data[:place] + quarter + data[place + 36 :], None, 2)
    assert (video.width, video.height) == (16, 32)
    frames = video.read().frames
    assert frames.shape == (2, 32, 16, 3)
    assert frames[0, :14].mean() > 90 > 20 > frames[0, 18:].mean()


def test_videos_of_each_kind(saved, tmp_path):
    saved()
    for number in range(6):
        Image.new("RGB", (4, 3), (10 * number,) * 3).save(tmp_path / f"{number}.png")
    frames = {"frames": [f"{number}.png" for number in range(6)], "fps": 4}
    kinds = ["a.mp4", {"bytes": film(), "path": "/etc/passwd"}, {"bytes": None, "path": "a.mp4"}]
    for kind in (*kinds, frames, {**frames, "bytes": None}):
        rows = rows_with(kind)
        (record, *_) = records_of(open_source(Data(video_dir=str(tmp_path)), rows=rows))
        clip = record.videos[0].read()
        if isinstance(kind, dict) and "frames" in kind:
            assert (numbers_of(clip.frames), clip.duration) == (list(range(6)), 1.5)
        else:
            assert numbers_of(clip.frames) == list(range(16))
    fewer = open_video(Frames(tuple(frames["frames"]), 4.0), tmp_path, 3)
    assert numbers_of(fewer.read().frames) == [0, 2, 4]
    assert fewer.read().times == [0.0, 0.5, 1.0]


def test_frames_of_different_sizes(tmp_path):
    for number, size in enumerate([(4, 3), (3, 4)]):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
    video = open_video(Frames(("0.png", "1.png"), 1.0), tmp_path, 4)
    with pytest.raises(BrokenRecord, match=r"video '0.png' cannot be read \(its frames differ in"):
        video.read()


@pytest.fixture
def damaged(write, saved):
    """Return a file of ten records, of which the fourth has a video that cannot be decoded."""
    rows = [{**row, "videos": saved(f"{n}.mp4", film(2))} for n, row in enumerate(sums(10))]
    saved("3.mp4", film()[:300])
    return write(rows)


def test_a_damaged_video_is_told_by_its_record(damaged):
    with pytest.raises(RunError) as caught:
        records_of(opened(damaged))
    text = str(caught.value)
    assert text.startswith(f"{damaged}, line 4: video '3.mp4' cannot be read (")
    assert text.endswith("); put it right, or set data.skip_broken: true")
    assert "\n" not in text


def test_a_damaged_video_is_passed_over_if_the_user_allows_it(damaged):
    source = opened(damaged, skip_broken=True)
    assert len({record.problem for record in records_of(source)}) == 9
    assert source.summary().skipped == 1
    assert source.summary().examples[0].startswith(f"{damaged}, line 4: video '3.mp4' cannot be")


def test_sound_is_no_video():
    import io

    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 80), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(BrokenRecord, match=r"a video cannot be read \(has no pictures, only sound"):
        open_video(buffer.getvalue(), None, 4)


def test_a_bomb_is_refused(monkeypatch):
    monkeypatch.setattr("g2rpo_trainer.data.videos._MOST_PIXELS", 700)
    with pytest.raises(BrokenRecord, match="has 32 × 24 pixels, which exceeds the limit"):
        open_video(film(1), None, 4)


@pytest.mark.parametrize("form", ["problem", "prompt"])
def test_videos_and_images_in_the_middle_of_a_question(form):
    text = [{"type": "text", "text": word} for word in ("Is", "in", "?")]
    parts = [text[0], {"type": "image"}, text[1], {"type": "video"}, text[2]]
    asked = {
        "problem": {"problem": "Is <image> in <video> ?"},
        "prompt": {"prompt": [{"role": "user", "content": parts}]},
    }[form]
    rows = [
        {"answer": n, "problem_type": "numerical", "images": image, "videos": {"bytes": film(2)}}
        | asked
        for n, image in enumerate([Image.new("RGB", (1, 1)), Image.new("RGB", (2, 1))])
    ]
    (record, _) = records_of(open_source(rows=rows))
    assert record.problem == "Is in ?"
    assert record.messages == [{"role": "user", "content": parts}]


@pytest.mark.parametrize("problem", ["<image><video> Same?", "<video>Same?", "Same?"])
def test_images_then_videos_before_the_question_need_no_messages(problem):
    rows = rows_with({"bytes": film(2)}, images=Image.new("RGB", (1, 1)), problem=problem)
    rows = [{**row, "options": [str(n)]} for n, row in enumerate(rows)]
    record = records_of(open_source(rows=rows))[0]
    assert record.problem == "Same?"
    assert record.messages is None


def test_the_video_decides_the_side(saved, tmp_path):
    """Equal questions about different videos are different records."""
    rows = [{**sums(1)[0], "videos": saved(f"{n}.mp4", film(2))} for n in range(12)]
    source = open_source(Data(video_dir=str(tmp_path), eval_fraction=0.5), rows=rows)
    found = {record.videos[0].source for record in records_of(source)}
    assert found == {f"{n}.mp4" for n in range(12)}
    rows = [{**row, "videos": {"bytes": film(1 + n)}} for n, row in enumerate(rows)]
    assert len(records_of(open_source(Data(eval_fraction=0.5), rows=rows))) == 12


def test_a_missing_library_is_named(write, saved, monkeypatch):
    path = write(rows_with(saved()))
    monkeypatch.setattr("g2rpo._extras.find_spec", lambda module: None)
    with pytest.raises(RunError) as caught:
        opened(path)
    assert str(caught.value) == ('a record with a video needs av; run: pip install "g2rpo[video]"')


def test_a_column_of_parquet(tmp_path, saved):
    import pyarrow as pa
    import pyarrow.parquet

    saved("films/a.mp4")
    rows = rows_with({"bytes": None, "path": "films/a.mp4"})
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "sums.parquet")
    (record, *_) = records_of(opened(tmp_path / "sums.parquet"))
    assert numbers_of(record.videos[0].read().frames) == list(range(16))


def test_the_command_shows_videos(write, saved, monkeypatch, g2rpo):
    monkeypatch.setenv("COLUMNS", "90")
    code, out, _ = g2rpo("data", "show", write(rows_with(saved())))
    assert code == 0
    assert "sums: [32 × 24, 2.0 s] What is" in out
