"""The variables that a launcher, ``accelerate launch`` or ``torchrun``, sets for each process."""

import os
from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["Launch"]


class Launch(NamedTuple):
    """The place of this process among those that train together.

    Attributes
    ----------
    rank, size : int
        Its rank, from 0, and the world size.
    local_rank, local_size : int
        The same on this machine.
    sharded : bool
        Whether the launcher was asked to shard the model (``accelerate launch --use_fsdp``).
    on_cpu : bool
        Whether it was asked to leave GPUs alone (``accelerate launch --cpu``).

    Examples
    --------
    >>> Launch.read({})
    Launch(rank=0, size=1, local_rank=0, local_size=1, sharded=False, on_cpu=False)
    >>> environment = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    >>> Launch.read(environment).reports_errors
    False
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    sharded: bool = False
    on_cpu: bool = False

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> "Launch":
        """Read the environment of this process; without a launcher it is the only one."""
        size = int(environment.get("WORLD_SIZE", "1"))
        on_cpu = environment.get("ACCELERATE_USE_CPU", "").lower() == "true"
        # A cluster may set WORLD_SIZE for any process that it starts; only launchers set RANK.
        if size == 1 or "RANK" not in environment:
            return cls(on_cpu=on_cpu)
        return cls(
            rank=int(environment["RANK"]),
            size=size,
            local_rank=int(environment.get("LOCAL_RANK", "0")),
            local_size=int(environment.get("LOCAL_WORLD_SIZE", "1")),
            sharded=environment.get("ACCELERATE_USE_FSDP", "").lower() == "true",
            on_cpu=on_cpu,
        )

    @property
    def is_main(self) -> bool:
        """Whether this process shows the run and writes its folder."""
        return self.rank == 0

    @property
    def reports_errors(self) -> bool:
        """Whether this process reports errors that all processes of its machine meet alike."""
        return self.local_rank == 0
