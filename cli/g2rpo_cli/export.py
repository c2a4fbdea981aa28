"""``g2rpo export``: a run's configuration as a script of TRL or a configuration of verl."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from g2rpo_cli._errors import need, reported
from g2rpo_cli._options import (
    Data,
    Rewards,
    Settings,
    given,
    reward_functions,
    search_working_folder,
)

if TYPE_CHECKING:
    from g2rpo_cli.hosts.keys import Export, Settled
    from g2rpo_trainer.config import TrainConfig


def export(
    trainer: Annotated[str, typer.Argument(help="`trl` or `verl`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    configs: Annotated[
        list[str] | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE|PRESET",
            help="YAML file or preset, as of `g2rpo train`. Repeat it.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A folder in Hugging Face format, or a model of the hub.")
    ] = None,
    data: Data = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an older export.")] = False,
    reward: Rewards = None,
    settings: Settings = None,
) -> None:
    """Write a run of `g2rpo train` for TRL or verl: script or command, options, data, rewards.

    Nothing is trained here. What the trainer has nothing for is printed line by line, and README.md
    in the folder says of every key of the configuration what became of it. The data are the run's
    prompts in their order, as `g2rpo data convert --prompts` writes them.

    **Examples**

    - `g2rpo export trl -c run.yaml -o trl-run`

    - `g2rpo export verl -c vlm -c run.yaml --model Qwen/Qwen3-VL-8B-Instruct -o verl-run`

    - `g2rpo export trl -c text --data sums.jsonl -o trl-run --set optimization.steps=500`
    """
    need("g2rpo export", "pydantic", "yaml", "rich", "PIL", "pyarrow", extra="cli")
    with reported():
        from g2rpo._suggest import unknown_name
        from g2rpo_cli.hosts import trl, verl
        from g2rpo_cli.hosts.conversion import check_folder
        from g2rpo_trainer.config import load_config
        from g2rpo_trainer.errors import RunError

        hosts = {"trl": trl.TRL, "verl": verl.VERL}
        if trainer not in hosts:
            raise RunError(unknown_name("trainer", trainer, hosts))
        host = hosts[trainer]
        check_folder(output, force, (*host.files, "README.md", "data"))
        search_working_folder()
        flags = given({"model.name": model, "data.source": data}) | reward_functions(reward)
        config = _with_a_model(load_config(configs, flags, settings or []))
        settled, counts = _write(trainer, host, config, output)
        _report(output, host.start, settled, counts)


def _with_a_model(config: "TrainConfig") -> "TrainConfig":
    from g2rpo_trainer.errors import RunError

    name = config.model.name
    if name == "builtin":
        raise RunError(
            "model.name is builtin, the policy inside this package, which other trainers cannot "
            "load; name a model by --model or by a preset, such as --config text"
        )
    if os.path.isdir(os.path.expanduser(name)):  # found from wherever the run is started
        name = str(Path(name).expanduser().resolve())
    return config.model_copy(update={"model": config.model.model_copy(update={"name": name})})


def _write(
    trainer: str, host: "Export", config: "TrainConfig", output: Path
) -> tuple["list[Settled]", dict[str, int]]:
    from g2rpo_cli._output import bar
    from g2rpo_cli.hosts.conversion import write_records
    from g2rpo_cli.hosts.keys import settle
    from g2rpo_trainer.data import open_run
    from g2rpo_trainer.files import replacing

    source = open_run(config)
    named = config.data.model_copy(update={"tasks": list(source.tasks)})
    config = config.model_copy(update={"data": named})
    settled = settle(config, host.table)
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as folder:
        (folder / "data").mkdir(parents=True)
        for name, text in host.files_of(config, settled).items():
            (folder / name).write_text(text, encoding="utf-8")
        readme = _readme(trainer, host.start, settled)
        (folder / "README.md").write_text(readme, encoding="utf-8")
        counts = write_records(
            source,
            trainer,
            folder / "data",
            prompts=config.optimization.steps * config.rollout.prompts_per_step,
            seed=config.seed,
            eval_items=config.data.eval_items,
            track=bar,
        )
    return settled, counts


def _readme(trainer: str, start: str, settled: "Sequence[Settled]") -> str:
    lost = "\n".join(f"- {line}" for line in _lost(settled)) or "Everything is carried over."
    rows = "\n".join(
        f"| `{key}` | {_cell(value)} | {fate.status} | {fate.text} |"
        for key, value, fate in settled
    )
    return (
        f"# A run of `g2rpo train` for {trainer}\n\n"
        f'```sh\npip install "g2rpo[{trainer}]"\n{start}\n```\n\n'
        "`data/train.parquet` holds the prompts of the run in their order, and `data/test.parquet` "
        "the held-out ones.\n\n"
        f"## Not carried over\n\n{lost}\n\n"
        "## Every key\n\n"
        f"| key | value | | becomes, or the reason |\n|---|---|---|---|\n{rows}\n"
    )


def _cell(value: Any) -> str:
    import json

    shown = json.dumps(value, ensure_ascii=False, default=str)
    return f"`{shown}`".replace("|", "\\|")


def _lost(settled: "Sequence[Settled]") -> list[str]:
    return [f"{key}: {fate.text}" for key, _, fate in settled if fate.status == "not carried"]


def _report(
    output: Path, start: str, settled: "Sequence[Settled]", counts: Mapping[str, int]
) -> None:
    lost = _lost(settled)
    for name, count in counts.items():
        typer.echo(f"{output / 'data' / name}: {count:,} records")
    if lost:
        typer.echo("not carried over:")
    for line in lost:
        typer.echo(f"  {line}")
    spare = sum(fate.status == "not needed" for _, _, fate in settled)
    carried = len(settled) - spare - len(lost)
    typer.echo(
        f"of {len(settled)} keys {carried} are carried over, {spare} are not needed and "
        f"{len(lost)} are not carried over; {output / 'README.md'} has them all"
    )
    typer.echo(f"start it in {output} with: {start}")
