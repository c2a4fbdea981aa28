"""What there is about a run: its description, its folder, its display, its report.

Nothing here is imported by ``import g2rpo``: these modules need Pydantic, PyYAML, Rich and
Matplotlib, which come with the extras ``cli`` and ``torch``.
"""

from importlib.util import find_spec

_MISSING = [name for name in ("pydantic", "yaml", "rich", "matplotlib") if find_spec(name) is None]
if _MISSING:
    raise ImportError(
        f"g2rpo_trainer.run needs {', '.join(_MISSING)}, which the core does not install; "
        'run: pip install "g2rpo[torch]"'
    )

from g2rpo_trainer.run.description import (  # noqa: E402  (the check above must come first)
    RunDescription,
    dump_description,
    load_description,
)
from g2rpo_trainer.run.display import Display  # noqa: E402
from g2rpo_trainer.run.errors import RunError  # noqa: E402
from g2rpo_trainer.run.folder import Checkpoint, RunFolder  # noqa: E402

__all__ = [
    "Checkpoint",
    "Display",
    "RunDescription",
    "RunError",
    "RunFolder",
    "dump_description",
    "load_description",
]
