"""Which package trains and evaluates: the engines by the name that a description gives them."""

from importlib import import_module
from typing import Any, NamedTuple

from g2rpo_cli._errors import need

__all__ = ["ENGINES", "Engine", "load_engine", "refuse_processes"]


class Engine(NamedTuple):
    """A module, and what it needs.

    It has ``train(description, *, resume, display)`` and ``evaluate(model, description, display, *,
    on_samples)``.

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


def load_engine(name: str, command: str) -> Any:
    """Import an engine, or exit with the command to install what it lacks.

    Parameters
    ----------
    name : str
        One of `ENGINES`.
    command : str
        What the user has called, such as ``"train"``.
    """
    engine = ENGINES[name]
    need(f"g2rpo {command} --engine {name}", *engine.libraries, extra=engine.extra)
    return import_module(engine.module)


def refuse_processes(engine: str) -> None:
    """Raise if several processes were launched for an engine that works in a single one."""
    from g2rpo.run import RunError
    from g2rpo.run.launch import Launch

    size = Launch.read().size
    if size > 1 and engine != "reference":
        raise RunError(
            f"{size} processes were launched, but --engine {engine} works in a single one; start "
            "it without a launcher"
        )
