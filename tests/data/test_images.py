import io
import json
import os

import pytest
from PIL import Image

from g2rpo_trainer.config import Data
from g2rpo_trainer.data import open_source
from g2rpo_trainer.data.images import fingerprint, locate, open_image
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.record import BrokenRecord

from .conftest import opened, records_of, sums


def encoded(colour="red", mode="RGB", form="PNG", **options):
    buffer = io.BytesIO()
    Image.new(mode, (4, 3), colour).save(buffer, form, **options)
    return buffer.getvalue()


def rows_with(*images):
    return [{**row, "images": list(images)} for row in sums(3)]


def test_paths_are_relative_to_the_file(write, picture):
    source = opened(write(rows_with(picture("pics/red.png")), "sub/../sums.jsonl"))
    for record in records_of(source):
        assert record.images[0].getpixel((0, 0)) == (255, 0, 0)
        assert record.as_row()["data_type"] == "image"


def test_paths_are_relative_to_image_dir(write, picture, tmp_path):
    picture("pics/red.png")
    path = write(rows_with("red.png"), "rows/sums.jsonl")
    with pytest.raises(RunError, match=r"line 1: image 'red.png' does not exist in data.image_dir"):
        opened(path)
    assert len(opened(path, image_dir=str(tmp_path / "pics"))) == 3
    with pytest.raises(RunError, match=r"data.image_dir is '.*nowhere', which is not a folder"):
        opened(path, image_dir=str(tmp_path / "nowhere"))


def test_images_of_each_kind():
    red = encoded()
    for image in (Image.new("RGB", (4, 3), "red"), red, {"bytes": red, "path": "/etc/passwd"}):
        for record in records_of(open_source(rows=rows_with(image))):
            assert record.images[0].getpixel((0, 0)) == (255, 0, 0)
            assert record.images[0].mode == "RGB"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_file_formats(form, mode):
    # JPEG has no palettes.
    data = encoded("gray", "L" if (form, mode) == ("JPEG", "P") else mode, form)
    assert open_image(data, None).mode == "RGB"


def test_transparent_is_white_and_exif_turns():
    assert open_image(encoded((0, 0, 0, 0), "RGBA"), None).getpixel((0, 0)) == (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_image(encoded(form="JPEG", exif=exif), None).size == (3, 4)


ESCAPES = ["../secret.png", "a/../../secret.png", "link.png", "folder/secret.png", "{outside}"]


@pytest.fixture
def fenced(tmp_path):
    """Return a folder with links out of it, and a picture outside."""
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    outside = tmp_path / "secret.png"
    outside.write_bytes(encoded())
    (root / "link.png").symlink_to(outside)
    (root / "folder").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")
    (root / "inside.png").write_bytes(encoded())
    (root / "a" / "good.png").symlink_to(root / "inside.png")
    return root


@pytest.mark.parametrize("path", ESCAPES)
def test_no_path_leads_outside(fenced, path):
    path = path.format(outside=fenced.parent / "secret.png")
    with pytest.raises(BrokenRecord, match=r"lies outside data.image_dir"):
        locate(path, fenced)


def test_an_image_column_of_datasets_leads_nowhere_else(write):
    path = write(rows_with({"bytes": None, "path": "/etc/passwd"}))
    with pytest.raises(RunError, match="line 1: image '/etc/passwd' lies outside"):
        opened(path)


def test_a_sibling_with_the_same_beginning_is_outside(fenced):
    (fenced.parent / "root2").mkdir()
    (fenced.parent / "root2" / "x.png").write_bytes(encoded())
    with pytest.raises(BrokenRecord, match="lies outside"):
        locate("../root2/x.png", fenced)


@pytest.mark.parametrize("path", ["inside.png", "a/../inside.png", "a/good.png", "{inside}"])
def test_paths_inside(fenced, path):
    found = locate(path.format(inside=fenced / "inside.png"), fenced)
    assert found == (fenced / "inside.png").resolve()


def test_a_folder_that_is_a_link_is_fine(fenced, tmp_path):
    (tmp_path / "alias").symlink_to(fenced)
    assert locate("inside.png", tmp_path / "alias").is_file()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("none.png", "does not exist in data.image_dir"),
        ("a", "is not a file in data.image_dir"),
        ("pipe", "is not a file in data.image_dir"),
        ("loop", "cannot be found|does not exist"),
        ("x" * 5000, "cannot be found \\(File name too long\\)|does not exist"),
        ("a\0.png", "is no path \\(.*embedded null|cannot be found|does not exist"),
        ("https://example.org/a.png", "is an address; save the file and name its path"),
        ("file:///etc/passwd", "is an address"),
    ],
)
def test_paths_that_lead_nowhere(fenced, path, text):
    os.mkfifo(fenced / "pipe")
    with pytest.raises(BrokenRecord, match=text):
        locate(path, fenced)


