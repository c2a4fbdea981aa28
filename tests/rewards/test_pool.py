"""The pool of processes: order, time limits, crashes, errors and shutdown."""

import gc
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from g2rpo.rewards import (
    ACCURACY,
    EXAMPLES,
    Components,
    RewardError,
    RewardPool,
    TruthError,
    WorkerStartError,
    components,
    score_all,
)
from g2rpo.rewards.time_limit import OutOfTime

pytestmark = pytest.mark.usefixtures("own_rewards")
OWN = {"own": "own_rewards:behave"}
RECORD = {"problem_type": "own", "answer": ""}
ZERO, ONE = Components(0, 0, 0), Components(1, 1, 1)


def well_formed(*answers):
    return [f"<think></think><answer>{answer}</answer>" for answer in answers]


def score(pool, *answers):
    return pool.score([RECORD] * len(answers), well_formed(*answers))


@pytest.fixture
def children():
    """No process is left behind."""
    before = set(multiprocessing.active_children())
    yield
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.parametrize("workers", [0, 2])
def test_every_problem_type_is_scored_in_the_order_of_the_responses(workers, children):
    records = [
        {"problem_type": problem_type, "answer": truth} for problem_type, truth in EXAMPLES.items()
    ] * 5
    right, wrong = (
        well_formed(*[f"{record['answer']}{extra}" for record in records]) for extra in ("", " no")
    )
    responses = [pair[row % 3 > 0] for row, pair in enumerate(zip(right, wrong, strict=True))]
    expected = [components(*pair) for pair in zip(records, responses, strict=True)]
    assert len(set(expected)) > 1
    with RewardPool(workers) as pool:
        for _ in range(2):
            scored = pool.score(records, responses)
            assert scored.components == expected
            assert scored.totals() == [parts.total() for parts in expected]
            assert scored.failures == []


def test_a_response_that_hangs_or_crashes_loses_only_its_own_reward(children):
    with RewardPool(2, functions=OWN, seconds=1) as pool:
        answers = ["a", "hang", "b", "segfault", "c", "hang in C", "leave", "d"]
        scored = score(pool, *answers)
        assert scored.components == [ONE, ZERO, ONE, ZERO, ONE, ZERO, ZERO, ONE]
        assert [failure[:3] for failure in scored.failures] == [
            (1, 1, "timeout"),
            (3, 3, "died"),
            (5, 5, "timeout"),
            (6, 6, "died"),
        ]
        assert scored.failures[0].message == "record 1: scoring took more than 1 seconds"
        assert "exit code 3" in scored.failures[3].message
        assert score(pool, "e", "hang").components == [ONE, ZERO]
        assert pool.counts == {"timeout": 3, "died": 2}


def test_a_formula_that_exceeds_the_limit_loses_only_its_own_reward(children):
    record = {"problem_type": "maths", "answer": "x^2"}
    responses = well_formed("$10000000!$", "x*x")
    scored = score_all([record] * 2, responses, workers=1, seconds=0.5)
    assert [parts.accuracy for parts in scored.components] == [0, 1]
    assert [failure.fault for failure in scored.failures] == ["timeout"]


def test_a_worker_has_the_time_limit_of_the_pool_only(own_rewards, children):
    with pytest.raises(OutOfTime):
        own_rewards.limited("a", "")
    functions = {"own": own_rewards.limited}
    assert score_all([RECORD], well_formed("a"), workers=1, functions=functions).components == [ONE]


def test_a_response_is_scored_again_after_its_process_died_once(tmp_path, children):
    record = {"problem_type": "own", "answer": str(tmp_path / "died")}
    functions = {"own": "own_rewards:die_once"}
    scored = score_all([record] * 4, well_formed(*"abcd"), workers=1, functions=functions)
    assert (tmp_path / "died").exists()
    assert scored.components == [ONE] * 4
    assert scored.failures == []


