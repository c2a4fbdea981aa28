"""``g2rpo data``: what a source of prompts holds, and the same records for other trainers."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from g2rpo_cli._errors import need, reported
from g2rpo_cli._options import Rewards, Settings, reward_functions, search_working_folder
from g2rpo_cli._output import Json, bar, print_json

if TYPE_CHECKING:
    from g2rpo_trainer.record import Record

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Look at data before training on it, or convert them for other trainers.",
)

_Source = Annotated[
    str, typer.Argument(help="`builtin`, a file, a folder, `owner/name`, or `reasoning-gym:NAME`.")
]

# So much of a question and of an answer fits a line [characters].
_LONGEST = 60


@app.command()
def show(
    source: _Source,
    settings: Settings = None,
    json: Json = False,
) -> None:
    """Check every record of a source, and show its tasks with the first held-out record of each.

    **Examples**

    - `g2rpo data show train.jsonl`

    - `g2rpo data show folder --set data.mixing.temperature=2 --set data.skip_broken=true`

    - `g2rpo data show reasoning-gym:chain_sum,leg_counting`
    """
    need("g2rpo data", "pydantic", "yaml", "rich", "PIL", "sklearn", extra="cli")
    with reported():
        from rich.console import Console

        from g2rpo_trainer.config import load_config
        from g2rpo_trainer.data import open_source, skipped_text, summary_table

        opened = open_source(load_config(None, {"data.source": source}, settings or []).data)
        # The first records are opened before the summary, which counts what turns out broken.
        firsts = [_in_short(task, opened.held_out_records(task, 1)) for task in opened.tasks]
        summary = opened.summary()
        if json:
            print_json(asdict(summary))
            return
        console = Console()
        console.print(summary_table(summary))
        for text in (*firsts, skipped_text(summary)):
            if text:
                console.print(text, markup=False, highlight=False, soft_wrap=True)


@app.command()
def convert(
    source: _Source,
    to: Annotated[str, typer.Option("--to", metavar="TRAINER", help="`trl`, `verl` or `tunix`.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for train.parquet and test.parquet.")
    ],
    prompts: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Write so many prompts in the order of a run, tasks mixed as `data.mixing` says. "
            "Default: each record once.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of that run.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an older data set.")] = False,
    reward: Rewards = None,
    settings: Settings = None,
) -> None:
    """Write the records of a source as the data set of another trainer, images included.

    The records that `g2rpo train` would hold out go into test.parquet. Each prompt begins with how
    to answer, as in training. Rewards by the records need the trainer's own module:
    `g2rpo_trl.rewards`, `g2rpo_verl.rewards`, or `g2rpo.rewards` in tunix.

    **Examples**

    - `g2rpo data convert train.jsonl --to trl -o trl-data`

    - `g2rpo data convert pictures --to verl -o verl-data --set data.skip_broken=true`

    - `g2rpo data convert builtin-text --to tunix -o tunix-data --prompts 4096 --seed 1`
    """
    need("g2rpo data convert", "pydantic", "yaml", "rich", "PIL", "pyarrow", extra="cli")
    with reported():
        from g2rpo._suggest import unknown_name
        from g2rpo_cli.hosts.conversion import check_folder, write_records
        from g2rpo_cli.hosts.rows import HOSTS
        from g2rpo_trainer.config import load_config
        from g2rpo_trainer.data import open_source, skipped_text
        from g2rpo_trainer.errors import RunError
        from g2rpo_trainer.files import replacing

        if to not in HOSTS:
            raise RunError(f"--to: {unknown_name('trainer', to, HOSTS)}")
        check_folder(output, force)
        search_working_folder()
        overrides = {"data.source": source, **reward_functions(reward)}
        config = load_config(None, overrides, settings or [])
        opened = open_source(config.data, functions=config.rewards.functions)
        if prompts is None and any(t.training is None for t in opened.summary().tasks.values()):
            raise RunError(
                f"the records of {source} are drawn without end; say how many: --prompts"
            )
        output.parent.mkdir(parents=True, exist_ok=True)
        with replacing(output) as folder:
            folder.mkdir()
            counts = write_records(
                opened,
                to,
                folder,
                prompts=prompts,
                seed=seed,
                eval_items=config.data.eval_items,
                track=bar,
            )
        for name, count in counts.items():
            typer.echo(f"{output / name}: {count:,} {'record' if count == 1 else 'records'}")
        if skipped := skipped_text(opened.summary()):
            typer.echo(skipped)


def _in_short(task: str, records: "list[Record]") -> str:
    if not records:
        return f"{task}: no held-out record can be used"
    record = records[0]
    images = [f"[{image.width} × {image.height}] " for image in record.images]
    videos = [
        f"[{video.width} × {video.height}, {video.duration:.1f} s] " for video in record.videos
    ]
    shown = "".join([*images, *videos])
    answer: Any = record.answer
    # The answer of reasoning-gym is an entry, of which its own answer says most.
    answer = answer["answer"] if isinstance(answer, dict) else answer
    return f"{task}: {shown}{_line(record.problem)} → {_line(answer)}"


def _line(text: object) -> str:
    from g2rpo._shown import visible

    line = visible(" ".join(str(text).split()))
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"
