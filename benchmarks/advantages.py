"""Time and memory of the advantages, compared with a loop, verl, TRL and one stable sort.

    python benchmarks/advantages.py --output benchmarks/results/advantages.md

The two implementations of a comparison run alternately in one process, on the same rewards: prompts
of eight responses, six tasks with binary, dense and heavy-tailed rewards. verl is measured where it
can be imported (``pip install --no-deps verl``, and the packages that its import needs). It takes
about two minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np
from _report import markdown_table, measured_on, publish

RESPONSES, TASKS = 8, 6
LIBRARIES = ("NumPy", "PyTorch", "JAX")
SECONDS, LEAST, MOST = 1.0, 5, 1000  # of turns a pair

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]
Run = Callable[[], Any]
Contender = Callable[[Batch, str], Run]


class Pair(NamedTuple):
    """A comparison; the aim is at most ``aim`` times the time of the peer, None for no aim."""

    size: int
    ours: str
    peer: str
    aim: float | None


def pairs(small: int, large: int, shuffled: bool) -> list[Pair]:
    """Return all comparisons at the two sizes."""
    found = []
    for library in LIBRARIES:
        labels, rows, sort = f"labels, {library}", f"groups of 8, {library}", f"argsort, {library}"
        found += [
            Pair(small, labels, "loop over groups, PyTorch", 0.1),
            Pair(large, labels, sort, 3.0),
            Pair(large, rows, sort, 0.5),
        ]
        if library != "JAX":  # the threads of two libraries in one process are in each other's way
            found += [
                Pair(small, labels, "verl GRPO, 256 tokens", 1.0),
                Pair(small, labels, "verl GRPO, 1 token", 1.0),
                Pair(small, labels, "verl GRPO, 1 token, numbered", None),  # verl sorts nothing
                Pair(small, rows, "TRL GRPO, reshape", 2.0),
            ]
    return [pair for pair in found if not (shuffled and "of 8" in pair.ours)]


def main() -> None:
    """Measure every pair and write one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", type=int, default=4096, help="Rollouts of a usual batch.")
    parser.add_argument("--large", type=int, default=1_000_000)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--device", default="cpu", help="Of PyTorch: cpu or cuda.")
    parser.add_argument("--shuffled", action="store_true", help="Responses in a random order.")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--pair", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    compared = pairs(arguments.small, arguments.large, arguments.shuffled)
    if arguments.pair is not None:
        print(json.dumps(measure(compared[arguments.pair], arguments)))
        return
    rows = []
    for index, pair in enumerate(compared):
        command = [sys.executable, __file__, "--pair", str(index), *sys.argv[1:]]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(row_of(pair, json.loads(done.stdout.splitlines()[-1])))
        print(" | ".join(rows[-1]), file=sys.stderr)
    text = report(rows, arguments)
    publish(text, arguments.output)