def test_an_idle_process_that_is_killed_is_replaced(children):
    with RewardPool(1, functions={"own": "own_rewards:process_id"}) as pool:
        first = score(pool, "a").components[0].accuracy
        os.kill(int(first), signal.SIGKILL)
        second = score(pool, "a", "a").components
        assert second[0].accuracy == second[1].accuracy != first


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("raise", "raised KeyError: 'no such colour'"),
        ("exit", "raised SystemExit: 3"),
        ("nan", "returned nan; it must return a finite number"),
        ("inf", "returned inf; it must"),
        ("text", "returned '1'; it must"),
        ("none", "returned None; it must"),
    ],
)
def test_a_function_that_fails_ends_the_run_or_is_counted(workers, answer, message, children):
    expected = rf"^record 71: reward function own_rewards:behave {message}"
    arguments = [RECORD] * 3, well_formed("a", answer, "raise"), [70, 71, 72]
    with RewardPool(workers, functions=OWN) as pool:
        with pytest.raises(RewardError, match=expected) as caught:
            pool.score(*arguments)
        in_function = "own_rewards.py" in "".join(getattr(caught.value, "__notes__", []))
        assert in_function == message.startswith("raised")
    with RewardPool(workers, functions=OWN, skip_errors=True) as pool:
        scored = pool.score(*arguments)
        assert scored.components[0] == ONE
        assert math.isnan(scored.components[1].accuracy)
        assert scored.components[1][1:] == (1, 1)
        assert math.isnan(scored.totals()[1])
        assert [failure.number for failure in scored.failures] == [71, 72]
        assert pool.counts == {"error": 2}


@pytest.mark.parametrize("workers", [0, 1])
def test_an_invalid_record_is_named_with_and_without_skipping(workers, children):
    with RewardPool(workers, functions=OWN, skip_errors=True) as pool:
        bad = {"problem_type": "regression", "answer": "ten"}
        with pytest.raises(TruthError, match="record 8: answer of a 'regression' record: truth is"):
            pool.score([RECORD, bad], well_formed("a", "b"), [7, 8])
        with pytest.raises(ValueError, match=r"record 0: .*'poetry'; it must be one of .*'own'"):
            pool.score([{"problem_type": "poetry", "answer": ""}], ["a"])
        with pytest.raises(ValueError, match="record 0 has no answer"):
            pool.score([{"problem_type": "own"}], ["a"])
        with pytest.raises(TypeError, match="response to record 0 is of type NoneType"):
            pool.score([RECORD], [None])
        with pytest.raises(ValueError, match="2, 1 and 1 items"):
            pool.score([RECORD] * 2, ["a"])
        assert pool.score([], []).components == []
        assert score(pool, "a").components == [ONE]


def test_a_function_gets_the_unchanged_answer_of_the_record(own_rewards, children):
    record = {"problem_type": "length", "answer": {"length": 4}, "images": [object()]}
    functions = {"length": own_rewards.length_match}
    for workers in (0, 1):
        scored = score_all([record], well_formed("abc"), workers=workers, functions=functions)
        assert scored.components[0].accuracy == 0.75


def test_a_function_or_answer_that_cannot_be_pickled_is_named(own_rewards, children):
    record = {"problem_type": "own", "answer": own_rewards.Unsendable()}
    with pytest.raises(
        RewardError, match="record 0: its answer cannot be sent to a process: holds"
    ):
        score_all([record], well_formed("a"), workers=1, functions=OWN)
    with pytest.raises(TypeError, match=r"'own' cannot be sent to a process .* workers=0"):
        RewardPool(1, functions={"own": lambda answer, truth: 1.0})


def test_the_time_limit_does_not_include_the_import_of_a_library(children):
    record = {"problem_type": "maths", "answer": "x^2"}
    scored = score_all([record], well_formed("x*x"), workers=1, seconds=0.5)
    assert scored.components == [ONE]


def test_a_pool_works_after_ctrl_c(children):
    def interrupt(*_):
        raise KeyboardInterrupt

    with RewardPool(2, functions=OWN, seconds=30) as pool:
        score(pool, "a")
        before = signal.signal(signal.SIGALRM, interrupt)
        outer = signal.setitimer(signal.ITIMER_REAL, 0.3)
        try:
            with pytest.raises(KeyboardInterrupt):
                score(pool, "hang", "b", "hang")
        finally:
            signal.signal(signal.SIGALRM, before)
            signal.setitimer(signal.ITIMER_REAL, *outer)
        assert score(pool, "c", "d").components == [ONE, ONE]


def test_a_closed_pool_has_no_processes_and_refuses_to_score(children):
    pool = RewardPool(2, functions=OWN)
    score(pool, "a")
    started = time.monotonic()
    pool.close()
    pool.close()
    assert time.monotonic() - started < 5
    with pytest.raises(RuntimeError, match="the reward pool is closed"):
        score(pool, "a")


def test_a_pool_can_be_closed_before_its_processes_started(children):
    RewardPool(2).close()


