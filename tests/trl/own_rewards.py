"""A reward function that never ends, at the top of a module, as worker processes need it."""

import time


def endless(answer: str, truth: str) -> float:
    time.sleep(600)
    return 1.0
