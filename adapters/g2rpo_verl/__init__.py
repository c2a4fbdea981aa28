"""G²RPO in verl: advantage estimators, trainers that know tasks, a loss, and rewards.

verl loads :mod:`g2rpo_verl.plugin` by itself, in every process, through the entry-point group
``verl.plugins``. Two settings then switch it on::

    algorithm.adv_estimator=g2rpo trainer.v1.trainer_mode=g2rpo_sync

Its options stand under ``algorithm.g2rpo``, see :class:`g2rpo_verl.options.Options`.
"""

from importlib.util import find_spec

if find_spec("verl") is None:
    # Imported here: verl loads the plug-in in every process, and most need none of the core.
    from g2rpo._extras import require

    require("g2rpo_verl", "verl", extra="verl")
