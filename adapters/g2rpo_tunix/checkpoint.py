"""The state of an estimator in tunix's checkpoints, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

_KEY = "g2rpo"


class Stateful(Protocol):
    """An object with state that lives from step to step."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON holds it; empty if there is none."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        ...


def keep_state(cluster: Any, part: Stateful) -> None:
    """Save a part's state with every checkpoint of the actor, and restore it if one was read.

    Parameters
    ----------
    cluster : tunix.rl.rl_cluster.RLCluster
        Cluster; its actor may have been restored when it was built.
    part : Stateful
        Such as an estimator.

    Raises
    ------
    ValueError
        If the checkpoint's state does not fit.
    """
    trainer = cluster.actor_trainer
    if trainer.train_steps:
        part.load_state_dict(trainer._restored_custom_metadata.get(_KEY, {}))
    metadata, save = trainer.custom_checkpoint_metadata_fn, trainer.checkpoint_manager.save

    def with_state() -> dict[str, Any]:
        return metadata() | {_KEY: part.state_dict()}

    def save_with_state(*args: Any, custom_metadata: Any = None, **options: Any) -> Any:
        if custom_metadata is None:
            # The save at a run's end, when the step is counted already. tunix stores no metadata
            # then, and a run that went on from there would start at step 0 and without state.
            custom_metadata = with_state() | {"global_step": cluster.global_steps}
        return save(*args, custom_metadata=custom_metadata, **options)

    trainer.custom_checkpoint_metadata_fn = with_state
    trainer.checkpoint_manager.save = save_with_state
