"""What a launcher, ``accelerate launch`` or ``torchrun``, tells each process that it starts."""

import os
from typing import NamedTuple

__all__ = ["Launch"]


class Launch(NamedTuple):
    """The place of this process among those that train together.

    Attributes
    ----------
    rank, size : int
        Its number from 0, and how many there are.
    local_rank, local_size : int
        The same on this machine.
    sharded : bool
        Whether the launcher was asked to divide the model (``accelerate launch --use_fsdp``).
    on_cpu : bool
        Whether it was asked to leave GPUs alone (``accelerate launch --cpu``).

    Examples
    --------
    >>> Launch.read({})
    Launch(rank=0, size=1, local_rank=0, local_size=1, sharded=False, on_cpu=False)
    >>> environment = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    >>> Launch.read(environment).tells
    False
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    sharded: bool = False
    on_cpu: bool = False

    @classmethod
    def read(cls, environment: "os._Environ[str] | dict[str, str]" = os.environ) -> "Launch":
        """Read the variables of the environment that launchers set; one process without them."""
        size = int(environment.get("WORLD_SIZE", "1"))
        on_cpu = environment.get("ACCELERATE_USE_CPU", "").lower() == "true"
        # A cluster may set the number of processes for whatever it starts; a rank is a launcher's.
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
    def tells(self) -> bool:
        """Whether this process tells what all processes of its machine find wrong alike."""
        return self.local_rank == 0
