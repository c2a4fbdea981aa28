"""Custom reward functions in a module."""

import ctypes
import os
import re
import signal
import sys
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from g2rpo.rewards.time_limit import time_limit

NOT_A_FUNCTION = 3


def behave(answer, truth):
    """Behave as the answer names: hang, crash, raise or return."""
    if answer == "hang":
        while True:
            time.sleep(0.01)
    if answer == "nap":
        for _ in range(10):
            time.sleep(0.1)
    if answer == "hang in C":
        return re.match("(a+)+b", "a" * 60) is None
    if answer == "segfault":
        ctypes.string_at(0)
    if answer == "leave":
        os._exit(3)
    if answer == "exit":
        sys.exit(3)
    if answer == "raise":
        raise KeyError("no such colour")
    return {"nan": float("nan"), "inf": float("inf"), "text": "1", "none": None}.get(answer, 1)


def length_match(answer, truth):
    return len(answer) / truth["length"]


def die_once(answer, truth):
    """End the first process that calls it, like an out-of-memory kill."""
    marker = Path(truth)
    if not marker.exists():
        marker.touch()
        os._exit(9)
    return 1


def limited(answer, truth):
    with time_limit(0.02):
        time.sleep(0.1)
    return 1


def process_id(answer, truth):
    return os.getpid()


class Unsendable:
    def __reduce__(self):
        raise TypeError("holds an open file")


class KilledAtLoad:
    """A function; the first ``times`` processes that load it are killed at that."""

    def __init__(self, starts, times):
        self.given = str(starts), times

    def __reduce__(self):
        return _load_or_die, self.given

    def __call__(self, answer, truth):
        return os.getpid() if truth else 1


def _load_or_die(starts, times):
    with open(starts, "ab") as file:
        file.write(b".")
        if file.tell() <= times:
            file.close()
            _kill_this_process()
    return KilledAtLoad(starts, times)


class SlowToLoad:
    """A function that takes seconds to load."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __setstate__(self, state):
        time.sleep(state["seconds"])

    def __call__(self, answer, truth):
        return 1


def kill_in_message(answer, truth):
    """Return 1; the first process that calls it is killed at a later message of its own.

    The truth is a path, "read" or "write", "before", "in" or "after" that, and the number of the
    message, from 0 on.
    """
    path, method, when, number = truth
    with suppress(FileExistsError), open(path, "x") as file:
        file.write("called")
        name, part = {"read": ("_recv_bytes", "_recv"), "write": ("_send_bytes", "_send")}[method]
        whole, left = getattr(Connection, name), [None] * number

        def fatal(connection, *arguments):
            is_last = not left
            if is_last:
                Path(path).write_text("killed")
                if when == "in":
                    setattr(Connection, part, _half)
                if when == "before":
                    _kill_this_process()
            result = whole(connection, *arguments)
            if is_last:
                _kill_this_process()
            left.pop()
            return result

        setattr(Connection, name, fatal)
    return 1


def _half(connection, what, *_):
    if isinstance(what, int):
        os.read(connection.fileno(), what // 2)
    else:
        os.write(connection.fileno(), bytes(what)[: len(what) // 2])
    _kill_this_process()


def _kill_this_process():
    os.kill(os.getpid(), signal.SIGKILL)
