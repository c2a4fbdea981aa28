"""``g2rpo eval``: the held-out rewards of a saved model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from g2rpo_cli._errors import load_trainer, need, reported
from g2rpo_cli._options import (
    Data,
    Device,
    Rewards,
    Settings,
    Tasks,
    given,
    reward_functions,
    search_working_folder,
)
from g2rpo_cli._output import Json, print_json, refuse_output, write_json
from g2rpo_cli._quiet import hide_foreign_bars

if TYPE_CHECKING:
    from g2rpo_trainer.config import TrainConfig


def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A run's folder (its newest checkpoint), a checkpoint, a model of the hub, "
            "or `builtin`."
        ),
    ] = None,
    model_option: Annotated[
        str | None, typer.Option("--model", help="The same as the argument.")
    ] = None,
    data: Data = None,
    task: Tasks = None,
    device: Device = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the configuration.")] = None,
    items: Annotated[int | None, typer.Option(help="Held-out items of each task.")] = None,
    num_generations: Annotated[
        int | None, typer.Option("--num-generations", "-n", help="Responses to each item.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Of the sampling; 0 takes the likeliest token.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Items that are answered at once.")] = None,
    reward: Rewards = None,
    settings: Settings = None,
    samples: Annotated[
        Path | None, typer.Option("--samples", help="JSON lines of every response with its score.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON file for the result.")
    ] = None,
    json: Json = False,
) -> None:
    """Sample answers to held-out items, and show the mean reward of each task.

    The items are the same for every model, so that results compare. A run's folder is evaluated
    as its own configuration says, unless `--data` names other data. The interval is Student's over
    the items; `best@n` is the mean of the best of an item's n responses.

    **Examples**

    - `g2rpo eval` (the policy that comes with the package)

    - `g2rpo eval runs/g2rpo --items 256 --samples answers.jsonl`

    - `g2rpo eval --model Qwen/Qwen2.5-0.5B-Instruct --data sums.jsonl -n 4 --output sums.json`
    """
    need("g2rpo eval", "pydantic", extra="torch")
    flags = {
        "model.device": device,
        "data.source": data,
        "data.tasks": task,
        "data.eval_items": items,
        "data.eval_generations": num_generations,
        "data.eval_temperature": temperature,
        "data.eval_batch_size": batch_size,
        "seed": seed,
    }
    with reported():
        name, file = _find(model, model_option)
        from g2rpo_trainer.config import load_config

        search_working_folder()
        # A run's configuration says of what model its checkpoints are.
        named = {} if file else {"model.name": name}
        overrides = given({**flags, **named}) | reward_functions(reward)
        config = load_config(
            file, overrides, _without_other_tasks(file, data, task, settings or [])
        )
        for option, path in (("--output", output), ("--samples", samples)):
            refuse_output(option, path)
        _evaluate(name, config, output, samples, as_json=json)


def _find(argument: str | None, option: str | None) -> tuple[str, Path | None]:
    """Return the model to load, and the configuration file of its run if it is one."""
    from g2rpo_trainer.errors import RunError
    from g2rpo_trainer.files import checksum_fault
    from g2rpo_trainer.run_folder import RunFolder

    if argument and option and argument != option:
        raise RunError(f"MODEL is {argument!r} and --model is {option!r}; name one of them")
    name = argument or option or "builtin"
    if not (Path(name) / "config.yaml").is_file():
        return name, None
    folder = RunFolder.open(name)
    checkpoint = folder.checkpoints.latest()
    if checkpoint is None:
        raise RunError(f"the run in {name} has no checkpoint yet; name another model")
    if fault := checksum_fault(checkpoint.path):
        raise RunError(f"{checkpoint.path} is damaged ({fault}); name another checkpoint as MODEL")
    return str(checkpoint.path), Path(name) / "config.yaml"


def _without_other_tasks(
    file: Path | None, data: str | None, tasks: Sequence[str] | None, settings: Sequence[str]
) -> list[str]:
    """Return settings that reset what a run says of its data or other tasks, before the given."""
    import json
    from operator import attrgetter

    from g2rpo_trainer.config import BUILTIN_SOURCES, TASK_KEYS, Data, load_config

    if file is None:
        return list(settings)
    run = load_config(file)
    if data not in (None, run.data.source):
        builtin = list(BUILTIN_SOURCES.get(str(data), ()))
        section = {**Data().model_dump(mode="json"), "source": data, "tasks": builtin}
        dropped = {"data": section, **{key: {} for key in TASK_KEYS}}
    elif tasks:
        mappings = {key: attrgetter(key)(run) for key in TASK_KEYS}
        dropped = {
            key: {task: value for task, value in mapping.items() if task in tasks}
            for key, mapping in mappings.items()
        }
        dropped["data.mixing.weights"] = {}  # each task is asked as often as the others
    else:
        dropped = {}
    texts = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in dropped.items()]
    return [*texts, *settings]


def _evaluate(
    model: str,
    config: "TrainConfig",
    output: Path | None,
    samples: Path | None,
    *,
    as_json: bool,
) -> None:
    trainer = load_trainer("g2rpo eval")
    from rich.console import Console

    from g2rpo_trainer.data import open_run, skipped_text
    from g2rpo_trainer.launch import Launch
    from g2rpo_trainer.report.display import Display
    from g2rpo_trainer.report.tables import results_table

    hide_foreign_bars()
    source = open_run(config)
    is_main = Launch.read().is_main
    console = None if is_main else Console(quiet=True)
    with (
        _writer(samples if is_main else None) as on_samples,
        Display(0, source.tasks, console=console) as display,
    ):
        result = trainer.evaluate(model, config, display, source=source, on_samples=on_samples)
    if not is_main:
        return
    summary = source.summary()
    content = {"model": model, **result}
    if as_json:
        print_json(content)
    else:
        kinds = {name: task.reward_kind for name, task in summary.tasks.items()}
        Console().print(results_table(kinds, result["reward"], result["length"], result["detail"]))
    _say([skipped_text(summary)], to_stderr=as_json)
    if output is not None:
        write_json(output, content)


def _say(texts: Sequence[str], *, to_stderr: bool) -> None:
    for text in filter(None, texts):
        typer.echo(text, err=to_stderr)


@contextmanager
def _writer(path: Path | None) -> Iterator[Callable[[list[dict[str, Any]]], None] | None]:
    """Yield a function that writes samples to a file, a line each; None without a file."""
    import json

    if path is None:
        yield None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:

        def write(samples: list[dict[str, Any]]) -> None:
            for sample in samples:
                # An answer may hold whatever its own scorer takes, such as a date.
                file.write(json.dumps(sample, ensure_ascii=False, default=str) + "\n")

        yield write
