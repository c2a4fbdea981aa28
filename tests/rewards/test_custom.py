"""Custom reward functions, and the names of problem types."""

import json
import math

import pytest

from g2rpo.rewards import (
    ACCURACY,
    ALIASES,
    RewardError,
    box_iou,
    components,
    find_type,
    load_function,
    score_all,
    with_own,
)


def test_an_import_path_loads_its_function(own_rewards):
    assert load_function("own_rewards:behave") is own_rewards.behave
    assert load_function("g2rpo.rewards:box_iou") is box_iou
    assert load_function("builtins:str.lower")("A") == "a"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("box_iou", r"is 'box_iou'; it must be 'module:function'"),
        (":box_iou", r"it must be 'module:function'"),
        ("g2rpo.rewards:", r"it must be 'module:function'"),
        ("g2rpo.rewards:box_iuo", r"has no 'box_iuo'; did you mean 'box_iou'\?"),
        ("g2rpo.rewrads:box_iou", r"no module 'g2rpo.rewrads'; did you mean 'rewards'\?"),
        ("own_reward:behave", r"no module 'own_reward'; did you mean 'own_rewards'\?"),
        ("g2rpo.rewards.boxes.iou:f", r"no module 'g2rpo.rewards.boxes.iou'"),
        ("own_rewards:NOT_A_FUNCTION", r"is of type int; it must be a function"),
        ("broken_rewards:f", r"importing broken_rewards raised ZeroDivisionError"),
        (
            "needy_rewards:f",
            r"importing needy_rewards raised ModuleNotFoundError: .*absent_colours",
        ),
    ],
)
def test_an_error_names_the_part_of_a_path_that_does_not_exist(
    own_rewards, tmp_path, monkeypatch, path, message
):
    (tmp_path / "broken_rewards.py").write_text("1 / 0")
    (tmp_path / "needy_rewards.py").write_text("import absent_colours")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=message):
        load_function(path)


def test_only_a_path_that_the_user_names_is_imported():
    record = {"problem_type": "own_rewards:behave", "answer": ""}
    with pytest.raises(ValueError, match="problem_type is 'own_rewards:behave'; it must be one of"):
        components(record, "<answer>a</answer>")


def test_custom_functions_are_added_or_replace_built_in_ones():
    def exact(answer, truth):
        return answer == truth

    functions = with_own({"colour": exact, "maths": "g2rpo.rewards:number_match"})
    assert functions.keys() == ACCURACY.keys() | {"colour"}
    assert functions["maths"] is ACCURACY["numerical"]
    record = {"problem_type": "Colour", "answer": "red"}
    assert components(record, "<think></think><answer>red</answer>", functions) == (1, 1, 1)
    assert components(record, "<answer>blue</answer>", functions) == (0, 0, 0)
    with pytest.raises(TypeError, match="'colour' is of type int; it must be a function or its"):
        with_own({"colour": 3})


@pytest.mark.parametrize("name", ["ocr", " Ocr", "OCR"])
def test_a_built_in_type_is_replaced_however_it_is_written(name):
    functions = with_own({name: lambda answer, truth: 0.5})
    assert functions.keys() == ACCURACY.keys()
    for written in ("OCR", "ocr", "Ocr "):
        record = {"problem_type": written, "answer": "a"}
        assert components(record, "<answer>a</answer>", functions).accuracy == 0.5


def raises_in_a_library(answer, truth):
    return json.loads(answer)


def error_of(function):
    """Return the message of the error that ends the scoring of one answer."""
    record = {"problem_type": "own", "answer": ""}
    with pytest.raises(RewardError) as raised:
        score_all([record], ["<answer>{</answer>"], workers=0, functions={"own": function})
    return str(raised.value)


def test_an_error_is_placed_in_the_file_of_its_function():
    line = raises_in_a_library.__code__.co_firstlineno + 1
    assert error_of(raises_in_a_library).endswith(f"(test_custom.py, line {line})")
    # A built-in function of Python has no lines: the last one is that of its call.
    assert "(score.py, line " in error_of(str.lower)


def test_a_function_that_replaces_a_built_in_one_has_its_own_answers():
    functions = with_own({"tracking": lambda answer, truth: 1.0})
    record = {"problem_type": "tracking", "answer": object()}
    assert components(record, "<think></think><answer>left</answer>", functions) == (1, 1, 1)


def test_a_function_is_not_called_without_an_answer():
    functions = with_own({"own": lambda answer, truth: 1 / 0})
    assert components({"problem_type": "own", "answer": ""}, "none", functions) == (0, 0, 0)


def test_problem_types_are_found_without_case_and_an_unknown_one_is_refused():
    assert [find_type(alias, ACCURACY) for alias in ALIASES] == list(ALIASES.values())
    assert find_type(" Multiple  Choice", ACCURACY) == "multiple choice"
    # A custom name takes precedence over an alias.
    assert find_type("math", {"math": 1, "maths": 2}) == "math"
    with pytest.raises(ValueError, match="problem_type is None; it must be one of"):
        find_type(None, ACCURACY)


def test_a_function_without_a_name_is_named_by_its_type():
    class Scorer:
        def __call__(self, answer, truth):
            return math.nan

    assert "Scorer returned nan" in error_of(Scorer())
    assert "reward function math:prod raised TypeError" in error_of(math.prod)
