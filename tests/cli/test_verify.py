import subprocess
import sys

import numpy as np
import pytest

from g2rpo import ESTIMATORS
from g2rpo.testing import INVARIANTS

FILE = """
import numpy as np
from neighbour import ZERO

def centred(rewards, groups):
    return rewards - rewards.mean()

def zeros(rewards, groups, tasks):
    return ZERO * groups.astype(float)

def tensor(rewards, groups):
    return rewards.new_zeros(rewards.shape)

class Mine:
    @staticmethod
    def zeros(rewards, groups):
        return 0 * rewards

three = 3
"""


@pytest.fixture
def verify(run, tmp_path, monkeypatch):
    """Return a function that verifies in a folder with a file of one's own."""
    (tmp_path / "mine_to_verify.py").write_text(FILE)
    (tmp_path / "neighbour.py").write_text("ZERO = 0.0")
    (tmp_path / "unfinished.py").write_text("def f(:\n    pass")
    (tmp_path / "imports_nothing.py").write_text("\nimport no_such_module_here")
    monkeypatch.setattr(sys, "path", sys.path[:])

    def command(*arguments):
        before = set(sys.modules)
        try:
            return run("verify", *arguments)
        finally:
            for name in set(sys.modules) & {"mine_to_verify", "neighbour"} - before:
                del sys.modules[name]

    return command


def verdicts(out):
    rows = [line.split()[:2] for line in out.splitlines() if line.strip()]
    return {row[0]: row[1] for row in rows if row[0] in INVARIANTS and len(row) > 1}


def test_what_a_built_in_breaks(verify):
    code, out, err = verify("rloo", "-i", "increasing-maps", "-i", "sign")
    assert (code, err) == (1, "")
    assert verdicts(out) == {"increasing-maps": "fails", "sign": "holds"}
    assert "other rewards in the same order give other advantages" in out
    assert "rloo(np.asarray([0.0, 1.0]), np.asarray([0, 0]), np.asarray([0, 0]))" in out
    assert out.endswith(
        "rloo: 1 hold, 1 fail\nwhat is meant to be so can be waived: --waive increasing-maps\n"
    )


def test_an_estimator_that_takes_lengths_gets_them(verify):
    code, out, err = verify("opo", "-i", "zero-sum", "-i", "ties")
    assert (code, err) == (1, "")
    assert verdicts(out) == {"zero-sum": "fails", "ties": "holds"}
    (call,) = (line.strip() for line in out.splitlines() if line.strip().startswith("opo("))
    assert "length  advantage" in out
    advantages = eval(call, {"np": np, "opo": ESTIMATORS["opo"]})
    assert abs(advantages.sum()) > 1e-3


def test_every_invariant_by_default(verify):
    code, out, err = verify("gaussian", "--examples", "3")
    assert (code, err) == (0, "")
    assert verdicts(out) == dict.fromkeys(INVARIANTS, "holds")
    assert out.endswith("gaussian: 13 hold\n")


def test_waived(verify):
    code, out, _ = verify("grpo", "-i", "finite", "-i", "ties", "-w", "finite", "-w", "ties")
    assert code == 0
    assert verdicts(out)["finite"] == "waived"
    assert "an advantage is nan" in out
    assert "grpo: 1 hold, 1 waived" in out
    assert "no need to waive ties: no counter-example was found" in out


@pytest.mark.parametrize(
    "target",
    ["mine_to_verify:zeros", "mine_to_verify.py:zeros", "./mine_to_verify.py:Mine.zeros"],
)
def test_a_function_of_ones_own(verify, target):
    code, out, err = verify(target, "-i", "zero-sum", "-i", "no-signal")
    assert (code, err) == (0, "")
    assert f"{target}: 2 hold" in out


def test_a_function_of_ones_own_that_fails(verify):
    code, out, _ = verify("mine_to_verify:centred", "-i", "zero-sum")
    assert code == 1
    assert "centred(np.asarray([0.0, 1.0]), np.asarray([0, 1]))" in out


def test_every_line_fits_a_terminal(verify):
    _, out, _ = verify("mine_to_verify:centred", "--examples", "20")
    assert [line for line in out.splitlines() if len(line) > 80 and "asarray" not in line][
        :-1
    ] == []


def test_options_of_the_function(verify):
    options = ["-i", "task-variance", "--set"]
    assert verify("gaussian", *options, "task_stage=standardize")[0] == 0
    assert verify("gaussian", *options, "task_stage=null")[0] == 1
    code, _, err = verify("gaussian", *options, "task_stage=mach")
    assert code == 2
    assert "task_stage must be one of 'standardize'" in err
    code, _, err = verify("rloo", *options, "scale=none")
    assert code == 2
    assert "unexpected keyword argument 'scale'" in err


def test_tensors(verify):
    code, out, err = verify(
        "mine_to_verify:tensor", "--library", "torch", "--dtype", "float32", "-i", "zero-sum"
    )
    assert (code, err) == (0, ""), out


def test_list(verify):
    code, out, _ = verify("--list")
    assert code == 0
    heading, _, *lines = (line for line in out.splitlines() if line.strip())
    assert heading.split() == ["invariant", "statement"]
    assert [line.split()[0] for line in lines] == list(INVARIANTS)
    assert all(invariant.statement in out for invariant in INVARIANTS.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a TARGET"),
        (["grop"], "unknown estimator 'grop'; did you mean 'grpo'?"),
        (["grpo", "-i", "sing"], "unknown invariant 'sing'; did you mean 'sign'?"),
        (["grpo", "-w", "tie"], "unknown invariant 'tie'; did you mean 'ties'?"),
        (["grpo", "-i", "sign", "-w", "ties"], "--waive ties: it is not among those"),
        (["grpo", "--tolerance", "2"], "tolerance must be in [0, 1), got 2.0"),
        (["grpo", "--set", "epsilon"], "--set 'epsilon' must be KEY=VALUE"),
        ([":f"], "TARGET must be module:function or file.py:function, got ':f'"),
        (["no_such_module:f"], "there is no module 'no_such_module'"),
        (["no_such_file.py:f"], "there is no file no_such_file.py"),
        (["mine_to_verify:centered"], "has no 'centered'; did you mean 'centred'?"),
        (["mine_to_verify.py:three"], "is int, which cannot be called"),
        (["unfinished.py:f"], "unfinished.py, line 1)"),
        (["unfinished:f"], "cannot be imported: SyntaxError"),
        (["imports_nothing:f"], "ModuleNotFoundError: No module named 'no_such_module_here'"),
        (["imports_nothing.py:f"], "imports_nothing.py, line 2)"),
    ],
)
def test_mistakes_in_one_line(verify, arguments, message):
    code, out, err = verify(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_it_loads_no_framework():
    code = """
import sys
from g2rpo_cli.main import main
sys.argv = ["g2rpo", "verify", "grpo", "-i", "ties", "--examples", "2"]
try:
    main()
finally:
    assert not {"torch", "jax", "transformers"} & set(sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_missing_extras(without):
    for modules, arguments, extra in (
        (["hypothesis"], [], "cli"),
        (["jax"], ["--library", "jax"], "jax"),
    ):
        result = without(modules, "verify", "grpo", *arguments)
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert modules[0] in line
        assert f'pip install "g2rpo[{extra}]"' in line
