"""The entry point: registers names with verl when verl imports the modules that keep them.

=====================  =============================================================================
``g2rpo``              advantage estimator: what ``algorithm.g2rpo`` describes
``g2rpo-<name>``       the same with ``g2rpo.ESTIMATORS[name]`` for its estimator
``g2rpo_<mode>``       trainer (V1): verl's own of that mode, such as ``sync``, with tasks
=====================  =============================================================================

verl hides what goes wrong while it loads a plug-in. Nothing is loaded here yet, so that it costs
processes nothing which need none of it; what fails later fails where verl imports the module, and
ends the run.
"""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import Any

SUPPORTED = ">=0.9.1,<0.10"


def check_version(installed: str) -> None:
    """Raise if this version of verl is not one that the plug-in is made for."""
    from packaging.specifiers import SpecifierSet

    if installed not in SpecifierSet(SUPPORTED, prereleases=True):
        raise ImportError(
            f"g2rpo_verl works with verl{SUPPORTED}, but verl {installed} is installed; run: "
            f'pip install "verl{SUPPORTED}", or train without g2rpo: VERL_USE_EXTERNAL_PLUGINS=none'
        )


def register_estimators(_: Any) -> None:
    """Add the estimators to verl's registry."""
    check_version(version("verl"))
    from . import estimators

    estimators.register()


def register_trainers(_: Any) -> None:
    """Add a trainer with tasks for each of verl's own."""
    check_version(version("verl"))
    from . import trainers  # noqa: F401 - which registers them


def hand_labels_on(legacy: Any) -> None:
    """Let the legacy trainer hand the task labels on to the estimators."""
    from . import estimators

    legacy.compute_advantage = estimators.with_labels(legacy.compute_advantage)


try:
    from wrapt import when_imported
except ImportError:
    logging.getLogger(__name__).exception(
        "g2rpo_verl is not loaded, and its names will be unknown to verl; run: "
        'pip install "g2rpo[verl]"'
    )
    raise

when_imported("verl.trainer.ppo.core_algos")(register_estimators)
when_imported("verl.trainer.ppo.ray_trainer")(hand_labels_on)
when_imported("verl.trainer.ppo.v1")(register_trainers)
