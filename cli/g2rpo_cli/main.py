"""The entry point, which works without any extra: it then says what to install."""

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command line."""
    if find_spec("typer") is None:
        print(
            'error: the command g2rpo needs Typer; run: pip install "g2rpo[torch]" to train, '
            'or pip install "g2rpo[cli]" for the commands that need no framework',
            file=sys.stderr,
        )
        raise SystemExit(2)
    from g2rpo_cli.app import app

    app(prog_name="g2rpo")
