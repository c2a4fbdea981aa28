"""Where the policy runs: on one device, or on all of a kind with the prompts divided among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from g2rpo.run.errors import RunError

_AXIS = "prompts"


class Placement:
    """Puts weights on every device, and prompts on one each.

    Parameters
    ----------
    devices : sequence of jax.Device
        One at least.

    Examples
    --------
    >>> placement = Placement(jax.devices()[:1])
    >>> placement.divided(np.zeros((4, 2), np.float32)).sharding.num_devices
    1
    """

    def __init__(self, devices: Sequence[jax.Device]) -> None:
        self.devices = tuple(devices)
        mesh = Mesh(np.array(self.devices), (_AXIS,))
        self._whole = NamedSharding(mesh, PartitionSpec())
        self._divided = NamedSharding(mesh, PartitionSpec(_AXIS))

    def everywhere(self, tree: Any) -> Any:
        """Return the arrays of a tree, whole on every device."""
        return jax.device_put(tree, self._whole)

    def divided(self, tree: Any) -> Any:
        """Return the arrays of a tree with their first axis divided among the devices.

        One that cannot be divided evenly is whole on every device: the same result, no gain.
        """
        count = len(self.devices)
        return jax.tree.map(
            lambda x: jax.device_put(x, self._whole if x.shape[0] % count else self._divided), tree
        )


def resolve_device(name: str) -> Placement:
    """Return where a run's description wants to run.

    Parameters
    ----------
    name : str
        ``"auto"`` for all devices of JAX's preferred kind, ``"cpu"`` or ``"cuda"`` for all of that
        kind, ``"cuda:1"`` for that one alone.

    Returns
    -------
    Placement

    Raises
    ------
    RunError
        If JAX does not see the device on this machine.

    Examples
    --------
    >>> resolve_device("cpu").devices[0].platform
    'cpu'
    """
    if name == "auto":
        return Placement(jax.devices())
    kind, _, number = name.partition(":")
    try:
        devices = jax.devices(kind)
    except RuntimeError:
        devices = []
    chosen = devices[int(number) : int(number) + 1] if number else devices
    if not chosen:
        raise RunError(
            f"--device is {name!r}, but JAX sees {len(devices)} {kind} devices on this machine; "
            "leave it out, or name cpu"
        )
    return Placement(chosen)
