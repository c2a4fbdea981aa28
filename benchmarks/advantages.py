"""Time and memory of the advantages, against a loop, verl, TRL and one stable sort.

    python benchmarks/advantages.py --output benchmarks/results/advantages.md

Every contender runs in a process of its own, one after the other, on the same rewards: prompts of
eight responses, six tasks whose rewards are binary, dense and heavy-tailed. verl is used where it
can be imported (``pip install --no-deps verl`` and what its import then asks for).
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID

import numpy as np
from _report import markdown_table, measured_on

RESPONSES, TASKS = 8, 6
SECONDS = 1.0  # of repetitions a contender and size

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]
Run = Callable[[], Any]


def main() -> None:
    """Measure every contender at every size, and write one table a size."""
    parser = argparse.ArgumentParser(config=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 100_000, 1_000_000])
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--device", default="cpu", help="Of PyTorch: cpu or cuda.")
    parser.add_argument("--shuffled", action="store_true", help="Responses in a random order.")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(measure(arguments)))
        return
    contenders = [name for name in CONTENDERS if not (arguments.shuffled and "of 8" in name)]
    results = {
        size: {name: in_own_process(name, size, arguments) for name in contenders}
        for size in arguments.sizes
    }
    text = report(results, arguments)
    print(text)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text, encoding="utf-8")


def in_own_process(name: str, size: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what ``measure`` finds for one contender: seconds and bytes, or why it was skipped."""
    command = [sys.executable, __file__, "--contender", name, "--sizes", str(size)]
    command += ["--dtype", arguments.dtype, "--device", arguments.device]
    command += ["--shuffled"] * arguments.shuffled
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{size:>9,} {name}: {found.get('skipped') or _milliseconds(found)}", file=sys.stderr)
    return found


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the median time of a call, and the memory that the first one takes."""
    contender = CONTENDERS[arguments.contender]
    few, batch = (
        rewards_of(size, arguments.dtype, arguments.shuffled)
        for size in (RESPONSES * TASKS, arguments.sizes[0])
    )
    try:
        contender(few, arguments.device)()  # loads and compiles what is not the call's own
    except ImportError as error:
        return {"skipped": f"skipped: {error}"}
    run = contender(batch, arguments.device)
    memory = peak_of(run, arguments.device)
    times = []
    while sum(times) < SECONDS or len(times) < 3:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
        if times[0] > 10 * SECONDS:
            break
    return {"seconds": median(times), "bytes": memory}


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
    """Return how many bytes the process grows by, at most, while ``run`` runs; Linux or CUDA."""
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


def numpy_ours(batch: Batch, device: str) -> Run:
    """Gaussian advantages on NumPy."""
    import g2rpo

    return lambda: g2rpo.gaussian_advantages(*batch)


def torch_ours(batch: Batch, device: str) -> Run:
    """Gaussian advantages on PyTorch."""
    import g2rpo_torch

    arrays = _tensors(batch, device)
    return _synchronised(lambda: g2rpo_torch.gaussian_advantages(*arrays), device)


def jax_ours(batch: Batch, device: str) -> Run:
    """Gaussian advantages on JAX, compiled beforehand."""
    jax, arrays = _jax(batch)
    import g2rpo_jax

    compiled = jax.jit(g2rpo_jax.gaussian_advantages).lower(*arrays).compile()
    return lambda: compiled(*arrays).block_until_ready()


def numpy_rows(batch: Batch, device: str) -> Run:
    """Gaussian advantages on NumPy, groups given as the number of consecutive rollouts."""
    import g2rpo

    rewards, _, tasks = batch
    return lambda: g2rpo.gaussian_advantages(rewards, RESPONSES, tasks)


def torch_rows(batch: Batch, device: str) -> Run:
    """Gaussian advantages on PyTorch, groups given as the number of consecutive rollouts."""
    import g2rpo

    rewards, _, tasks = _tensors(batch, device)
    return _synchronised(lambda: g2rpo.gaussian_advantages(rewards, RESPONSES, tasks), device)


def jax_rows(batch: Batch, device: str) -> Run:
    """Gaussian advantages on JAX, groups given as the number of consecutive rollouts."""
    jax, (rewards, _, tasks) = _jax(batch)
    import g2rpo

    function = jax.jit(lambda r, t: g2rpo.gaussian_advantages(r, RESPONSES, t))
    compiled = function.lower(rewards, tasks).compile()
    return lambda: compiled(rewards, tasks).block_until_ready()


def torch_loop(batch: Batch, device: str) -> Run:
    """Apply the same formula group by group, then task by task, in Python."""
    rewards, groups, tasks = _tensors(batch, device)
    import torch

    def advantages() -> torch.Tensor:
        matched = torch.zeros_like(rewards)
        live = torch.zeros_like(rewards, dtype=torch.bool)
        # As a trainer has them: the members of a group are known, not searched for.
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
    """Call ``grpo_vectorized`` as verl's trainer does: named prompts, rewards by token."""
    return _verl(batch, device, _names(batch), tokens=256)


