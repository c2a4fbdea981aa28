import math

import numpy as np
from PIL import Image

from g2rpo_trainer.run.equity_plot import draw_equity


def pixels(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def record(step, **norms) -> dict:
    return {"step": step, "equity/ratio": 2.0} | {
        f"equity/grad_norm/{task}": norm for task, norm in norms.items()
    }


def test_every_task_has_its_line(tmp_path):
    records = [{"step": 1}, *(record(step, ocr=0.1, maths=step / 10) for step in (10, 20, 30))]
    both = pixels(draw_equity(tmp_path / "both.png", records, ["ocr", "maths"]))
    one = pixels(draw_equity(tmp_path / "one.png", records, ["ocr"]))
    orange = abs(both.astype(int) - (255, 127, 14)).sum(-1) < 30
    assert orange.sum() > 100  # the second colour
    assert (abs(one.astype(int) - (255, 127, 14)).sum(-1) < 30).sum() == 0


def test_what_has_no_logarithm_is_left_out(tmp_path):
    records = [
        record(10, ocr=0.0, maths=1.0) | {"equity/ratio": math.inf},
        record(20, ocr=math.nan),
    ]
    assert draw_equity(tmp_path / "a.png", records, ["ocr", "maths"]) is not None


def test_without_a_measurement_there_is_no_picture(tmp_path):
    assert draw_equity(tmp_path / "a.png", [{"step": 1, "reward": 0.5}], ["ocr"]) is None
    assert not (tmp_path / "a.png").exists()
