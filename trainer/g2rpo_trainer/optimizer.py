"""AdamW over the trained weights, with float32 masters of 16-bit weights, and its learning rate.

A weight in bfloat16 has 8 bits: an update below 1/256 of it is lost in rounding, as are nearly all
updates at a learning rate of 1e-6. Each such weight therefore has a float32 master that is updated,
and is rounded from it. Its gradient is float32 too: the gradients of micro-batches add up in it.

The peak is 18 bytes for each trained 16-bit weight: weight, master, gradient and two moments, and
the temporary tensors of one bucket of weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from .config import Optimization
from .distributed import buckets
from .sharding import as_float32, reshard, shard_like

if TYPE_CHECKING:
    from .model.policy_model import Policy

_MASTER = "master"
# Entries: 256 MiB for each temporary tensor of an update.
BUCKET = 2**26


class MasterAdamW(torch.optim.AdamW):
    """AdamW whose parameters are float32: the weights themselves, or masters of narrower ones.

    Parameters
    ----------
    weights : list of Parameter
        Trained weights of any floating dtype, with their gradients.
    bucket : int
        Entries of the weights that are updated together.
    options
        Options of :class:`torch.optim.AdamW`; on CUDA the fused kernel is the default.

    Examples
    --------
    A hundred updates of a thousandth of bfloat16's resolution add up:

    >>> weight = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    >>> optimizer = MasterAdamW([weight], lr=1e-4, weight_decay=0.0)
    >>> for _ in range(100):
    ...     weight.grad = torch.ones_like(weight)
    ...     optimizer.step()
    >>> weight.data
    tensor([0.9883], dtype=torch.bfloat16)
    """

    def __init__(
        self, weights: list[torch.nn.Parameter], *, bucket: int = BUCKET, **options: Any
    ) -> None:
        self.weights = list(weights)
        self.masters = [_master(weight) for weight in self.weights]
        if _all_on_cuda(self.masters):
            # One kernel, without temporary tensors.
            options.setdefault("fused", True)
        # AdamW's temporary tensors are as large as a parameter group.
        groups = [{"params": part} for part in buckets(self.masters, bucket)]
        super().__init__(groups, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take the weights' gradients, update the masters, and round the weights from them."""
        if closure is not None:
            raise TypeError("closure is given, but gradients are computed before the step")
        narrow = [
            (weight, master)
            for weight, master in zip(self.weights, self.masters, strict=True)
            if master is not weight
        ]
        for weight, master in narrow:
            # No copy: the gradient is float32 already, unless it was set by hand.
            master.grad = None if weight.grad is None else weight.grad.to(master.dtype)
        super().step()
        for weight, master in narrow:
            weight.copy_(master)
            master.grad = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the weights' gradients."""
        super().zero_grad(set_to_none)
        for weight in self.weights:
            if set_to_none:
                weight.grad = None
            elif weight.grad is not None:
                weight.grad.zero_()


def make_optimizer(policy: Policy, options: Optimization) -> MasterAdamW:
    """Return an optimiser over the parameters of a policy that take gradients.

    Parameters
    ----------
    policy : Policy
        Policy to train.
    options : Optimization
        Learning rate and weight decay.
    """
    trained = [weight for _, weight in trained_parameters(policy)]
    return MasterAdamW(trained, lr=options.learning_rate, weight_decay=options.weight_decay)


def trained_parameters(policy: Policy) -> list[tuple[str, torch.nn.Parameter]]:
    """Return names and parameters that take gradients, always in the same order."""
    reshard(policy.model)
    named = policy.model.named_parameters()
    return [(name, weight) for name, weight in named if weight.requires_grad]


def optimizer_tensors(policy: Policy, optimizer: MasterAdamW) -> dict[str, torch.Tensor]:
    """Return the state of an optimiser by name; sharded where the policy is.

    Parameters
    ----------
    policy : Policy
        Policy that is trained.
    optimizer : MasterAdamW
        Optimiser from :func:`make_optimizer` of the same policy.

    Returns
    -------
    dict of str to Tensor
        ``"slot/name"``: moments, the number of steps, and the master of a weight that has one.
    """
    tensors: dict[str, torch.Tensor] = {}
    for (name, weight), master in zip(trained_parameters(policy), optimizer.masters, strict=True):
        slots = dict(optimizer.state.get(master, {}))
        if master is not weight:
            slots[_MASTER] = master
        tensors |= {f"{slot}/{name}": value.detach() for slot, value in slots.items()}
    return tensors


