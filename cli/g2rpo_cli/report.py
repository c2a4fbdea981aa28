"""``g2rpo report``: a page about one run, or several beside each other."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from g2rpo_cli._errors import need, reported
from g2rpo_cli._options import search_working_folder


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of runs, finished or not.", metavar="RUN…")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.html",
            help="The page. Default: `report.html` in the folder of a single run, else here.",
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", "-t", help="A task to show; repeat it. Default: all."),
    ] = None,
) -> None:
    """Write one HTML page about runs, and their figures as PNG and SVG.

    The page shows each task before and after with intervals, warnings, the course of reward,
    length, entropy and gradient, the distribution of the advantages, answers with their images,
    and the configuration. It needs no network and no other file.

    Runs that differ in their seeds alone are shown as a mean with its interval; of several
    configurations, such as estimators, the differences are paired by seed.

    Exit status: 0, or 2 if a run cannot be read or the page cannot be written.

    **Examples**

    - `g2rpo report runs/g2rpo`

    - `g2rpo report runs/gaussian-* runs/grpo-* -o estimators.html`

    - `g2rpo report runs/g2rpo -t maths -t ocr -o two-tasks.html`
    """
    need(
        *("g2rpo report", "bokeh", "jinja2", "matplotlib", "pydantic", "scipy", "yaml"),
        extra="cli",
    )
    with reported():
        page = _target(runs, output)
        from g2rpo_cli.reporting import build_page, draw_report, group_runs, read_runs
        from g2rpo_trainer.files import write_text

        # A configuration may name a loss of the user's own.
        search_working_folder()
        groups = group_runs(read_runs(runs, task))
        text = build_page(groups)
        figures = page.with_name(f"{page.stem}-figures")
        with _writing(page):
            page.parent.mkdir(parents=True, exist_ok=True)
            write_text(page, text)
            drawn = draw_report(groups, figures)
        for group in groups:
            for run in group.runs:
                print(*run.notes, sep="\n", end="\n" if run.notes else "")
        print(f"page: {page} ({len(text.encode()) / 1e6:.1f} MB)")
        print(f"figures: {figures} ({len(drawn)} files)")


def _target(runs: list[Path], output: Path | None) -> Path:
    """Return the file to write, which is refused before anything is read."""
    from g2rpo_trainer.errors import RunError

    if output is None:
        return (runs[0] if len(runs) == 1 else Path()) / "report.html"
    if output.is_dir():
        raise RunError(
            f"--output {output} is a folder; name a file in it: {output / 'report.html'}"
        )
    if output.suffix.lower() not in (".html", ".htm"):
        raise RunError(f"--output {output}: must end in .html")
    return output


@contextmanager
def _writing(page: Path) -> Iterator[None]:
    from g2rpo_trainer.errors import RunError

    try:
        yield
    except OSError as error:
        raise RunError(
            f"{page} cannot be written ({error.strerror}); name another file with --output"
        ) from None
