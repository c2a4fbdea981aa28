"""Folders of runs as a training writes them, without any training."""

import math
from dataclasses import replace

from PIL import Image

from g2rpo_trainer.config import load_config
from g2rpo_trainer.kept_samples import KeptSamples
from g2rpo_trainer.record import Record
from g2rpo_trainer.run_folder import RunFolder

TASKS = ("ocr", "maths")


def write_run(
    path,
    *settings,
    tasks=TASKS,
    seed=0,
    steps=30,
    gain=0.2,
    is_finished=True,
    response="<answer>7</answer>",
    problem="What is 3 + 4?",
):
    """Write a run whose tasks gain `gain` reward, and return its folder."""
    config = load_config(settings=["output.trackers=[]", "data.source=mine.jsonl", *settings])
    data = config.data.model_copy(update={"tasks": list(tasks)})
    config = config.model_copy(
        update={
            "seed": seed,
            "data": data,
            "optimization": config.optimization.model_copy(update={"steps": steps}),
        }
    )
    folder = RunFolder.create(path, config)
    folder.note_environment(0, {"g2rpo": "0.1.0", "torch": "2.13.0", "device": "cpu"})
    write_samples(folder, "before", tasks, response, problem)
    for step in range(1, steps + 1):
        rows = [
            completion(task, step, number, response, problem)
            for task in tasks
            for number in range(4)
        ]
        folder.log(step, metrics(tasks, step, steps, gain, seed), rows)
    if is_finished:
        write_samples(folder, "after", tasks, response, problem)
        folder.write_summary(summary(tasks, steps, gain, seed))
    return folder.path


def metrics(tasks, step, steps, gain, seed):
    values = {"reward": 0.5, "entropy": 0.3, "step_time": 1.0}
    for number, task in enumerate(tasks):
        values |= {
            f"reward/{task}": 0.4 + gain * step / steps + seed / 100,
            f"rewards/accuracy/mean/{task}": 0.4,
            f"frac_reward_zero_std/{task}": 0.25,
            f"completions/clipped_ratio/{task}": 0.5 if number == 0 else 0.0,
            f"completions/mean_length/{task}": 12.0 + step / 10,
            f"length_target/low/{task}": 9.0,
            f"length_target/high/{task}": 24.0,
            f"entropy/{task}": 0.3,
        }
        if step % 10 == 0:
            values[f"equity/grad_norm/{task}"] = 1.0 + number
            values["equity/ratio"] = float(len(tasks))
    return values


def completion(task, step, number, response, problem):
    return {
        "record": step * 10 + number // 2,
        "task": task,
        "prompt": problem,
        "response": response,
        "length": 12,
        "ended": True,
        "kept": True,
        "advantage": (-1.0) ** number,
        "reward": 0.5,
        "accuracy": 0.5,
        "format": 1.0,
    }


def write_samples(folder, when, tasks, response, problem):
    kept = KeptSamples(tasks)
    for task in tasks:
        for item in range(2):
            right = when == "after" and item == 0
            kept.add(
                [
                    {
                        "task": task,
                        "item": item,
                        "problem": problem,
                        "answer": "7",
                        "response": f"{when}: {response}",
                        "reward": 0.9 if right else 0.1,
                        "accuracy": float(right),
                        "length": 12,
                        "ended": not right,
                    }
                ]
            )
        if when == "before":
            image = Image.new("RGB", (600, 400), (200, 30, 30))
            record = Record(problem, "7", "numerical", task, [image])
            kept.add_images(task, [record, replace(record, images=[])])
    folder.write_samples(when, kept.rows())


def summary(tasks, steps, gain, seed):
    def by_task(value):
        return {**dict.fromkeys(tasks, value), "mean": value}

    before, after = 0.4 + seed / 100, 0.4 + gain + seed / 100
    return {
        "before": by_task(before),
        "after": by_task(after),
        "interval_before": by_task([before - 0.05, before + 0.05]),
        "interval_after": by_task([after - 0.05, after + 0.05]),
        "interval_change": by_task([gain - 0.04, gain + 0.04]),
        "items": by_task(32),
        "length_before": dict.fromkeys(tasks, 12.0),
        "length_after": dict.fromkeys(tasks, math.nan),
        "steps": steps,
        "seconds": 61.0,
        "seed": seed,
        "estimator": "gaussian",
    }