def test_the_processes_of_an_unreferenced_pool_end():
    before = set(multiprocessing.active_children())
    pool = RewardPool(1)
    pool.score([{"problem_type": "numerical", "answer": "7"}], ["<answer>7</answer>"])
    (process,) = set(multiprocessing.active_children()) - before
    del pool
    gc.collect()
    process.join(5)
    assert process.exitcode is not None


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"workers": -1}, "workers is -1; it must be 0 or more"),
        ({"seconds": 0}, "seconds is 0; it must be more than 0"),
        ({"seconds": math.inf}, "seconds is inf"),
        ({"functions": {"own": "own_rewards:behaved"}}, "did you mean 'behave'"),
    ],
)
def test_arguments_out_of_range_are_refused(options, error):
    with pytest.raises(ValueError, match=error):
        RewardPool(**options)


def test_a_module_that_workers_cannot_import_is_named(monkeypatch, children):
    pool = RewardPool(1, functions=OWN)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if "rewards" not in place])
    pool.close()
    with (
        RewardPool(1, functions=OWN) as pool,
        pytest.raises(WorkerStartError, match=r"does not start: .*own_rewards"),
    ):
        score(pool, "a")


UNGUARDED = """
from g2rpo.rewards import score_all
score_all([{"problem_type": "numerical", "answer": "7"}], ["7"], workers=1)
"""


def test_a_script_without_a_main_guard_gets_an_error_that_names_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert result.returncode != 0
    assert 'needs if __name__ == "__main__":' in result.stderr


KILLED = """
import os, signal, sys
from g2rpo.rewards import RewardPool

if __name__ == "__main__":
    pool = RewardPool(1, functions={"id": "own_rewards:process_id"})
    scored = pool.score([{"problem_type": "id", "answer": ""}], ["<answer></answer>"])
    print(int(scored.components[0].accuracy), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_processes_end_when_the_run_is_killed(tmp_path, own_rewards):
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    path = os.pathsep.join([os.path.dirname(own_rewards.__file__), *sys.path])
    result = subprocess.run(
        [sys.executable, script],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    child = int(result.stdout)
    for _ in range(100):
        if not _runs(child):
            break
        time.sleep(0.05)
    assert not _runs(child)


FROZEN = """
from g2rpo.rewards import RewardPool

if __name__ == "__main__":
    with RewardPool(1, functions={"own": "own_rewards:behave"}, seconds=3) as pool:
        record = {"problem_type": "own", "answer": ""}
        pool.score([record], ["<answer>a</answer>"])
        print("ready", flush=True)
        print(pool.score([record], ["<answer>nap</answer>"]).totals(), flush=True)
"""


def test_time_while_the_machine_is_suspended_does_not_count(tmp_path, own_rewards):
    script = tmp_path / "script.py"
    script.write_text(FROZEN)
    path = os.pathsep.join([os.path.dirname(own_rewards.__file__), *sys.path])
    process = subprocess.Popen(
        [sys.executable, script],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGSTOP)
    time.sleep(4)
    os.killpg(process.pid, signal.SIGCONT)
    assert process.communicate(timeout=60)[0] == "[0.9]\n"


def _runs(process):
    try:
        with open(f"/proc/{process}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_functions_in_the_registry_reach_the_workers(own_rewards, monkeypatch, children):
    monkeypatch.setitem(ACCURACY, "length", own_rewards.length_match)
    monkeypatch.setitem(ACCURACY, "maths", ACCURACY["numerical"])
    records = [
        {"problem_type": "length", "answer": {"length": 2}},
        {"problem_type": "maths", "answer": "12"},
    ]
    for workers in (0, 1):
        scored = score_all(records, well_formed("a", "24/2"), workers=workers)
        assert [parts.accuracy for parts in scored.components] == [0.5, 0]
    monkeypatch.setitem(ACCURACY, "length", lambda answer, truth: 1.0)
    with pytest.raises(TypeError, match="'length' cannot be sent to a process"):
        RewardPool(1)


def test_messages_name_the_places_of_records():
    places = ["a.jsonl, line 3", "a.jsonl, line 9"]
    with RewardPool(0, functions=OWN, skip_errors=True) as pool:
        scored = pool.score([RECORD] * 2, well_formed("a", "raise"), [5, 6], places=places)
        assert scored.failures[0].number == 6
        assert scored.failures[0].message.startswith("a.jsonl, line 9: reward function")
        with pytest.raises(ValueError, match="places has 1 items; must be 2"):
            pool.score([RECORD] * 2, ["a", "b"], places=places[:1])
        with pytest.raises(ValueError, match=r"a\.jsonl, line 3 has no answer"):
            pool.score([{"problem_type": "own"}], ["a"], places=places[:1])
