"""``g2rpo init``: write a commented configuration to begin with."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from g2rpo_cli._errors import need, reported
from g2rpo_cli._output import replaced_file


def init(
    preset: Annotated[
        str,
        typer.Argument(
            help="`builtin`: the demonstration; `text`, `vlm`: a model on one GPU; `vlm-lora`: "
            "adapters; `vlm-fsdp`: several GPUs."
        ),
    ] = "builtin",
    output: Annotated[Path, typer.Option("--output", "-o", help="YAML file to write.")] = Path(
        "run.yaml"
    ),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a YAML file with every key of a run and its meaning, those of a preset set.

    **Examples**

    - `g2rpo init vlm-lora`

    - `g2rpo init text -o sums.yaml && g2rpo config sums.yaml`
    """
    need("g2rpo init", "pydantic", "yaml", extra="cli")
    with reported():
        from g2rpo._suggest import unknown_name
        from g2rpo_trainer.config import PRESETS, config_template
        from g2rpo_trainer.errors import RunError

        if preset not in PRESETS:
            raise RunError(unknown_name("preset", preset, PRESETS))
        if output.is_dir():
            raise RunError(f"{output} is a folder; name a file, such as {output / 'run.yaml'}")
        if output.exists() and not force:
            raise RunError(f"{output} exists; name another file by -o, or replace it by --force")
        text = config_template(preset)
        with replaced_file(output) as file:
            file.write(text.encode())
    path = shlex.quote(str(output))
    typer.echo(f"wrote {output}\ncheck it: g2rpo config {path}\ntrain: g2rpo train -c {path}")
