"""``g2rpo eval``: the held-out rewards of a saved model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from g2rpo_cli._errors import need, reported
from g2rpo_cli._options import Data, Device, Tasks, given
from g2rpo_cli._quiet import hide_foreign_bars

if TYPE_CHECKING:
    from g2rpo.run import RunDescription

__all__ = ["evaluate"]


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
    seed: Annotated[int | None, typer.Option(help="Seed of the description.")] = None,
    items: Annotated[int | None, typer.Option(help="Held-out items of each task.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON file for the result.")
    ] = None,
) -> None:
    """Sample answers to held-out items, and show the mean reward of each task.

    The items are the same for every model, so that results compare. A run's folder is evaluated
    as its own configuration says.

    **Examples**

    - `g2rpo eval` (the policy that comes with the package)

    - `g2rpo eval runs/g2rpo --items 256`

    - `g2rpo eval runs/g2rpo/checkpoints/step-000100 -t maths --output maths.json`
    """
    need("g2rpo eval", "torch", "transformers", "safetensors", "pydantic", extra="torch")
    flags = {
        "model.device": device,
        "data.source": data,
        "data.tasks": task,
        "data.eval_items": items,
        "seed": seed,
    }
    with reported():
        name, config = _find(model, model_option)
        from g2rpo.run import load_description

        description = load_description(config, given({**flags, "model.name": name}))
        _evaluate(name, description, output)


def _find(argument: str | None, option: str | None) -> tuple[str, Path | None]:
    """Return the model to load, and the configuration if it was named by its run."""
    from g2rpo.run import RunError, RunFolder

    if argument and option and argument != option:
        raise RunError(f"MODEL is {argument!r} and --model is {option!r}; name one of them")
    name = argument or option or "builtin"
    if not (Path(name) / "config.yaml").is_file():
        return name, None
    checkpoint = RunFolder.open(name).latest_checkpoint()
    if checkpoint is None:
        raise RunError(f"the run in {name} has no checkpoint yet; name another model")
    return str(checkpoint.path), Path(name) / "config.yaml"


def _evaluate(model: str, description: "RunDescription", output: Path | None) -> None:
    import json

    from rich.console import Console

    from g2rpo.run import Display
    from g2rpo.run.records import reward_kinds, with_tasks
    from g2rpo.run.report import results_table
    from g2rpo_torch.trainer import evaluate as run_evaluation

    hide_foreign_bars()
    description = with_tasks(description)
    with Display(0, description.data.tasks) as display:
        result = run_evaluation(model, description, display)
    kinds = reward_kinds(description.data)
    Console().print(results_table(kinds, result["reward"], result["length"]))
    if output is not None:
        output.write_text(json.dumps({"model": model, **result}, indent=2) + "\n")
