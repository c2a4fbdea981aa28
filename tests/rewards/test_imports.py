"""Libraries that importing the rewards loads, and errors for missing ones."""

import subprocess
import sys

import pytest

from g2rpo.rewards import (
    ACCURACY,
    EXAMPLES,
    MissingLibraryError,
    check_record,
    components,
    score_all,
)

HEAVY = [
    "scipy",
    "rapidfuzz",
    "sympy",
    "math_verify",
    "torch",
    "pydantic",
    "multiprocessing.spawn",
]
NEEDS = {
    "maths": "math_verify",
    "OCR": "rapidfuzz",
    "character OCR": "rapidfuzz",
    "open-ended": "rapidfuzz",
    "segmentation": "scipy",
}


def loaded_by(code):
    code += f"\nimport sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_importing_loads_no_library():
    assert loaded_by("import g2rpo.rewards") == set()


def test_the_check_finds_a_library_that_is_loaded():
    assert "rapidfuzz" in loaded_by("import g2rpo.rewards as r; r.character_accuracy('a', 'a')")


def test_the_built_in_arithmetic_needs_no_symbolic_maths():
    code = "from g2rpo.rewards import maths_match as m; assert m('7', '7') > m('six', '7')"
    assert "sympy" not in loaded_by(code)


@pytest.fixture
def without_libraries(monkeypatch):
    for name in ("math_verify", "rapidfuzz", "rapidfuzz.distance", "scipy", "scipy.optimize"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("problem_type", list(ACCURACY))
@pytest.mark.usefixtures("without_libraries")
def test_a_missing_library_names_the_extra(problem_type):
    record = {"problem_type": problem_type, "answer": EXAMPLES[problem_type]}
    response = f"<think></think><answer>{record['answer']} </answer>"
    if problem_type not in NEEDS:
        assert components(record, response).accuracy == 1
        return
    message = rf'needs {NEEDS[problem_type]}; run: pip install "g2rpo\[rewards\]"'
    with pytest.raises(MissingLibraryError, match=message):
        components(record, response)
    with pytest.raises(ImportError, match=f"record 0: .*{message}"):
        score_all([record], [response], workers=0, skip_errors=True)


@pytest.mark.parametrize(
    ("problem_type", "truth"),
    [
        ("spatial grounding", [[0, 0, 9, 9], [20, 0, 29, 9]]),
        ("temporal grounding", {"time": [[0, 4], [6, 9]]}),
    ],
)
@pytest.mark.usefixtures("without_libraries")
def test_several_objects_in_a_truth_need_scipy_from_the_start(problem_type, truth):
    with pytest.raises(MissingLibraryError, match="several objects needs scipy; run: pip install"):
        check_record({"problem_type": problem_type, "answer": truth})
