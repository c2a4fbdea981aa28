"""The reward function as verl loads and calls it."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_module
from verl.trainer.ppo.reward import get_custom_reward_fn

from g2rpo_verl.rewards import compute_score

ANSWER = "<think>6 * 7</think><answer>42</answer>"


def loaded(*settings: str):
    with initialize_config_module("verl.trainer.config", version_base=None):
        path = "reward.custom_reward_function.path=pkg://g2rpo_verl.rewards"
        return get_custom_reward_fn(compose("ppo_trainer", [path, *settings]))


def call(function, text: str = ANSWER, truth: str = "42", **extra: object):
    return function(
        data_source="sums", solution_str=text, ground_truth=truth, extra_info={"index": 0, **extra}
    )


def test_verl_loads_it_by_its_path_and_gets_the_components():
    scored = call(loaded(), problem_type="numerical")
    assert scored == {"score": 1.5, "accuracy": 1.0, "format": 1.0, "structure": 0.5 * 2}


def test_keyword_options_come_from_verls_configuration():
    where = "+reward.custom_reward_function.reward_kwargs"
    function = loaded(
        f"{where}.problem_type=numerical",
        f"{where}.weights={{accuracy: 1.0, format: 0.0, structure: 0.0}}",
    )
    assert call(function)["score"] == 1.0
    assert call(function, truth="43")["score"] == 0.0


def test_formulas_are_compared_with_the_antlr_that_verl_has():
    half = "<think>1 / 2</think><answer>\\frac{1}{2}</answer>"
    assert compute_score("sums", half, "0.5", {"problem_type": "maths"})["accuracy"] == 1.0
    assert compute_score("sums", half, "0.4", {"problem_type": "maths"})["accuracy"] == 0.0


def test_scoring_has_a_time_limit():
    slow = {"problem_type": "maths"}
    scored = compute_score("sums", "<answer>" + "9^" * 40 + "9</answer>", "42", slow, seconds=0.5)
    assert scored["accuracy"] == 0.0


def test_functions_of_ones_own_are_found_by_their_import_path(tmp_path, monkeypatch):
    (tmp_path / "own_colours.py").write_text("def near(answer, truth):\n    return 0.25\n")
    monkeypatch.syspath_prepend(tmp_path)
    own = {"functions": {"colour": "own_colours:near"}, "workers": 0}
    assert compute_score("a", ANSWER, "red", {"problem_type": "colour"}, **own)["accuracy"] == 0.25
    assert compute_score("a", ANSWER, "42", {"problem_type": "maths"}, **own)["accuracy"] == 1.0
    own["functions"] = {"colour": "own_colours:far"}
    with pytest.raises(ValueError, match="own_colours"):
        compute_score("a", ANSWER, "red", {"problem_type": "colour"}, **own)


def test_a_record_without_a_problem_type_is_refused():
    with pytest.raises(ValueError, match="no problem_type in extra_info; add it there, or set"):
        compute_score("sums", ANSWER, "42", {})


def test_an_answer_that_does_not_fit_its_type_names_its_task():
    with pytest.raises(ValueError, match="a record of 'sums'"):
        compute_score("sums", ANSWER, "many", {"problem_type": "numerical"}, workers=0)
