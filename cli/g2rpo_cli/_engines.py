"""Which package trains a run: the engines by the name that a description gives them."""

from importlib import import_module
from typing import Any, NamedTuple

from g2rpo_cli._errors import need

__all__ = ["ENGINES", "Engine", "load_engine"]


class Engine(NamedTuple):
    """A module with ``train(description, *, resume, display)``, and what it needs.

    Attributes
    ----------
    module : str
        Import path.
    libraries : tuple of str
        What must be installed before it is imported.
    extra : str
        The extra of g2rpo that brings them.
    """

    module: str
    libraries: tuple[str, ...]
    extra: str


ENGINES = {
    "reference": Engine("g2rpo_torch.trainer", ("torch", "transformers", "safetensors"), "torch"),
    "jax": Engine("g2rpo_jax.trainer", ("jax", "flax", "optax", "orbax", "safetensors"), "jax"),
    "tunix": Engine("g2rpo_tunix.engine", ("jax", "flax", "tunix"), "tunix"),
}
"""Name -> engine, as in ``engine`` of a run's description."""


def load_engine(name: str) -> Any:
    """Import an engine, or exit with the command to install what it lacks."""
    engine = ENGINES[name]
    need(f"g2rpo train --engine {name}", *engine.libraries, extra=engine.extra)
    return import_module(engine.module)