def verl_names(batch: Batch, device: str) -> Run:
    """Call it for responses of one token: the statistics of named prompts, nothing else."""
    return _verl(batch, device, _names(batch), tokens=1)


def verl_numbers(batch: Batch, device: str) -> Run:
    """Call it with prompts that are numbered 0, 1, ... already, which spares it a sort."""
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
    """GRPO as TRL computes it: contiguous groups of equal size, as rows."""
    rewards = _tensors(batch, device)[0]

    def advantages() -> Any:
        rows = rewards.view(-1, RESPONSES)
        mean = rows.mean(dim=1).repeat_interleave(RESPONSES, dim=0)
        std = rows.std(dim=1).repeat_interleave(RESPONSES, dim=0)
        return (rewards - mean) / (std + 1e-4)

    return _synchronised(advantages, device)


def numpy_sort(batch: Batch, device: str) -> Run:
    """One stable argsort of the rewards on NumPy."""
    return lambda: np.argsort(batch[0], kind="stable")


def torch_sort(batch: Batch, device: str) -> Run:
    """One stable argsort of the rewards on PyTorch."""
    import torch

    rewards = _tensors(batch, device)[0]
    return _synchronised(lambda: torch.argsort(rewards, stable=True), device)


def jax_sort(batch: Batch, device: str) -> Run:
    """One stable argsort of the rewards on JAX, compiled."""
    jax, arrays = _jax(batch)
    compiled = jax.jit(lambda x: jax.numpy.argsort(x, stable=True)).lower(arrays[0]).compile()
    return lambda: compiled(arrays[0]).block_until_ready()


CONTENDERS: dict[str, Callable[[Batch, str], Run]] = {
    "g2rpo, NumPy": numpy_ours,
    "g2rpo, PyTorch": torch_ours,
    "g2rpo, JAX": jax_ours,
    "g2rpo, groups of 8, NumPy": numpy_rows,
    "g2rpo, groups of 8, PyTorch": torch_rows,
    "g2rpo, groups of 8, JAX": jax_rows,
    "loop over groups, PyTorch": torch_loop,
    "verl GRPO, 256 tokens": verl_trainer,
    "verl GRPO, 1 token": verl_names,
    "verl GRPO, 1 token, numbered": verl_numbers,
    "TRL GRPO, reshape": trl_reshape,
    "stable argsort, NumPy": numpy_sort,
    "stable argsort, PyTorch": torch_sort,
    "stable argsort, JAX": jax_sort,
}


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


def _jax(batch: Batch) -> tuple[Any, tuple[Any, ...]]:
    import jax

    jax.config.update("jax_enable_x64", batch[0].dtype == np.float64)
    return jax, tuple(map(jax.numpy.asarray, batch))


