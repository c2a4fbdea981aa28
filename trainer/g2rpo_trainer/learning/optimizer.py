"""AdamW over what is trained, in float32 whatever the weights are kept in.

A weight in bfloat16 has 8 bits: an update below 1/256 of it is lost in rounding, and so are nearly
all updates at a learning rate of 1e-6. Each such weight therefore has a float32 master that takes
the update, and is rounded from it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from g2rpo_trainer.config import Optimization
from g2rpo_trainer.run.schedule import learning_rate_factor

from ..distributed.processes import Processes
from ..distributed.sharding import part_like, set_down, whole

if TYPE_CHECKING:
    from ..model.policy_model import Policy

_MASTER = "master"


class MasterAdamW(torch.optim.AdamW):
    """AdamW whose parameters are float32: the weights themselves, or masters of narrower ones.

    Parameters
    ----------
    weights : list of Parameter
        What is trained, of any floating dtype. Gradients are read from here.
    options
        Of :class:`torch.optim.AdamW`.

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

    def __init__(self, weights: list[torch.nn.Parameter], **options: Any) -> None:
        self.weights = list(weights)
        self.masters = [_master(weight) for weight in self.weights]
        super().__init__(self.masters, **options)

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
            master.grad = None if weight.grad is None else weight.grad.to(master.dtype)
        super().step()
        for weight, master in narrow:
            weight.copy_(master)
            master.grad = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the weights' gradients."""
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
        Whose weights it changes.
    options : Optimization
        Learning rate and weight decay.
    """
    trained = [weight for _, weight in trained_parameters(policy)]
    return MasterAdamW(trained, lr=options.learning_rate, weight_decay=options.weight_decay)


def trained_parameters(policy: Policy) -> list[tuple[str, torch.nn.Parameter]]:
    """Return names and parameters that take gradients, always in the same order."""
    set_down(policy.model)
    named = policy.model.named_parameters()
    return [(name, weight) for name, weight in named if weight.requires_grad]


def optimizer_tensors(policy: Policy, optimizer: MasterAdamW) -> dict[str, torch.Tensor]:
    """Return what an optimiser has to remember, on the CPU; of several processes to the first.

    Parameters
    ----------
    policy : Policy
        Which names the tensors.
    optimizer : MasterAdamW
        From :func:`make_optimizer` of the same policy.

    Returns
    -------
    dict of str to Tensor
        ``"slot/name"``: moments, the number of steps, and the master of a weight that has one.
    """
    tensors = {}
    is_main = Processes.current().is_main
    for (name, weight), master in zip(trained_parameters(policy), optimizer.masters, strict=True):
        slots = dict(optimizer.state.get(master, {}))
        if master is not weight:
            slots[_MASTER] = master
        for slot, value in slots.items():
            found = whole(value.detach())
            if is_main:
                tensors[f"{slot}/{name}"] = found.cpu().contiguous()
    return tensors


def restore_optimizer_tensors(
    policy: Policy, optimizer: MasterAdamW, tensors: dict[str, torch.Tensor]
) -> None:
    """Put what :func:`optimizer_tensors` returned into a new optimiser of the same policy."""
    names = [name for name, _ in trained_parameters(policy)]
    masters = dict(zip(names, optimizer.masters, strict=True))
    for key, value in tensors.items():
        slot, name = key.split("/", 1)
        master = masters[name]
        if slot == _MASTER:
            with torch.no_grad():
                master.copy_(part_like(value, master))
            continue
        # AdamW counts its steps on the CPU; moments live where the parameter does.
        optimizer.state[master][slot] = part_like(value, master) if value.ndim else value


def _master(weight: torch.nn.Parameter) -> torch.nn.Parameter:
    if torch.finfo(weight.dtype).bits >= 32:
        return weight
    return torch.nn.Parameter(weight.detach().float())


def set_learning_rate(optimizer: torch.optim.Optimizer, options: Optimization, step: int) -> None:
    """Give every group of parameters the learning rate of a step, from 0."""
    for group in optimizer.param_groups:
        group["lr"] = options.learning_rate * learning_rate_factor(options, step)
