"""vLLM in processes of its own, on GPUs that the training leaves alone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from g2rpo_trainer.errors import RunError

from .requests import Request, Sampled
from .shared_weights import open_shared, write_pieces
from .vllm_engine import VLLMOptions

_LAST_LINES = 12
# How long a child may take to end by itself.
_GRACE = 5.0
_LAUNCHERS = {
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK"),
    *("MASTER_ADDR", "MASTER_PORT"),
}


class VLLMServers:
    """An engine for each of some devices, in a process that lasts as long as this object.

    Parameters
    ----------
    options : VLLMOptions
        How each of them starts.
    devices : sequence of int or None
        Numbers of GPUs as PyTorch counts them here; None is the CPU.
    folder : Path
        Where what they print is kept.
    start_seconds : float
        Longest that they may take until they are ready.

    Raises
    ------
    RunError
        If one of them does not get ready, with the last that it printed.
    """

    def __init__(
        self,
        options: VLLMOptions,
        devices: Sequence[int | None],
        folder: Path,
        *,
        start_seconds: float,
    ) -> None:
        self._memory = open_shared()
        self._servers: list[_Server] = []
        self.close = weakref.finalize(self, _close, self._servers, self._memory)
        deadline = time.monotonic() + start_seconds
        try:
            for number, device in enumerate(devices):
                log = folder / f"vllm-server-{number}.log"
                self._servers.append(_Server(device, log, self._memory))
            self._tell("start", tuple(options))
            for server in self._servers:
                server.answer(deadline)
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """Numbers of the processes."""
        return [server.process.pid for server in self._servers]

    def load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Send weights to all of them."""
        self._tell("load", None)
        for piece in write_pieces(self._memory, weights):
            self._tell("piece", piece)
            self._hear()
        self._tell("end", None)
        self._hear()

    def generate(self, requests: Sequence[Request]) -> list[list[Sampled]]:
        """Divide the prompts among them, and return the responses in their order."""
        count = len(self._servers)
        for number, server in enumerate(self._servers):
            server.tell("generate", list(requests[number::count]))
        parts = self._hear()
        return [parts[number % count][number // count] for number in range(len(requests))]

    def _tell(self, word: str, value: Any) -> None:
        for server in self._servers:
            server.tell(word, value)

    def _hear(self) -> list[Any]:
        return [server.answer() for server in self._servers]


class _Server:
    def __init__(self, device: int | None, log: Path, memory: int) -> None:
        self._log = log
        ours, theirs = socket.socketpair()
        module = f"{__package__}.vllm_child"
        arguments = [sys.executable, "-m", module, str(theirs.fileno()), str(memory)]
        log.parent.mkdir(parents=True, exist_ok=True)
        with theirs, log.open("wb") as output:
            self.process = subprocess.Popen(
                arguments,
                env=_environment(device),
                pass_fds=(theirs.fileno(), memory),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the terminal is for the run, which finishes its step first.
                start_new_session=True,
            )
        self.connection = Connection(ours.detach())

    def tell(self, word: str, value: Any) -> None:
        try:
            self.connection.send((word, value))
        except OSError:
            # What it said last, or that it has died.
            self.answer()
            raise self._died() from None

    def answer(self, deadline: float | None = None) -> Any:
        """Return the value of the next message."""
        while not self.connection.poll(1.0):
            if self.process.poll() is not None and not self.connection.poll():
                raise self._died()
            if deadline is not None and time.monotonic() > deadline:
                raise RunError(
                    "the vLLM server is not ready in time (rollout.vllm_start_seconds); set more, "
                    f"or see {self._log}, which ends with:\n{self._last_lines()}"
                )
        try:
            word, value = self.connection.recv()
        except (EOFError, OSError):
            raise self._died() from None
        if word == "error":
            raise RunError(value)
        return value

    def _died(self) -> RunError:
        try:
            how = f"with exit code {self.process.wait(_GRACE)}"
        except subprocess.TimeoutExpired:
            how = "without an exit code"
        return RunError(
            f"the vLLM server has died {how}; resume the run, with a lower rollout.vllm_memory if "
            f"it ran out of memory. {self._log} ends with:\n{self._last_lines()}"
        )

    def _last_lines(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-_LAST_LINES:]) or "(nothing)"


def _environment(device: int | None) -> dict[str, str]:
    """Return the variables of a server: it sees one GPU, and is no process of a launcher's."""
    environment = {name: value for name, value in os.environ.items() if name not in _LAUNCHERS}
    visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible[device] if visible else str(device)
    # What this process imports, its servers do from the same places.
    environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return environment


def _close(servers: list[_Server], memory: int) -> None:
    for server in servers:
        server.connection.close()
    for server in servers:
        try:
            server.process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            server.process.kill()
            server.process.wait()
    os.close(memory)
