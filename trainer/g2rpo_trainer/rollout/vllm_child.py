"""A process with an engine of its own, which a run starts on another device and ends with itself.

    python -m g2rpo_trainer.rollout.vllm_child SOCKET MEMORY

Both are descriptors that the run has opened: one for messages, one for weights. Messages are pairs
of a word and a value. It comes to an end as soon as the run closes its side, however that happens.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import torch

from g2rpo_trainer.errors import RunError

from .shared_weights import read_piece
from .vllm_engine import VLLMEngine, VLLMOptions

_LOOK_EVERY = 1.0


def main() -> None:
    """Start an engine and answer until the run is over."""
    socket, memory = (int(argument) for argument in sys.argv[1:3])
    end_with_the_run(socket)
    connection = Connection(socket)
    try:
        serve(connection, memory)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def serve(connection: Connection, memory: int) -> None:
    """Answer what the run asks.

    Parameters
    ----------
    connection : Connection
        To the run. The first message says how the engine starts.
    memory : int
        Descriptor of the memory in which weights come.

    Raises
    ------
    EOFError
        When the run is over.
    """
    _, values = connection.recv()
    options = VLLMOptions(*values)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        engine = VLLMEngine(options)
        connection.send(("ready", None))
        while True:
            word, value = connection.recv()
            if word == "load":
                engine.load(_arriving(connection, memory, device))
                connection.send(("loaded", None))
            else:
                connection.send(("answers", engine.generate(value)))
    except RunError as error:
        connection.send(("error", str(error)))


def _arriving(
    connection: Connection, memory: int, device: torch.device
) -> Iterator[tuple[str, torch.Tensor]]:
    while (message := connection.recv())[0] == "piece":
        yield from read_piece(memory, message[1], device)
        connection.send(("next", None))


def end_with_the_run(socket: int) -> None:
    """End this process when the other side of a socket is closed, whatever it is doing then."""
    parent = os.getppid()

    def watch() -> None:
        # Gone is the run also if something that it started still holds its side open.
        while os.getppid() == parent and not _is_closed(socket):
            time.sleep(_LOOK_EVERY)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def _is_closed(socket: int) -> bool:
    poll = select.poll()
    poll.register(socket, getattr(select, "POLLRDHUP", 0) | select.POLLHUP)
    return bool(poll.poll(0))


if __name__ == "__main__":
    main()