def restore_optimizer_tensors(
    policy: Policy, optimizer: MasterAdamW, tensors: Iterable[tuple[str, Any]]
) -> None:
    """Load the tensors of :func:`optimizer_tensors` into a new optimiser of the same policy.

    Parameters
    ----------
    policy : Policy
        Policy that is trained.
    optimizer : MasterAdamW
        Optimiser whose state is replaced.
    tensors : iterable of (str, Tensor)
        Names and whole tensors; of those with rows each rank reads its own.
    """
    names = [name for name, _ in trained_parameters(policy)]
    masters = dict(zip(names, optimizer.masters, strict=True))
    for key, stored in tensors:
        slot, name = key.split("/", 1)
        master = masters[name]
        if isinstance(stored, torch.Tensor) and stored.ndim == 0:
            # Steps live on the CPU, but for the fused kernel.
            is_fused = optimizer.defaults["fused"]
            optimizer.state[master][slot] = stored.to(master.device) if is_fused else stored
            continue
        value = shard_like(stored, master)
        if slot == _MASTER:
            with torch.no_grad():
                master.copy_(value)
        else:
            optimizer.state[master][slot] = value


def _master(weight: torch.nn.Parameter) -> torch.nn.Parameter:
    if torch.finfo(weight.dtype).bits >= 32:
        return weight
    # None allows gradients of any dtype.
    weight.grad_dtype = None
    weight.register_post_accumulate_grad_hook(_widen_gradient)
    return torch.nn.Parameter(weight.detach().float())


def _widen_gradient(weight: torch.Tensor) -> None:
    """Make the gradient float32, so that those of the next backward passes are added in float32."""
    assert weight.grad is not None
    weight.grad = as_float32(weight.grad)


def _all_on_cuda(weights: Sequence[torch.Tensor]) -> bool:
    return bool(weights) and all(weight.device.type == "cuda" for weight in weights)


def set_learning_rate(optimizer: torch.optim.Optimizer, options: Optimization, step: int) -> None:
    """Set the learning rate of a step, counted from 0."""
    for group in optimizer.param_groups:
        group["lr"] = options.learning_rate * learning_rate_factor(options, step)


def learning_rate_factor(options: Optimization, step: int) -> float:
    """Return the factor of the learning rate.

    Parameters
    ----------
    options : Optimization
        With ``schedule``, ``steps``, ``warmup_steps`` and ``min_learning_rate_ratio``.
    step : int
        From 0.

    Returns
    -------
    float
        Rising in equal parts to 1 at the first step after the warm-up of w steps, (step + 1) /
        (w + 1); then with p from 0 there to 1 at ``steps``, at the end of the run, and m the
        ratio: 1, m + (1 - m)(1 - p), or m + (1 - m)(1 + cos πp) / 2.

    Examples
    --------
    >>> options = Optimization(schedule="cosine", steps=8, warmup_steps=2)
    >>> [round(learning_rate_factor(options, step), 2) for step in range(8)]
    [0.33, 0.67, 1.0, 0.93, 0.75, 0.5, 0.25, 0.07]
    """
    warmup = warmup_steps(options)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(options.steps - warmup, 1)
    falling = {
        "constant": 1.0,
        "linear": 1 - done,
        "cosine": (1 + math.cos(math.pi * done)) / 2,
    }[options.schedule]
    lowest = options.min_learning_rate_ratio
    return lowest + (1 - lowest) * falling


def warmup_steps(options: Optimization) -> int:
    """Return the length of the warm-up in steps; below 1 the option is a share of the run.

    Examples
    --------
    >>> warmup_steps(Optimization(steps=200, warmup_steps=0.03))
    6
    """
    given = options.warmup_steps
    return math.ceil(given * options.steps) if given < 1 else int(given)
