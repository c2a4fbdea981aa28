"""G²RPO in TRL: a trainer that knows tasks, its configuration, and the built-in rewards."""

from importlib.metadata import version

from g2rpo._extras import require

_OLDEST, _BELOW = (1, 16), (1, 17)


def _check_version() -> None:
    """Raise unless a release of TRL is installed whose private methods are the ones overridden."""
    require("g2rpo_trl", "trl", extra="trl")
    found = version("trl")
    numbers = tuple(int(part) for part in found.split(".")[:2])
    if not _OLDEST <= numbers < _BELOW:
        oldest, below = (".".join(map(str, each)) for each in (_OLDEST, _BELOW))
        raise ImportError(
            f"g2rpo_trl is made for trl >={oldest},<{below}, but trl {found} is installed; "
            f'run: pip install "trl>={oldest},<{below}"'
        )


_check_version()

from .config import G2RPOConfig  # noqa: E402
from .trainer import G2RPOTrainer  # noqa: E402

__all__ = ["G2RPOConfig", "G2RPOTrainer"]