def measure(pair: Pair, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return median seconds and peak bytes of both, and the median ratio of alternate runs."""
    few, batch = (
        rewards_of(size, arguments.dtype, arguments.shuffled)
        for size in (RESPONSES * TASKS, pair.size)
    )
    contenders = [CONTENDERS[name] for name in (pair.ours, pair.peer)]
    try:
        for contender in contenders:
            contender(few, arguments.device)()  # loads and compiles what is not the call's own
    except ImportError as error:
        return {"skipped": f"skipped: {error}"}
    runs = [contender(batch, arguments.device) for contender in contenders]
    memory = [peak_of(run, arguments.device) for run in runs]
    turns: list[tuple[float, ...]] = []
    begin = time.perf_counter()
    while len(turns) < MOST and (len(turns) < LEAST or time.perf_counter() - begin < SECONDS):
        turns.append(tuple(map(_seconds, runs)))
    return {
        "seconds": [median(times) for times in zip(*turns, strict=True)],
        "ratio": median(ours / peer for ours, peer in turns),
        "bytes": memory,
    }


def _seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def rewards_of(size: int, dtype: str, shuffled: bool) -> Batch:
    """Return rewards, groups and tasks of about ``size`` rollouts."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(size // RESPONSES), RESPONSES)
    tasks = groups % TASKS
    kinds = [
        rng.integers(0, 2, len(groups)).astype(float),
        rng.random(len(groups)),
        rng.pareto(1.5, len(groups)),
    ]
    rewards = np.choose(tasks % len(kinds), kinds).astype(dtype)
    if shuffled:
        order = rng.permutation(len(groups))
        rewards, groups, tasks = rewards[order], groups[order], tasks[order]
    return rewards, groups, tasks


def peak_of(run: Run, device: str) -> int | None:
    """Return the peak growth of the process in bytes during ``run``; Linux or CUDA."""
    if device.startswith("cuda"):
        import torch

        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    except OSError:
        run()
        return None
    before = _status("VmRSS")
    run()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise LookupError(field)


def gaussian(library: str, *, by_size: bool = False) -> Contender:
    """Gaussian advantages, with labels of groups or with their size; JAX compiles beforehand."""

    def contender(batch: Batch, device: str) -> Run:
        import g2rpo

        rewards, labels, tasks = _arrays(batch, library, device)
        if library == "JAX":
            import jax

            if by_size:
                function = jax.jit(lambda r, t: g2rpo.gaussian_advantages(r, RESPONSES, t))
                return _compiled(function, rewards, tasks)
            return _compiled(jax.jit(g2rpo.gaussian_advantages), rewards, labels, tasks)
        groups = RESPONSES if by_size else labels
        place = device if library == "PyTorch" else "cpu"
        return _synchronised(lambda: g2rpo.gaussian_advantages(rewards, groups, tasks), place)

    return contender


def torch_loop(batch: Batch, device: str) -> Run:
    """Apply the same formula group by group, then task by task, in Python."""
    rewards, groups, tasks = _tensors(batch, device)
    import torch

    def advantages() -> torch.Tensor:
        matched = torch.zeros_like(rewards)
        live = torch.zeros_like(rewards, dtype=torch.bool)
        # As in a trainer, the members of a group are known.
        order = torch.argsort(groups, stable=True)
        for members in order.split(torch.bincount(groups).tolist()):
            values, block = torch.unique(rewards[members], return_inverse=True)
            if len(values) == 1:
                continue
            size = len(members)
            ranks = torch.arange(1, size + 1, device=rewards.device)
            quantiles = torch.special.ndtri((ranks - 0.5) / size).to(rewards.dtype)
            sums = torch.zeros_like(values).index_add_(0, torch.sort(block).values, quantiles)
            matched[members] = (sums / torch.bincount(block))[block]
            live[members] = True
        for task in range(TASKS):
            mine = live & (tasks == task)
            matched[mine] /= matched[mine].square().mean().sqrt()
        return matched

    return _synchronised(advantages, device)


def verl_trainer(batch: Batch, device: str) -> Run:
    """Call ``grpo_vectorized`` like verl's trainer: named prompts, token rewards."""
    return _verl(batch, device, _names(batch), tokens=256)


def verl_names(batch: Batch, device: str) -> Run:
    """Call it for responses of one token: only the statistics of named prompts."""
    return _verl(batch, device, _names(batch), tokens=1)


def verl_numbers(batch: Batch, device: str) -> Run:
    """Call it with prompts that are already numbered 0, 1, ..., which needs no sort."""
    return _verl(batch, device, _tensors(batch, device)[1], tokens=1)


def _names(batch: Batch) -> np.ndarray:
    prompts = [str(UUID(int=group << 64 | 0x5EED)) for group in range(batch[1].max() + 1)]
    return np.asarray(prompts, dtype=object)[batch[1]]


def _verl(batch: Batch, device: str, index: Any, tokens: int) -> Run:
    from verl.trainer.ppo.core_algos import compute_grpo_vectorized_outcome_advantage as grpo

    rewards = _tensors(batch, device)[0]
    mask = rewards.new_ones((len(rewards), tokens))
    token_rewards = mask / tokens * rewards[:, None]
    return _synchronised(lambda: grpo(token_rewards, mask, index), device)


def trl_reshape(batch: Batch, device: str) -> Run:
    """TRL's GRPO: contiguous groups of equal size, as rows."""
    rewards = _tensors(batch, device)[0]

    def advantages() -> Any:
        rows = rewards.view(-1, RESPONSES)
        mean = rows.mean(dim=1).repeat_interleave(RESPONSES, dim=0)
        std = rows.std(dim=1).repeat_interleave(RESPONSES, dim=0)
        return (rewards - mean) / (std + 1e-4)

    return _synchronised(advantages, device)


def sort(library: str) -> Contender:
    """One stable argsort of the rewards; JAX compiles beforehand."""

    def contender(batch: Batch, device: str) -> Run:
        rewards = _arrays(batch, library, device)[0]
        if library == "JAX":
            import jax

            return _compiled(jax.jit(lambda x: jax.numpy.argsort(x, stable=True)), rewards)
        if library == "NumPy":
            return lambda: np.argsort(rewards, kind="stable")
        import torch

        return _synchronised(lambda: torch.argsort(rewards, stable=True), device)

    return contender


CONTENDERS: dict[str, Contender] = {
    **{f"labels, {library}": gaussian(library) for library in LIBRARIES},
    **{f"groups of 8, {library}": gaussian(library, by_size=True) for library in LIBRARIES},
    "loop over groups, PyTorch": torch_loop,
    "verl GRPO, 256 tokens": verl_trainer,
    "verl GRPO, 1 token": verl_names,
    "verl GRPO, 1 token, numbered": verl_numbers,
    "TRL GRPO, reshape": trl_reshape,
    **{f"argsort, {library}": sort(library) for library in LIBRARIES},
}


def _arrays(batch: Batch, library: str, device: str) -> tuple[Any, ...]:
    if library == "NumPy":
        return batch
    if library == "PyTorch":
        return _tensors(batch, device)
    import jax

    jax.config.update("jax_enable_x64", batch[0].dtype == np.float64)
    return tuple(map(jax.numpy.asarray, batch))


def _compiled(function: Any, *arrays: Any) -> Run:
    compiled = function.lower(*arrays).compile()
    return lambda: compiled(*arrays).block_until_ready()


def _tensors(batch: Batch, device: str) -> tuple[Any, ...]:
    import torch

    return tuple(torch.asarray(array, device=device) for array in batch)


def _synchronised(function: Run, device: str) -> Run:
    if not device.startswith("cuda"):
        return function
    import torch

    def run() -> None:
        function()
        torch.cuda.synchronize()

    return run


HEADER = ["rollouts", "ours", "ms", "MB", "beside", "ms", "MB", "ratio", "aim", ""]


def row_of(pair: Pair, found: dict[str, Any]) -> list[str]:
    """Return the cells of one comparison."""
    aim = "" if pair.aim is None else f"at most {pair.aim:g}"
    if "skipped" in found:
        return [f"{pair.size:,}", pair.ours, "", "", pair.peer, "", "", "", aim, found["skipped"]]
    ours, peer = (
        [f"{1e3 * seconds:,.3f}", "" if memory is None else f"{memory / 1e6:.1f}"]
        for seconds, memory in zip(found["seconds"], found["bytes"], strict=True)
    )
    met = "" if pair.aim is None else "met" if found["ratio"] <= pair.aim else "missed"
    ratio = f"{found['ratio']:.2f}"
    return [f"{pair.size:,}", pair.ours, *ours, pair.peer, *peer, ratio, aim, met]


def report(rows: list[list[str]], arguments: argparse.Namespace) -> str:
    """Return everything as Markdown: one table of comparisons, with the aims."""
    packages = ("numpy", "torch", "jax", "verl")
    order = "in a random order" if arguments.shuffled else "group by group"
    text = (
        f"{measured_on(arguments.device, packages)} {arguments.dtype}, {RESPONSES} responses a "
        f"prompt, {TASKS} tasks, rollouts {order}, by `python benchmarks/advantages.py`. Ours is "
        "`gaussian_advantages`, with labels of groups or with their size. The two of a pair run in "
        "turns in one process: median times, the median ratio of the turns, and the memory that "
        "the first call takes beyond its inputs. A sort is one stable argsort of the rewards by "
        "the same library."
    )
    heading = "# Time and memory of the advantages"
    return "\n\n".join([heading, text, markdown_table(HEADER, rows)]) + "\n"


if __name__ == "__main__":
    main()
