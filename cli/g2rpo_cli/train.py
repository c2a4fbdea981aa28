"""``g2rpo train``: configure and start, or resume, a run."""

import shlex
from collections.abc import Mapping, Sequence
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
from g2rpo_cli._output import Json, print_json
from g2rpo_cli._quiet import hide_foreign_bars

if TYPE_CHECKING:
    from g2rpo_trainer.config import TrainConfig
    from g2rpo_trainer.data import Source

# Keys that a resumed run may change; any other change would make it another run.
_CHANGEABLE = (
    "optimization.steps",
    "optimization.micro_batch_tokens",
    "rollout.batch_size",
    "model.sharding",
)


def train(
    model: Annotated[
        str | None,
        typer.Option(help="`builtin`, a folder in Hugging Face format, or a model of the hub."),
    ] = None,
    data: Data = None,
    task: Tasks = None,
    estimator: Annotated[
        str | None, typer.Option(help="How rewards become advantages: `gaussian`, `grpo`, …")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Length of the run in steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of data, sampling and order.")] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output-dir", "-o", help="Folder of the run. Default: `runs/g2rpo`."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in the output folder.")
    ] = False,
    device: Device = None,
    configs: Annotated[
        list[str] | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE|PRESET",
            help="YAML file, or preset: `builtin`, `text`, `vlm`, `vlm-lora`, `vlm-fsdp`. Repeat "
            "it: files win over presets, later ones over earlier ones.",
        ),
    ] = None,
    reward: Rewards = None,
    settings: Settings = None,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help="Show no progress: warnings and the result alone."),
    ] = False,
    json: Json = False,
) -> None:
    """Train a policy with G²RPO, and show each task before and after.

    Without options it trains the policy that comes with the package on the six built-in tasks.
    Options win over `--set`, which wins over the files of `--config`, which win over presets.

    The run's folder holds the resolved configuration, metrics, TensorBoard events, checkpoints in
    Hugging Face format, pictures and `summary.json`. Ctrl-C saves and stops. `config.yaml` there
    lists every key that `--config` and `--set` take.

    The defaults suit a pretrained model: a learning rate of 1e-6 (adapters: 1e-5) and responses of
    up to 1,024 tokens. The policy of the package starts from the preset `builtin`.

    **Examples**

    - `g2rpo train`

    - `g2rpo train --config vlm --data my-data.jsonl`

    - `g2rpo train --config vlm-lora --config run.yaml --model my/model`

    - `g2rpo train --estimator grpo --seed 1 -o runs/grpo-1`

    - `g2rpo train -t maths -t ocr --set rollout.num_generations=16 --set entropy.weight=0`

    - `g2rpo train --resume -o runs/grpo-1 --steps 300`

    - `g2rpo train --json > summary.json`
    """
    need("g2rpo train", "pydantic", extra="torch")
    flags = given(
        {
            "model.name": model,
            "model.device": device,
            "data.source": data,
            "data.tasks": task,
            "estimator.name": estimator,
            "optimization.steps": steps,
            "seed": seed,
            "output.dir": output_dir,
        }
    )
    with reported(is_before_start=True):
        search_working_folder()
        flags |= reward_functions(reward)
        if resume:
            config = _resumed(flags, settings or [], configs)
        else:
            config = _fresh(flags, settings or [], configs)
    with reported():
        _run(config, resume=resume, quiet=quiet, as_json=json)


def _fresh(
    flags: Mapping[str, Any], settings: Sequence[str], configs: Sequence[str] | None
) -> "TrainConfig":
    from g2rpo_trainer.config import load_config
    from g2rpo_trainer.report.trackers import require_trackers
    from g2rpo_trainer.run_folder import RunFolder

    config = load_config(configs, flags, settings)
    # The trainer refuses as well, but only after the time that PyTorch and the model take to load.
    RunFolder.refuse_existing(config.output.dir)
    require_trackers(config.output.trackers)
    return config


def _resumed(
    flags: Mapping[str, Any], settings: Sequence[str], configs: Sequence[str] | None
) -> "TrainConfig":
    from g2rpo_trainer.config import TrainConfig, load_config, parse_setting
    from g2rpo_trainer.errors import RunError
    from g2rpo_trainer.run_folder import RunFolder

    if configs:
        raise RunError(
            "--config with --resume: a run continues as its folder's config.yaml says; "
            "leave out --config"
        )
    wanted = dict(parse_setting(text) for text in settings) | dict(flags)
    path = wanted.get("output.dir", TrainConfig().output.dir)
    folder = RunFolder.open(path)
    config = load_config(folder.path / "config.yaml", {**wanted, "output.dir": str(path)})
    for key in wanted:
        if key in _CHANGEABLE or key.startswith("output."):
            continue
        before, now = _value(folder.config, key), _value(config, key)
        if now != before:
            raise RunError(
                f"{key} is {now!r}, but the run in {path} has {before!r}; --resume can change "
                "--steps, the section output, optimization.micro_batch_tokens, rollout.batch_size "
                "and model.sharding alone: leave that out, or start another run without --resume"
            )
    _refuse_finished(folder, config.optimization.steps)
    return config


