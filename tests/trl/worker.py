"""One process of the runs that test_terms.py launches: ``worker.py FOLDER OPTIONS``.

The first process writes what was logged to ``logs.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    # The folder of a script is on its path, but not that of a module that pytest collects.
    import tiny

    folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    made = tiny.trainer(folder, str(folder / "model"), **options)
    made.train()
    if made.accelerator.is_main_process:
        (folder / "logs.json").write_text(json.dumps(tiny.logs(made)))


if __name__ == "__main__":
    main()