@pytest.fixture
def damaged(write, picture, tmp_path):
    """Return a file of ten records, of which the fourth has an image that cannot be decoded."""
    rows = [{**row, "images": picture(f"{n}.png")} for n, row in enumerate(sums(10))]
    (tmp_path / "3.png").write_bytes(encoded()[:40])
    return write(rows)


def test_a_damaged_image_is_found_when_it_is_used(damaged):
    source = opened(damaged)
    with pytest.raises(RunError) as caught:
        records_of(source)
    text = str(caught.value)
    assert text.startswith(f"{damaged}, line 4: image '3.png' cannot be read (")
    assert text.endswith("); put it right, or set data.skip_broken: true")
    assert "\n" not in text


def test_a_damaged_image_is_passed_over_if_the_user_allows_it(damaged):
    source, again = opened(damaged, skip_broken=True), opened(damaged, skip_broken=True)
    assert source.summary().skipped == 0
    found = {record.problem for record in records_of(source)}
    assert found == {row["problem"] for row in sums(10) if row["problem"] != "What is 3 + 1?"}
    assert source.summary().skipped == 1
    assert source.summary().examples[0].startswith(f"{damaged}, line 4: image '3.png' cannot be")
    # What takes its place follows from seed and position too, whatever was asked before.
    for step in range(6):
        records = [
            s.training_records(seed=1, position=4 * step, prompts=4) for s in (again, source)
        ]
        assert [r.place for r in records[0]] == [r.place for r in records[1]]


def test_what_was_passed_over_is_counted_on_where_a_run_left_off(damaged, tmp_path):
    with damaged.open("a") as file:
        file.write("no json\n")
    source = opened(damaged, skip_broken=True)
    assert source.skipped_state() == {"numbers": [], "examples": []}
    records_of(source)
    state = json.loads(json.dumps(source.skipped_state()))
    assert state["numbers"] == [3]
    again = opened(damaged, skip_broken=True)
    assert again.skipped == 1  # what is no JSON is found at once
    again.restore_skipped(state)
    assert again.summary() == source.summary()
    records_of(again)
    assert (again.skipped, again.skipped_state()) == (2, state)
    again.restore_skipped(None)
    assert (again.skipped, len(again.summary().examples)) == (1, 1)


def test_if_no_image_can_be_decoded_there_is_an_end():
    source = open_source(Data(skip_broken=True), rows=rows_with(b"no image"))
    with pytest.raises(RunError, match=r"none of its . training records can be used") as caught:
        source.training_records(seed=0, position=0, prompts=1)
    _, reason, advice = str(caught.value).splitlines()
    assert "an image cannot be read" in reason
    assert advice == "put them right, or leave the task out: name the others in data.tasks"
    assert source.held_out_records("sums", 5) == []
    assert "an image cannot be read (cannot identify image file)" in source.summary().examples[0]


def test_an_image_that_goes_away_or_is_swapped_for_a_link(write, picture, tmp_path):
    name = picture("pics/red.png")
    source = opened(write(rows_with(name)))
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/etc/passwd")
    with pytest.raises(RunError, match="lies outside"):
        source.training_records(seed=0, position=0, prompts=1)


def test_a_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with pytest.raises(BrokenRecord, match="exceeds limit"):
        open_image(encoded(), None)


def test_fingerprints_tell_contents_apart():
    images = [
        "a",
        "b",
        encoded("red"),
        encoded("blue"),
        Image.new("RGB", (2, 3)),
        Image.new("RGB", (3, 2)),
    ]
    assert len({fingerprint(image) for image in images}) == len(images)
