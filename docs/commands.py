"""Write the page of commands from the program itself, so that it cannot fall behind."""

from typing import Any

import typer.main
from typer.cli import get_docs_for_click

from g2rpo_cli.app import app

_MARK = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the mark in a page by all commands; called by MkDocs."""
    if _MARK not in markdown:
        return markdown
    command = typer.main.get_command(app)
    context = command.context_class(command, info_name="g2rpo")
    text = get_docs_for_click(obj=command, ctx=context, name="g2rpo")
    # The page has a title of its own, as a page on the program.
    return markdown.replace(_MARK, text.partition("\n")[2])
