"""Worker processes that are killed or stopped from outside, at any moment: no reward changes."""

import os
import signal
import subprocess
import sys
from multiprocessing.context import SpawnProcess

import pytest

from g2rpo.rewards import EXAMPLES, Components, RewardPool, WorkerStartError, workers

pytestmark = [pytest.mark.usefixtures("own_rewards"), pytest.mark.timeout(100)]
ONE = Components(1, 1, 1)
RESPONSE = "<think></think><answer>a</answer>"


def pool_of(function, workers=2, **options):
    """A pool that starts soon: no reward function needs a library."""
    return RewardPool(workers, functions=dict.fromkeys([*EXAMPLES, "own"], function), **options)


def score(pool, truth="", count=4, response=RESPONSE):
    return pool.score([{"problem_type": "own", "answer": truth}] * count, [response] * count)


@pytest.mark.parametrize("when", ["before", "in", "after"])
@pytest.mark.parametrize("method", ["read", "write"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_process_that_is_killed_at_a_message_changes_no_reward(tmp_path, method, when, number):
    killed = tmp_path / "killed"
    with pool_of("own_rewards:kill_in_message") as pool:
        for _ in range(9):
            scored = score(pool, (str(killed), method, when, number))
            assert scored.components == [ONE] * 4
            assert scored.failures == []
        assert killed.read_text() == "killed"


def test_a_reward_that_was_sent_before_the_kill_is_not_computed_again(tmp_path):
    killed = tmp_path / "killed"
    with pool_of("own_rewards:kill_in_message", 1) as pool:
        assert score(pool, (str(killed), "write", "after", 0), count=1).components == [ONE]
        assert killed.read_text() == "killed"


def test_a_process_that_the_system_refuses_is_an_error_and_the_pool_works_later(monkeypatch):
    def refuse(self):
        raise BlockingIOError("Resource temporarily unavailable")

    with pool_of("own_rewards:process_id", 1) as pool:
        os.kill(int(score(pool).components[0].accuracy), signal.SIGKILL)
        with monkeypatch.context() as patched:
            patched.setattr(SpawnProcess, "start", refuse)
            for _ in range(2):
                with pytest.raises(WorkerStartError, match="does not start: Resource temporarily"):
                    score(pool)
        assert score(pool).failures == []


def test_processes_that_are_all_killed_while_they_wait_are_replaced():
    with pool_of("own_rewards:process_id") as pool:
        first = {parts.accuracy for parts in score(pool, count=9).components}
        for process in first:
            os.kill(int(process), signal.SIGKILL)
        second = {parts.accuracy for parts in score(pool, count=9).components}
        assert not first & second


def test_a_process_that_is_killed_at_its_start_is_started_again(own_rewards, tmp_path):
    starts = tmp_path / "starts"
    with pool_of(own_rewards.KilledAtLoad(starts, times=2), 1) as pool:
        for _ in range(2):
            assert score(pool).components == [ONE] * 4
    assert starts.stat().st_size == 3


def test_starts_that_fail_between_others_do_not_add_up(own_rewards, tmp_path):
    starts = tmp_path / "starts"
    with pool_of(own_rewards.KilledAtLoad(starts, times=2), 1) as pool:
        for _ in range(2):
            process = int(score(pool, "process").components[0].accuracy)
            starts.write_bytes(b"")
            os.kill(process, signal.SIGKILL)
        assert score(pool).components == [ONE] * 4


def test_a_process_that_is_killed_at_every_start_is_an_error(own_rewards, tmp_path):
    starts = tmp_path / "starts"
    with (
        pool_of(own_rewards.KilledAtLoad(starts, times=99), 1) as pool,
        pytest.raises(
            WorkerStartError,
            match=r"does not start: it ended \(exit code -9\) 3 times while loading the "
            "reward functions, for lack of memory perhaps",
        ),
    ):
        score(pool)
    assert starts.stat().st_size == 3


def test_a_start_that_hangs_is_an_error_that_says_where(own_rewards, monkeypatch):
    monkeypatch.setattr(workers, "START_SECONDS", 5.0)
    monkeypatch.setattr(workers, "_STARTS", 2)
    function = own_rewards.SlowToLoad(3600)
    with (
        pool_of(function, 1) as pool,
        pytest.raises(WorkerStartError, match=r"it hung for 5 s 2 times .* the reward functions"),
    ):
        score(pool)


def test_a_start_has_its_time_limit_for_each_part(own_rewards, monkeypatch, tmp_path):
    monkeypatch.setattr(workers, "START_SECONDS", 6.0)
    loaded = tmp_path / "loaded"
    module = f"import time; time.sleep(4); open({str(loaded)!r}, 'x')"
    (tmp_path / "scipy.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    with RewardPool(1, functions={"own": own_rewards.SlowToLoad(4)}) as pool:
        assert score(pool).components == [ONE] * 4
    assert loaded.exists()


@pytest.mark.parametrize("size", [10, 10**6])
def test_a_process_that_is_stopped_while_it_waits_is_replaced(monkeypatch, size):
    monkeypatch.setattr(workers, "START_SECONDS", 8.0)
    monkeypatch.setattr(workers, "_MESSAGE_SECONDS", 1)
    with pool_of("own_rewards:process_id", 1, seconds=60) as pool:
        first = score(pool).components[0].accuracy
        os.kill(int(first), signal.SIGSTOP)
        scored = score(pool, response=RESPONSE.replace("a", "a" * size))
        assert scored.failures == []
        assert scored.components[0].accuracy != first


LEFT_OPEN = """
import tempfile
folder = tempfile.TemporaryDirectory()  # its finaliser makes weakref's the last one at exit
from g2rpo.rewards import RewardPool

if __name__ == "__main__":
    pool = RewardPool(1)
    print(pool.score([{"problem_type": "numerical", "answer": "7"}], ["7"]).totals())
"""


def test_a_script_that_leaves_its_pool_open_ends(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(LEFT_OPEN)
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=90)
    assert (result.returncode, result.stdout) == (0, "[0.0]\n"), result.stderr


STUCK = """
import sys
from g2rpo.rewards import EXAMPLES, RewardPool

def stuck(answer, truth):
    import re
    print("called", flush=True)
    if truth == "C":
        re.match("(a+)+b", "a" * 60)
    while True:
        pass

if __name__ == "__main__":
    pool = RewardPool(1, functions=dict.fromkeys([*EXAMPLES, "own"], stuck))
    pool.score([{"problem_type": "own", "answer": sys.argv[1]}], ["<answer>a</answer>"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems wait for the reward's end")
@pytest.mark.parametrize("where", ["C", "Python"])
def test_a_process_inside_of_a_reward_ends_with_the_main_process(tmp_path, where):
    script = tmp_path / "script.py"
    script.write_text(STUCK)
    with subprocess.Popen([sys.executable, script, where], stdout=subprocess.PIPE) as main:
        assert main.stdout.readline()
        main.kill()
        # It has the other end of the output, too, which closes only when it ends.
        assert main.stdout.read() == b""
