"""Servers that a run starts, in real processes, with a stand-in for vLLM inside of them."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from g2rpo_trainer import train
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.rollout.opening import server_devices
from g2rpo_trainer.rollout.requests import make_requests
from g2rpo_trainer.rollout.shared_weights import open_shared, read_piece, write_pieces
from g2rpo_trainer.rollout.synchronised import weights_of
from g2rpo_trainer.rollout.vllm_engine import VLLMEngine, VLLMOptions
from g2rpo_trainer.rollout.vllm_server import VLLMServers
from g2rpo_trainer.run.folder import RunFolder

STAND_IN = Path(__file__).parent / "stand_in"


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.syspath_prepend(str(STAND_IN))
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    sys.modules.pop("vllm", None)


@pytest.fixture
def options(random_policy_folder):
    return VLLMOptions(str(random_policy_folder), "float32", False, 0.9, None, 0, False, False)


def is_gone(pid: int, seconds: float = 20.0) -> bool:
    """Wait for the end of a process; one that nobody has asked about since counts as ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.1)
    return False


def test_weights_go_through_shared_memory():
    torch.manual_seed(0)
    weights = {
        "scalar": torch.tensor(2.5),
        "odd": torch.arange(7, dtype=torch.uint8),
        "half": torch.randn(5, 3).to(torch.bfloat16),
        "turned": torch.randn(4, 6).T,
        "large": torch.randn(100),
        "none": torch.zeros(0, 4),
    }
    memory = open_shared()
    found, sizes = {}, []
    for piece in write_pieces(memory, weights.items(), piece_bytes=192):
        sizes.append(len(piece))
        found.update(read_piece(memory, piece, torch.device("cpu")))
    os.close(memory)
    assert sizes == [3, 1, 1, 1]
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        assert found[name].dtype == weight.dtype
        assert torch.equal(found[name], weight), name


def test_servers_answer_as_an_engine_in_this_process(
    random_policy, prompts, records, tiny_run, options, tmp_path
):
    requests = make_requests(random_policy, prompts, records, tiny_run().rollout, range(6))
    here = VLLMEngine(options)
    servers = VLLMServers(options, [None, None], tmp_path, start_seconds=120)
    first, second = servers.pids
    with torch.no_grad():
        for engine in (here, servers):
            engine.load(weights_of(random_policy))
    answers = servers.generate(requests)
    assert answers == here.generate(requests)
    # More servers than prompts.
    assert servers.generate(requests[:1]) == answers[:1]
    assert not is_gone(first, 0.1)
    servers.close()
    servers.close()
    assert is_gone(first, 0.1)
    assert is_gone(second, 0.1)
    assert "starting" in (tmp_path / "vllm-server-1.log").read_text()


@pytest.mark.slow
def test_a_server_ends_with_its_object(options, tmp_path):
    servers = VLLMServers(options, [None], tmp_path, start_seconds=120)
    (pid,) = servers.pids
    del servers
    gc.collect()
    assert is_gone(pid, 0.1)


def test_a_server_that_cannot_start_says_why(options, tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN", "refuse")
    with pytest.raises(RunError, match=r"No available memory .* rollout.vllm_memory"):
        VLLMServers(options, [None], tmp_path, start_seconds=120)


@pytest.mark.slow
def test_a_server_that_does_not_get_ready_is_ended(options, tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN", "hang")
    started = []
    begin = subprocess.Popen

    def noted(*arguments, **named):
        started.append(begin(*arguments, **named))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", noted)
    with pytest.raises(RunError, match=r"not ready in time .*rollout.vllm_start_seconds"):
        VLLMServers(options, [None], tmp_path, start_seconds=1)
    assert is_gone(started[0].pid, 0.1)


@pytest.mark.slow
def test_a_server_that_breaks_shows_its_last_lines(options, tmp_path, monkeypatch):
    # Nothing of this model is there: the stand-in raises an error of its own.
    with pytest.raises(RunError, match="cannot start with nowhere"):
        VLLMServers(options._replace(model="nowhere"), [None], tmp_path, start_seconds=120)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RunError, match=r"died with exit code 1; .*\.log ends with:\s+\(nothing\)"):
        VLLMServers(options, [None], tmp_path, start_seconds=120)


@pytest.mark.slow
@pytest.mark.parametrize("is_busy", [False, True])
def test_a_server_ends_with_a_run_that_is_killed(random_policy_folder, tmp_path, is_busy):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "STAND_IN": "slow",
    }
    script = Path(__file__).with_name("vllm_run.py")
    command = [sys.executable, str(script), str(random_policy_folder), str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as run:
        pid = int(run.stdout.readline())
        if is_busy:
            time.sleep(1)
        assert not is_gone(pid, 0.1)
        run.send_signal(signal.SIGKILL)
    assert is_gone(pid)


@pytest.mark.slow
def test_a_run_with_a_server(tiny_run, tmp_path):
    config = tiny_run(
        "rollout.engine=vllm", "rollout.vllm=server", "optimization.learning_rate=0.01"
    )
    train(config)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        # The stand-in computes as the policy does, if it has the weights of now.
        assert line["sampler/ratio_max"] == pytest.approx(1, abs=1e-3)
    assert len(lines) == 3


@pytest.mark.slow
def test_a_run_whose_server_dies_keeps_its_checkpoint(tiny_run, tmp_path, monkeypatch):
    config = tiny_run("rollout.engine=vllm", "rollout.vllm=server")
    monkeypatch.setenv("STAND_IN", "die")
    with pytest.raises(RunError, match=r"has died with exit code 7; resume") as caught:
        train(config)
    assert "illegal memory access" in str(caught.value)
    notes = " ".join(caught.value.__notes__)
    assert "goes on from the checkpoint after step 1" in notes
    folder = RunFolder.open(tmp_path / "run")
    assert folder.latest_checkpoint().step == 1
    monkeypatch.delenv("STAND_IN")
    assert train(config, resume=True)["steps"] == 3


def test_devices_that_training_leaves_alone():
    gpu = torch.device("cuda", 1)
    assert server_devices([], gpu, 1, 4) == [0, 2, 3]
    assert server_devices([3], gpu, 1, 4) == [3]
    assert server_devices([], gpu, 2, 3) == [2]
    assert server_devices([0], torch.device("cpu"), 1, 1) == [0]
    for wanted, processes, available, message in [
        ([1], 1, 4, r"names 1, which trains the policy; .* 4 GPUs, .* takes \[1\]"),
        ([5], 1, 4, "names 5, which is not there"),
        ([], 4, 4, "takes all 4 GPUs"),
    ]:
        with pytest.raises(RunError, match=message):
            server_devices(wanted, gpu, processes, available)


def test_a_server_sees_its_own_gpu(monkeypatch):
    from g2rpo_trainer.rollout.vllm_server import _environment

    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert _environment(2)["CUDA_VISIBLE_DEVICES"] == "2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-8,7")
    assert _environment(1)["CUDA_VISIBLE_DEVICES"] == "GPU-8"
    assert "RANK" not in _environment(None)


def test_devices_need_a_server(tiny_run):
    with pytest.raises(RunError, match=r"vllm_devices is .1., but they are a server's"):
        tiny_run("rollout.vllm_devices=[1]")
