import math
import re

import numpy as np
import pytest
from PIL import Image

from g2rpo_cli.comparison import RewardTable, compare, plot_comparison, topology_rewards
from g2rpo_trainer.errors import RunError


@pytest.fixture(scope="module")
def builtin():
    return compare(topology_rewards(groups=16), influence=False)


def colours_of(path):
    with Image.open(path) as picture:
        return {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}


def test_png_holds_bars_of_every_estimator_on_white(builtin, tmp_path):
    path = plot_comparison(builtin, tmp_path / "new" / "a.png")
    assert path == tmp_path / "new" / "a.png"
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]
    found = colours_of(path)
    white, black = (255, 255, 255), (0, 0, 0)
    rewards, grpo, ema, gaussian = (140,) * 3, (230, 159, 0), (86, 180, 233), (0, 158, 115)
    assert {white, black, rewards, grpo, ema, gaussian} <= found
    with Image.open(path) as picture:
        assert picture.width > 1000
        assert picture.height > 600


def test_svg_is_the_same_every_time_and_names_what_it_shows(builtin, tmp_path):
    first = plot_comparison(builtin, tmp_path / "a.svg").read_text()
    assert plot_comparison(builtin, tmp_path / "b.svg").read_text() == first
    texts = " ".join(re.findall(r"<!-- (.*?) -->", first))
    for text in (
        "rewards",
        "grpo",
        "ema-grpo",
        "gaussian",
        "binary (maths)",
        "var 1.00",
        "N(0, 1)",
    ):
        assert text in texts
    assert "beyond" in texts


def test_chosen_estimators(builtin, tmp_path):
    text = plot_comparison(builtin, tmp_path / "a.svg", ["rloo"]).read_text()
    assert "rloo" in text
    assert "ema-grpo" not in text
    with pytest.raises(RunError, match="unknown estimator 'x'"):
        plot_comparison(builtin, tmp_path / "b.svg", ["x"])
    with pytest.raises(RunError, match="has room for 5 estimators, but 6 are named"):
        plot_comparison(builtin, tmp_path / "b.svg", list(builtin.estimators)[:6])
    with pytest.raises(RunError, match=r"must end in \.png or \.svg"):
        plot_comparison(builtin, tmp_path / "b.pdf")
    assert not (tmp_path / "b.svg").exists()


def test_without_the_usual_estimators(tmp_path):
    result = compare(topology_rewards(groups=2), ["rloo", "dr-grpo"], influence=False)
    assert "dr-grpo" in plot_comparison(result, tmp_path / "a.svg").read_text()


# A layout that does not fit, and a division by zero, would be warnings of Matplotlib or NumPy.
@pytest.mark.filterwarnings("error")
def test_unusual_rewards(tmp_path):
    rng = np.random.default_rng(0)
    tasks = np.arange(420) // 28
    rewards = rng.random(420)
    rewards[tasks == 1] = 0.5
    rewards[tasks == 2] = math.nan
    rewards[tasks == 3] = 1e6 * rng.standard_cauchy(28)
    rewards[tasks == 4] = [math.inf, -math.inf] * 14
    rewards[tasks == 5][0] = math.inf
    names = ("a name of a task that goes on for much longer than its panel", *"bcdefghijklm$o")
    table = RewardTable(rewards, np.arange(420) // 7, tasks, names)
    result = compare(table, ["grpo", "gaussian", "grpo-batch"], influence=False)
    text = plot_comparison(result, tmp_path / "a.svg").read_text()
    for part in (
        "no signal",
        "no finite reward",
        "28 NaN",
        "12 tasks with the most rewards, of 15",
    ):
        assert part in text
    single = RewardTable(np.ones(1), np.zeros(1, int), np.zeros(1, int), ("$",))
    plot_comparison(compare(single, influence=False), tmp_path / "b.png")
