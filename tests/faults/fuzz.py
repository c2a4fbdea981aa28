"""Look for texts that break a parser by what they execute, with atheris (``pip install atheris``).

    python -m tests.faults.fuzz rewards -max_total_time=600

Options with a dash are libFuzzer's. The command ends with an error at the first text that breaks a
promise, and leaves it in a file ``crash-…``; with TARGET and that file it tries it again. What it
finds becomes an example of an ordinary test.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

PLACE = Path(tempfile.gettempdir())


def rewards() -> Callable[[bytes], None]:
    """Score any text as any type of answer."""
    import atheris

    from tests.rewards.test_any_text import CHEAP, assert_in_range

    def target(data: bytes) -> None:
        given = atheris.FuzzedDataProvider(data)
        problem_type = CHEAP[given.ConsumeIntInRange(0, len(CHEAP) - 1)]
        assert_in_range(problem_type, given.ConsumeUnicodeNoSurrogates(len(data)))

    return target


def config() -> Callable[[bytes], None]:
    """Read any bytes as a configuration."""
    from g2rpo_trainer.config import load_config

    from .text import may_refuse

    path = PLACE / "fuzzed.yaml"

    def target(data: bytes) -> None:
        path.write_bytes(data)
        with may_refuse(path.name):
            load_config(path)

    return target


def records() -> Callable[[bytes], None]:
    """Read any bytes as records, behind one that is right."""
    from g2rpo_trainer.config import load_config
    from g2rpo_trainer.data import open_source

    from .text import may_refuse

    path = PLACE / "fuzzed.jsonl"
    good = {"problem": "1 + 1?", "answer": "2", "problem_type": "numerical", "task_type": "sums"}

    def target(data: bytes) -> None:
        path.write_bytes(json.dumps(good).encode() + b"\n" + data)
        with may_refuse(path.name):
            open_source(load_config(overrides={"data.source": str(path)}).data)

    return target


TARGETS = {each.__name__: each for each in (rewards, config, records)}


def main() -> None:
    """Try one target for as long as the options say."""
    import atheris

    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        raise SystemExit(f"usage: python -m tests.faults.fuzz TARGET; one of {', '.join(TARGETS)}")
    with atheris.instrument_imports(include=["g2rpo", "g2rpo_trainer"]):
        target = TARGETS[sys.argv.pop(1)]()
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
