"""Custom reward functions in a module."""

import ctypes
import os
import re
import sys
import time
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
