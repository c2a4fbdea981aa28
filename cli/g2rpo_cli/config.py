"""``g2rpo config``: check a configuration, and say what it will do, without running it."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from g2rpo_cli._errors import need, reported
from g2rpo_cli._quiet import hide_foreign_bars

if TYPE_CHECKING:
    from rich.table import Table

    from g2rpo_trainer.config import TrainConfig
    from g2rpo_trainer.device_fit import Fit


def config(
    file: Annotated[str, typer.Argument(metavar="FILE|PRESET", help="YAML file, or preset.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Values over those of the file."),
    ] = None,
    changed: Annotated[
        bool, typer.Option("--changed", help="Leave out keys that have their defaults.")
    ] = False,
    on: Annotated[
        str | None,
        typer.Option(
            "--on",
            metavar="GPU",
            help="Estimate for this GPU (`A100`, `H100`, …) in place of the device here.",
        ),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of processes. With several, `model.sharding=fsdp` divides the model.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a configuration; show every value, its origin, and what will fit on the device.

    Nothing is trained and no weights are loaded. Of the model only its configuration is read. Ends
    with status 1 where the weights and the optimiser alone do not fit.

    **Examples**

    - `g2rpo config run.yaml`

    - `g2rpo config vlm --changed rollout.num_generations=16`

    - `g2rpo config vlm-fsdp --on H100 --gpus 8`
    """
    need("g2rpo config", "pydantic", "yaml", "rich", extra="cli")
    with reported():
        from g2rpo_trainer.config import BUILTIN_SOURCES, config_origins, parse_setting

        overrides = dict(parse_setting(text, "") for text in settings or [])
        found, origins = config_origins(file, overrides)
        if found.data.source in BUILTIN_SOURCES:
            found.check_tasks(BUILTIN_SOURCES[found.data.source], found.data.tasks)
        fit, reason = _estimated(found, on, gpus)
        if as_json:
            typer.echo(_json(found, origins, fit, reason))
        else:
            _show(found, origins, fit, reason, is_short=changed)
        if fit is not None and fit.verdict == "impossible":
            raise typer.Exit(1)


def _estimated(config: "TrainConfig", on: str | None, gpus: int | None) -> tuple["Fit | None", str]:
    """Return the estimate, or None and why there is none."""
    from g2rpo._extras import missing_modules, needs
    from g2rpo._suggest import unknown_name
    from g2rpo_trainer.errors import RunError

    if missing := missing_modules("torch", "transformers"):
        return None, needs("the estimate", *missing, extra="torch")
    from g2rpo_trainer.device_fit import DeviceMemory, device_memory, fit_of
    from g2rpo_trainer.launch import Launch
    from g2rpo_trainer.sharding import wants_sharding
    from g2rpo_trainer.step_time import GPUS

    if on is not None and on not in GPUS:
        raise RunError(f"--on: {unknown_name('GPU', on, GPUS)}")
    hide_foreign_bars()
    ranks = gpus or Launch.read().size
    is_sharded = wants_sharding(config.model, ranks)
    try:
        if on is None:
            memory = device_memory(config.model.device)
        else:
            memory = DeviceMemory(on, GPUS[on].memory, GPUS[on].memory)
        return fit_of(config, memory, ranks=ranks, is_sharded=is_sharded), ""
    except RunError as error:
        return None, str(error)


def _json(config: "TrainConfig", origins: dict[str, str], fit: "Fit | None", reason: str) -> str:
    found: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "origins": origins,
        "estimate": None if fit is None else _estimate_json(config, fit),
    }
    if reason:
        found["no_estimate"] = reason
    return json.dumps(found, indent=2, ensure_ascii=False)


def _estimate_json(config: "TrainConfig", fit: "Fit") -> dict[str, Any]:
    from g2rpo_trainer.step_time import gpu_of, step_seconds

    estimate, gpu = fit.estimate, gpu_of(fit.memory.name)
    return {
        "device": fit.memory._asdict(),
        "parameters": estimate.shape.parameters,
        "trained": estimate.shape.trained,
        "prompt_tokens": estimate.work.prompt,
        "completion_tokens": estimate.work.completion,
        "bytes": estimate.phases,
        "peak": {"phase": estimate.peak_phase, "bytes": estimate.peak},
        "verdict": fit.verdict,
        "text": fit.text(),
        "batch_size_that_fits": fit.rows,
        "micro_batch_tokens_that_fit": fit.tokens,
        "step_seconds": step_seconds(estimate, gpu) if gpu else None,
    }


def _show(
    config: "TrainConfig",
    origins: dict[str, str],
    fit: "Fit | None",
    reason: str,
    *,
    is_short: bool,
) -> None:
    from rich.console import Console

    console = Console()
    console.print(_values_table(config, origins, is_short))
    if fit is None:
        lines = [f"no estimate of the memory: {reason}"]
    else:
        console.print(_memory_table(fit))
        lines = _lines(config, fit)
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=not console.is_terminal)


def _values_table(config: "TrainConfig", origins: dict[str, str], is_short: bool) -> "Table":
    """Return a row of each value under the name of its section."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("key", box=None, pad_edge=False)
    table.add_column("value", overflow="fold")
    table.add_column("from", style="dim", overflow="fold")
    values, heading = config.model_dump(mode="json"), ""
    for key, origin in origins.items():
        if is_short and origin == "default":
            continue
        section, _, name = key.rpartition(".")
        if section != heading:
            table.add_row(f"[bold]{section}[/]")
            heading = section
        value: Any = values
        for part in key.split("."):
            value = value[part]
        text = escape(json.dumps(value, ensure_ascii=False))
        table.add_row(f"  {name}" if section else name, text, escape(origin))
    return table


def _memory_table(fit: "Fit") -> "Table":
    """Return a column of the phases, and a row of each part in GiB."""
    from rich.table import Table

    phases = fit.estimate.phases
    table = Table(title=f"\nMemory of {fit.memory.name} [GiB]", title_justify="left", box=None)
    table.add_column("")
    for phase in phases:
        table.add_column(phase, justify="right")
    for part in dict.fromkeys(part for parts in phases.values() for part in parts):
        table.add_row(part, *(_cell(parts.get(part)) for parts in phases.values()))
    table.add_section()
    table.add_row("all", *(_cell(sum(parts.values())) for parts in phases.values()), style="bold")
    return table


def _cell(size: int | None) -> str:
    return "" if size is None else f"{size / 2**30:.2f}"


def _lines(config: "TrainConfig", fit: "Fit") -> list[str]:
    from g2rpo_trainer.step_time import gpu_of, step_seconds

    estimate, work = fit.estimate, fit.estimate.work
    is_known = config.rollout.max_prompt_length is not None
    assumed = "" if is_known else " (assumed, as rollout.max_prompt_length is null)"
    lines = [
        fit.text() + ("" if fit.verdict != "fits" else ": it fits"),
        f"{estimate.shape.parameters:,} parameters, {estimate.shape.trained:,} trained; "
        f"prompts of {work.prompt} tokens{assumed}, and responses of {work.completion}",
        f"would fit: rollout.batch_size up to {fit.rows}, optimization.micro_batch_tokens up to "
        f"{fit.tokens}",
    ]
    if gpu := gpu_of(fit.memory.name):
        ranges = step_seconds(estimate, gpu)
        parts = ", ".join(f"{name} {low:.0f}–{high:.0f} s" for name, (low, high) in ranges.items())
        lines.append(f"a step, by arithmetic and not measured: {parts}")
    return lines
