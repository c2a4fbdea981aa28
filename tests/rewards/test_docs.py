"""The page on rewards: its tables are complete."""

import re
from pathlib import Path

import pytest

import g2rpo.rewards
from g2rpo.rewards import ACCURACY, components

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "rewards.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## Boxes and spans\n")[2].partition("\n## ")[0]
FORMS = re.findall(r"^\| (.+) \| `([^`]+)` \|$", SECTION, flags=re.MULTILINE)
ROWS = dict(re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|", PAGE, flags=re.MULTILINE))


def test_the_table_has_every_problem_type_with_a_right_answer():
    assert set(ROWS) == set(ACCURACY)
    for problem_type, answer in ROWS.items():
        record = {"problem_type": problem_type, "answer": answer}
        response = f"<think></think><answer>{answer}</answer>"
        assert components(record, response) == pytest.approx((1, 1, 1)), problem_type


@pytest.mark.parametrize(("form", "answer"), FORMS)
def test_every_form_in_the_table_is_read_and_has_the_structure(form, answer):
    problem_type, truth = "spatial grounding", [10, 20, 90, 80]
    if form.startswith("spans"):
        problem_type, truth = "temporal grounding", [4.5, 9]
    record = {"problem_type": problem_type, "answer": truth}
    assert components(record, f"<think></think><answer>{answer}</answer>") == (1, 1, 1)


def test_the_table_of_forms_is_found():
    assert len(FORMS) == 9


def test_the_reference_lists_every_public_name():
    page = (DOCS / "reference" / "rewards.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"\w+", page))
    constants = {"ACCURACY_WEIGHT", "FORMAT_WEIGHT", "STRUCTURE_WEIGHT", "RewardFunction"}
    assert set(g2rpo.rewards.__all__) - listed == constants
