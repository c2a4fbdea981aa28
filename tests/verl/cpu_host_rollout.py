"""A rollout engine for tests: every response is drawn at random."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import ray
from marks import MARKS, random_response
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput


class RandomRollout(BaseRollout):
    """The trainer's end of it, which takes the weights and forgets them."""

    async def resume(self, tags: list[str]) -> None: ...
    async def release(self) -> None: ...

    async def update_weights(self, weights: Any, **_: Any) -> None:
        for _name, _tensor in weights:
            pass


@ray.remote(num_cpus=0)
class RandomServer:
    def __init__(self) -> None:
        self.asked: Counter[tuple[int, ...]] = Counter()

    async def generate(self, *, prompt_ids: list[int], **_: Any) -> TokenOutput:
        prompt = tuple(prompt_ids)
        self.asked[prompt] += 1
        tokens = random_response(f"{prompt} {self.asked[prompt]}")
        return TokenOutput(
            token_ids=tokens,
            log_probs=[-math.log(len(MARKS))] * len(tokens),
            stop_reason="completed",
            extra_fields={"global_steps": 0},
        )

    async def wake_up(self) -> None: ...
    async def sleep(self) -> None: ...
    async def abort_all_requests(self, **_: Any) -> None: ...
    async def resume_generation(self) -> None: ...


class RandomReplica(RolloutReplica):
    async def launch_servers(self) -> None:
        # One for all replicas, so that what it draws does not depend on their number.
        server = RandomServer.options(name="random", get_if_exists=True).remote()
        self.servers = [server]
        self._server_handle, self._server_address = server, f"random-{self.replica_rank}"