def report(results: dict[int, dict[str, Any]], arguments: argparse.Namespace) -> str:
    """Return everything as Markdown: one table a size, then what was aimed at."""
    packages = ("numpy", "torch", "jax", "verl")
    order = "in a random order" if arguments.shuffled else "group by group"
    sections = [
        "# Time and memory of the advantages",
        f"{measured_on(arguments.device, packages)} {arguments.dtype}, {RESPONSES} responses a "
        f"prompt, {TASKS} tasks, rollouts {order}. Median time of a call, and the memory that "
        "the first call takes beyond its inputs, by `python benchmarks/advantages.py`.",
    ]
    for size, found in results.items():
        sections.append(f"## {size:,} rollouts")
        sections.append(markdown_table(HEADER, [_row(n, found) for n in found]))
    sections.append("## Targets")
    sections.append("\n".join(f"- {line}" for line in targets(results)))
    return "\n\n".join(sections) + "\n"


HEADER = ["", "ms", "in stable argsorts of its library", "MB"]


def _row(name: str, found: dict[str, Any]) -> list[str]:
    mine = found[name]
    if "skipped" in mine:
        return [name, mine["skipped"], "", ""]
    library = "JAX" if "JAX" in name else "NumPy" if "NumPy" in name else "PyTorch"
    sort = found[f"stable argsort, {library}"]["seconds"]
    memory = mine["bytes"]
    return [
        name,
        _milliseconds(mine).removesuffix(" ms"),
        f"{mine['seconds'] / sort:.2f}",
        "" if memory is None else f"{memory / 1e6:.1f}",
    ]


def _milliseconds(found: dict[str, Any]) -> str:
    return f"{1e3 * found['seconds']:,.2f} ms"


def targets(results: dict[int, dict[str, Any]]) -> list[str]:
    """Return a line for each figure that was aimed at, with what was measured."""
    lines = []
    for library in ("NumPy", "PyTorch", "JAX"):
        name = f"g2rpo, {library}"
        small, large = results[min(results)], results[max(results)]
        for peer, aim in (
            ("loop over groups, PyTorch", "at least 10"),
            ("verl GRPO, 256 tokens", "at least 1"),
            ("verl GRPO, 1 token", "at least 1"),
            ("verl GRPO, 1 token, numbered", "no aim: it sorts nothing"),
        ):
            if "seconds" in small[peer]:
                ratio = small[peer]["seconds"] / small[name]["seconds"]
                lines.append(
                    f"{name}, {min(results):,}: {ratio:.2f} times as fast as {peer} ({aim})"
                )
        sort = large[f"stable argsort, {library}"]["seconds"]
        ratio = large[name]["seconds"] / sort
        lines.append(f"{name}, {max(results):,}: {ratio:.2f} stable argsorts (at most 3)")
        if f"g2rpo, groups of 8, {library}" in small:
            lines += _rows_lines(results, library)
        sizes = sorted(results)[-2:]
        if len(sizes) == 2:
            growth, of_sort = (
                results[sizes[1]][each]["seconds"] / results[sizes[0]][each]["seconds"]
                for each in (name, f"stable argsort, {library}")
            )
            limit = sizes[1] * math.log(sizes[1]) / (sizes[0] * math.log(sizes[0]))
            lines.append(
                f"{name}, {sizes[0]:,} to {sizes[1]:,}: time grows {growth:.1f} times "
                f"(n log n: {limit:.1f}, the library's own sort: {of_sort:.1f})"
            )
    return lines


def _rows_lines(results: dict[int, dict[str, Any]], library: str) -> list[str]:
    """Return the lines of groups given as a number."""
    name = f"g2rpo, groups of 8, {library}"
    small, large = min(results), max(results)
    reshape = results[small][name]["seconds"] / results[small]["TRL GRPO, reshape"]["seconds"]
    sort = f"stable argsort, {library}"
    sorts = results[large][name]["seconds"] / results[large][sort]["seconds"]
    aim = "at most 2" if library != "JAX" else "no aim"
    return [
        f"{name}, {small:,}: {reshape:.2f} times TRL's reshape ({aim})",
        f"{name}, {large:,}: {sorts:.2f} stable argsorts (at most .5)",
    ]


if __name__ == "__main__":
    main()
