"""A reward function whose process dies or hangs, at one answer in three."""

import os
import signal
import time
import zlib

FAULTS = (
    lambda: os._exit(3),
    lambda: os.kill(os.getpid(), signal.SIGKILL),
    lambda: os.kill(os.getpid(), signal.SIGSEGV),
    lambda: time.sleep(3600),
    lambda: os.kill(os.getpid(), signal.SIGSTOP),
)


def score(answer, truth):
    """Return the share of equal letters; which answers are fatal follows from their text."""
    number = zlib.crc32(f"{answer}/{truth}".encode())
    if number % 3 == 0:
        FAULTS[number // 3 % len(FAULTS)]()
    same = sum(one == other for one, other in zip(answer, truth, strict=False))
    return same / max(len(answer), len(truth), 1)
