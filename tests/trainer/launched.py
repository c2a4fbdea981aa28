"""Runs of the trainer that a launcher starts in several processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

TORCHRUN = ("torch.distributed.run",)
ACCELERATE = ("accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no")
REPLICAS = (*ACCELERATE, "--dynamo_backend", "no", "--multi_gpu", "--num_processes", "2")
SHARDS = (*ACCELERATE, "--dynamo_backend", "no", "--use_fsdp", "--fsdp_version", "2")
SHARDS = (*SHARDS, "--num_processes", "2")


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def command(launcher: tuple[str, ...], *arguments: str) -> list[str]:
    """Return the command of ``g2rpo train`` under a launcher; under none it is alone."""
    if not launcher:
        return [sys.executable, "-m", "g2rpo_cli", "train", *arguments]
    if launcher == TORCHRUN:
        launcher = (*launcher, "--nproc-per-node", "2", "--master-port", free_port())
    else:
        launcher = (*launcher, "--main_process_port", free_port())
    return [sys.executable, "-m", *launcher, "-m", "g2rpo_cli", "train", *arguments]


def start(launcher: tuple[str, ...], *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(launcher, *arguments),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(launcher: tuple[str, ...], *arguments: str) -> tuple[int, str]:
    """Run to the end; return the exit code and all that was written."""
    with start(launcher, *arguments) as process:
        output, _ = process.communicate(timeout=280)
        return process.returncode, output


def run_worker(script: Path, *arguments: object, processes: int = 2) -> None:
    """Run a script of the tests in processes; a single one is started without a launcher."""
    launcher = ("-m", *TORCHRUN, "--nproc-per-node", str(processes), "--master-port", free_port())
    done = subprocess.run(
        [sys.executable, *(launcher if processes > 1 else ()), str(script), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def settings(folder: Path, model: str, *more: str) -> list[str]:
    """Return the arguments of a run of seconds on three prompts a step."""
    described = [
        f"model.name={model}",
        "model.device=cpu",
        "data.tasks=[grounding, ocr]",
        "data.eval_items=3",
        "data.eval_generations=2",
        "rollout.prompts_per_step=3",
        "rollout.num_generations=3",
        "rollout.max_completion_length=24",
        "optimization.learning_rate=1e-3",
        "optimization.warmup_steps=0",
        "output.save_steps=1",
        "output.keep_checkpoints=5",
        "output.plots=false",
        "output.trackers=[]",
        "output.equity_steps=2",
        f"output.dir={folder}",
        *more,
    ]
    return [part for each in described for part in ("--set", each)]
