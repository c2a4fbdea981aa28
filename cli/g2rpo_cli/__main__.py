"""Run the command line as ``python -m g2rpo_cli``."""

from g2rpo_cli.main import main

if __name__ == "__main__":
    main()