def _refuse_finished(folder: Any, steps: int) -> None:
    from g2rpo_trainer.errors import RunError

    checkpoint = folder.checkpoints.latest()
    if checkpoint is not None and checkpoint.step > steps:
        raise RunError(
            f"--steps is {steps}, but the run in {folder.path} already has {checkpoint.step}; "
            "name a larger number"
        )
    if checkpoint is not None and checkpoint.step == steps and folder.is_finished:
        raise RunError(
            f"the run in {folder.path} has done all its {steps} steps; "
            "name a larger number with --steps to go on"
        )


def _value(config: "TrainConfig", key: str) -> Any:
    from g2rpo_trainer.config.keys import split_key

    value: Any = config.model_dump()
    for part in split_key(key):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _run(config: "TrainConfig", *, resume: bool, quiet: bool, as_json: bool) -> None:
    trainer = load_trainer("g2rpo train")
    from rich.console import Console

    from g2rpo_trainer.data import open_run
    from g2rpo_trainer.launch import Launch
    from g2rpo_trainer.report.display import Display
    from g2rpo_trainer.report.tables import before_after_table
    from g2rpo_trainer.run_folder import RunFolder

    hide_foreign_bars()
    is_main = Launch.read().is_main
    source = open_run(config)
    if is_main and not quiet:
        _show_data(config, source, to_stderr=as_json)
        _require_memory(config)
    path = Path(config.output.dir)
    start = RunFolder.open(path).checkpoints.latest() if resume else None
    steps, tasks = config.optimization.steps, source.tasks
    display = Display(
        steps,
        tasks,
        start.step if start else 0,
        console=None if is_main else Console(quiet=True),
        bounds=config.entropy.kept_bounds(tasks),
        quiet=quiet,
    )
    try:
        with display:
            summary = trainer.train(config, resume=resume, display=display, source=source)
    except KeyboardInterrupt as interruption:
        if not is_main:
            raise SystemExit(0) from None
        # The trainer's own interruption tells what is saved; a second Ctrl-C stops at once.
        _say_how_to_resume(path, str(interruption) or "stopped at once")
        raise SystemExit(130) from None
    if is_main:
        if as_json:
            print_json(summary)
        else:
            kinds = {name: task.reward_kind for name, task in source.summary().tasks.items()}
            Console().print(before_after_table(kinds, summary))
        _say_what_is_where(summary, path, to_stderr=as_json)


def _show_data(config: "TrainConfig", source: "Source", *, to_stderr: bool) -> None:
    from rich.console import Console

    from g2rpo_trainer.data import skipped_text
    from g2rpo_trainer.report.tables import start_table

    console = Console(stderr=to_stderr)
    console.print(start_table(config, source))
    if skipped := skipped_text(source.summary()):
        console.print(skipped, markup=False, highlight=False, soft_wrap=True)


def _require_memory(config: "TrainConfig") -> None:
    """Warn of what may not fit on the device; refuse what cannot, before any weights are loaded."""
    from g2rpo_trainer.device_fit import device_memory, require_memory
    from g2rpo_trainer.launch import Launch
    from g2rpo_trainer.sharding import wants_sharding

    ranks = Launch.read().size
    warning = require_memory(
        config,
        device_memory(config.model.device),
        ranks=ranks,
        is_sharded=wants_sharding(config.model, ranks),
    )
    if warning:
        typer.echo(f"warning: {warning}", err=True)


def _say_how_to_resume(path: Path, reason: str) -> None:
    from g2rpo_trainer.interruption import resume_command

    if not (path / "config.yaml").exists():
        typer.echo("stopped before the run began", err=True)
        return
    typer.echo(f"{reason}\ncontinue with: {resume_command(path)}", err=True)


def _say_what_is_where(summary: Mapping[str, Any], path: Path, *, to_stderr: bool) -> None:
    from rich.console import Console

    from g2rpo_trainer.run_folder import RunFolder

    folder = RunFolder.open(path)
    checkpoint = folder.checkpoints.latest()
    places = {
        "checkpoint": checkpoint.path if checkpoint else None,
        "merged model": path / "final",
        "plots": folder.plots_path,
    }
    name = shlex.quote(str(path))
    lines = [
        f"{summary['steps']} steps in {summary['seconds']:.0f} s; everything is in {path}",
        *(f"  {what}: {place}" for what, place in places.items() if place and place.exists()),
        "next:",
        f"  g2rpo report {name}  # writes {path / 'report.html'}, a page to look at and hand on",
        f"  g2rpo eval {name} --items 256 --samples answers.jsonl  # more items, every answer",
    ]
    console = Console(stderr=to_stderr)
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
