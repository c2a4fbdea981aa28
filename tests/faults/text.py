"""Any text and any file where a response, a record, an image, settings or a run are read."""

from __future__ import annotations

import io
import json
import random
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.rewards.test_any_text import LATEX, LONG, SOUP, VALUES, assert_in_range

from .count import Count
from .numbers import drawn

SECONDS = 5.0  # for a response alone, or in tags


def responses(share: float) -> Iterator[Count]:
    """Score 1,000,000 characters of texts, and the texts of a megabyte that have been slow."""
    from g2rpo.rewards import ACCURACY

    count = Count("any response has rewards from 0 to 1, within its time")
    characters = Count("… characters in all")
    types = list(ACCURACY)
    jsons = VALUES.map(lambda value: json.dumps(value).replace('"HUGE"', "9" * 5000))
    texts = SOUP | jsons | st.lists(LATEX, max_size=9).map("".join)

    def use(text: str) -> None:
        problem_type = types[count.tried % len(types)]
        characters.tried += len(text)
        score(count, problem_type, text)

    while characters.tried < 1_000_000 * share:
        drawn(int(20_000 * share), texts, use)
    for turn, (_, text) in enumerate(LONG.items()):
        for problem_type in types[turn % 4 :: 4]:
            if problem_type != "maths":
                score(count, problem_type, text)
    yield count
    yield characters


def score(count: Count, problem_type: str, text: str) -> None:
    """Score one response, and count it broken if that raises, leaves [0, 1], or is slow."""
    started = time.process_time()  # what else the machine does must not count
    with count.trying((problem_type, text[:80])):
        assert_in_range(problem_type, text)
        assert time.process_time() - started < 2 * SECONDS


def records(share: float) -> Iterator[Count]:
    """Open files of records of which a part is something else."""
    from g2rpo_trainer.config import load_config
    from g2rpo_trainer.data import open_source

    count = Count("a broken file of records is refused with its place, or read")
    draw = random.Random(0)
    good = {"problem": "1 + 1?", "answer": "2", "problem_type": "numerical", "task_type": "sums"}
    odd = [None, 0, 1e999, "", "\x00", [], {}, "../../etc/passwd", "a" * 9999, True, [[1]], -1]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "rows.jsonl"
        for turn in range(max(2, int(2_000 * share))):
            lines = []
            for number in range(6):
                row: dict[str, Any] = {**good, "problem": f"{number} + 1?"}
                if draw.random() < 0.3:
                    row[draw.choice([*good, "images", "options", "data_type"])] = draw.choice(odd)
                if draw.random() < 0.1:
                    del row[draw.choice(list(good))]
                lines.append(json.dumps(row).encode())
            data = b"\n".join(lines) + b"\n"
            if turn % 3 == 0:
                data = scrambled(data, draw)
            path.write_bytes(data)
            with count.trying((turn, data[:300])), may_refuse("rows.jsonl"):
                open_source(load_config(overrides={"data.source": str(path)}).data)
    yield count


def images(share: float) -> Iterator[Count]:
    """Decode images of all formats, damaged; bombs of decompression among them."""
    from PIL import Image

    from g2rpo_trainer.data.images import open_image
    from g2rpo_trainer.record import BrokenRecord

    count = Count("a damaged image is refused as a broken record, or decoded")
    draw = random.Random(0)
    whole = []
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        buffer = io.BytesIO()
        Image.effect_noise((24, 16), 64).convert("RGB").save(buffer, form)
        whole.append(buffer.getvalue())
    frames = [Image.new("P", (8, 8), colour) for colour in range(3)]
    animated = io.BytesIO()
    frames[0].save(animated, "GIF", save_all=True, append_images=frames[1:])
    bomb = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(bomb, "PNG")
    special = [b"", animated.getvalue(), bomb.getvalue()]
    warnings.simplefilter("ignore")  # of Pillow's plug-ins, about what is damaged
    for turn in range(max(9, int(5_000 * share))):
        data = special[turn] if turn < len(special) else scrambled(draw.choice(whole), draw)
        with count.trying((turn, data[:40])), suppress(BrokenRecord):
            assert open_image(data, None).mode == "RGB"
    yield count


def settings(share: float) -> Iterator[Count]:
    """Read configurations that are nearly right, and some that are not YAML."""
    from g2rpo_trainer.config import TrainConfig, dump_config, load_config

    count = Count("a broken configuration is refused with a sentence, or read")
    draw = random.Random(0)
    whole = dump_config(TrainConfig()).encode()
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "run.yaml"
        for turn in range(max(2, int(1_000 * share))):
            path.write_bytes(scrambled(whole, draw))
            with count.trying((turn, "seed", draw)), may_refuse("run.yaml"):
                load_config(path)
    yield count


def run_folders(share: float) -> Iterator[Count]:
    """Open run folders of which a file is damaged."""
    from g2rpo_trainer.config import load_config
    from g2rpo_trainer.run_folder import RunFolder

    count = Count("a damaged run folder is refused with a sentence, or read up to the damage")
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder.create(Path(place) / "run", load_config())
        for step in (1, 2, 3):
            row = {"task": "ocr", "prompt": "?", "response": "é"}
            folder.log(step, {"reward": step / 4}, [row])
        folder.write_summary({"before": {"ocr": 0.5}})
        whole = {path: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}
        for turn in range(max(2, int(1_000 * share))):
            path = draw.choice(list(whole))
            path.write_bytes(scrambled(whole[path], draw))
            with count.trying((turn, path.name)), may_refuse(path.name):
                run = RunFolder.open(folder.path)
                # What is repeated may be a whole line.
                assert len(run.read_metrics()) <= 3 + 4
                run.read_completions()
                run.read_summary()
            path.write_bytes(whole[path])
    yield count


@contextmanager
def may_refuse(name: str) -> Iterator[None]:
    """Accept a refusal that says which file it is about."""
    from g2rpo_trainer.errors import RunError

    try:
        yield
    except RunError as error:
        if name not in str(error):
            raise


def scrambled(data: bytes, draw: random.Random) -> bytes:
    """Return bytes with a few of them changed, left out, or repeated, or cut off."""
    found = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(found) + 1)
        how = draw.randrange(4)
        if how == 0 and place < len(found):
            found[place] = draw.randrange(256)
        elif how == 1:
            del found[place : place + draw.randint(1, 30)]
        elif how == 2:
            found[place:place] = found[place : place + draw.randint(1, 30)]
        else:
            found = found[: max(place, len(found) // 2)]
    return bytes(found)
