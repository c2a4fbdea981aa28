"""Reward functions as users write them, good and bad."""

import time


def length_of(answer, truth):
    return min(1.0, len(answer) / 10)


def not_a_number(answer, truth):
    return float("nan")


def text(answer, truth):
    return "good"


def raises(answer, truth):
    raise KeyError("no such colour")


def hangs(answer, truth):
    if "hang" in answer:
        time.sleep(60)
    return 1.0
