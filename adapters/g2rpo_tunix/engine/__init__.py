"""``g2rpo train --engine tunix``: a run as described, trained by tunix.

====================  =======================================================================
``loop.py``           a run: evaluate, let tunix train, save, report
``options.py``        what of a run's description this engine honours, in tunix's words
``policy.py``         models of tunix's own classes, from the package or a folder
``cluster.py``        tunix's cluster for one process
``prompts.py``        the run's records as a tunix dataset, and their rewards
``stepping.py``       the learner, which stops after every step to log and save
``evaluation.py``     held-out rewards
====================  =======================================================================
"""

from g2rpo.run.interrupt import Interrupted

from .loop import train

__all__ = ["Interrupted", "train"]
