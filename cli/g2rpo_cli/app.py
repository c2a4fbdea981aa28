"""The commands, put together. They import what they need when they run, so that help is quick."""

import os
from shutil import get_terminal_size
from typing import Annotated

import typer

from g2rpo_cli import (
    advantages,
    compare,
    config,
    data,
    export,
    info,
    init,
    report,
    tasks,
    train,
    verify,
)
from g2rpo_cli import eval as eval_

app = typer.Typer(
    name="g2rpo",
    no_args_is_help=True,
    # Panels cut the names of options in a narrow terminal, where plain text is whole.
    rich_markup_mode="markdown" if get_terminal_size().columns >= 80 else None,
    # Errors are reported by `g2rpo_cli._errors`, in one line.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.train)
app.command("eval")(eval_.evaluate)
app.command("report")(report.report)
app.command("init")(init.init)
app.command("config")(config.config)
app.command("info")(info.info)
app.command("advantages")(advantages.advantages)
app.command("compare")(compare.compare)
app.command("verify")(verify.verify)
app.command("export")(export.export)
app.add_typer(tasks.app, name="tasks")
app.add_typer(data.app, name="data")


def _print_version(wanted: bool) -> None:
    if wanted:
        from g2rpo import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def describe(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error, as G2RPO_DEBUG=1 does.")
    ] = False,
) -> None:
    """Train vision-language models with Gaussian group-relative policy optimisation.

    Start with `g2rpo train`: it trains a small policy on six image tasks, without any download.

    Exit status: 0 if all went well; 1 if a run failed or a check did not hold; 2 if the command,
    its files or its settings must be changed; 130 after Ctrl-C. `NO_COLOR=1` turns colours off.
    """
    if debug:  # the processes that a run starts see it, too
        os.environ["G2RPO_DEBUG"] = "1"
