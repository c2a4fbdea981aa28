"""A process that has the trainer imported and forks a child for every run, to be killed inside it.

It reads one order a line from stdin, as JSON, and answers each with a line: the signal that ended
the child, or 0, and its exit code. An order holds ``settings`` of the run, ``resume``, and one of

- ``count``: name of a file that takes the number of lines that the run executes, by stage;
- ``stage`` and ``line``: SIGKILL before the line of that number in the stage's files;
- ``in_checkpoint``: SIGXFSZ, as deadly, in the middle of writing that checkpoint's largest file;
- ``seconds``: SIGKILL after that time.
"""

import contextlib
import json
import os
import resource
import signal
import sys
import time
from collections import Counter
from functools import cache
from pathlib import Path

STAGES = {
    "rollout": ("sampling.py", "prefill.py", "encoding.py", "batching.py", "rollouts.py"),
    "scoring": ("scoring.py", "advantages.py", "metrics.py"),
    "update": ("update.py", "batch.py", "logprobs.py", "packing.py", "optimizer.py", "equity.py"),
    "checkpoint": ("checkpoint.py",),
    "log": ("files.py", "run_folder.py", "progress.py"),
    "evaluation": ("evaluation.py",),
}
_STAGE_OF = {name: stage for stage, names in STAGES.items() for name in names}


def main() -> None:
    import torch

    import g2rpo_trainer  # what children shall not import again

    files = {path.name for path in Path(g2rpo_trainer.__file__).parent.rglob("*.py")}
    if moved := _STAGE_OF.keys() - files:
        raise FileNotFoundError(f"STAGES must name modules of the trainer, got {sorted(moved)}")
    torch.set_num_threads(1)  # no pool of threads, which a fork would lose
    for line in sys.stdin:
        print(json.dumps(obey(json.loads(line))), flush=True)


def obey(order: dict) -> dict:
    child = os.fork()
    if not child:
        code = 1
        try:
            with open(os.devnull, "w") as nothing, contextlib.redirect_stderr(nothing):
                run(order)
            code = 0
        except BaseException as error:
            print(repr(error), getattr(error, "__notes__", ""), file=sys.stderr)
        finally:
            os._exit(code)
    if "seconds" in order:
        time.sleep(order["seconds"])
        os.kill(child, signal.SIGKILL)
    started = time.monotonic()
    _, status = os.waitpid(child, 0)
    ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
    return {"signal": ended, "code": code, "seconds": time.monotonic() - started}


def run(order: dict) -> None:
    from g2rpo_trainer import train
    from g2rpo_trainer.config import load_config

    config = load_config(settings=order["settings"])
    counted: Counter[str] = Counter()
    if "count" in order or "line" in order:
        sys.settrace(tracer(counted, order.get("stage"), order.get("line")))
    if "in_checkpoint" in order:
        limit_files_from(order["in_checkpoint"])
    train(config, resume=order["resume"])
    sys.settrace(None)
    if "count" in order:
        Path(order["count"]).write_text(json.dumps(counted))


def tracer(counted, stage, line):
    """Return a trace function that counts the lines of each stage, and kills at one of them."""

    def on_line(frame, event, argument):
        if event == "line":
            counted[stage_of(frame.f_code.co_filename)] += 1
            if counted[stage] == line:
                os.kill(os.getpid(), signal.SIGKILL)
        return on_line

    def on_call(frame, event, argument):
        return on_line if stage_of(frame.f_code.co_filename) else None

    return on_call


@cache
def stage_of(path: str) -> str | None:
    file = Path(path)
    return _STAGE_OF.get(file.name) if "g2rpo_trainer" in file.parts else None


def limit_files_from(step: int) -> None:
    """From the checkpoint of a step on, let no file grow beyond half of the model's size."""
    from g2rpo_trainer import loop

    save = loop.save_checkpoint

    def limited(folder, policy, *arguments):
        if folder.name.endswith(f"{step:06d}"):
            size = sum(weight.numel() * 4 for weight in policy.model.parameters())
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
        save(folder, policy, *arguments)

    loop.save_checkpoint = limited


if __name__ == "__main__":
    main()
