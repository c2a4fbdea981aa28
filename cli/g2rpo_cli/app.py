"""The commands, put together. They import what they need when they run, so that help is quick."""

from typing import Annotated

import typer

from g2rpo_cli import advantages, compare, data, tasks, train, verify
from g2rpo_cli import eval as eval_

__all__ = ["app"]

app = typer.Typer(
    name="g2rpo",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    # Errors are reported by `g2rpo_cli._errors`, in one line.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.train)
app.command("eval")(eval_.evaluate)
app.command("advantages")(advantages.advantages)
app.command("compare")(compare.compare)
app.command("verify")(verify.verify)
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
) -> None:
    """Train vision-language models with Gaussian group-relative policy optimisation.

    Start with `g2rpo train`: it trains a small policy on six image tasks, without any download.
    """
