"""``g2rpo train --engine tunix``: a run as described, trained by tunix.

====================  =======================================================================
``loop.py``           what a run loads and saves; tunix trains, and calls back
``options.py``        what of a run's description this engine honours, in tunix's words
``policy.py``         models of tunix's own classes, from the package or a folder
``cluster.py``        tunix's cluster for one process
``prompts.py``        the run's records as a tunix dataset, and their rewards
``stepping.py``       the learner, which stops after every step to log and save
``evaluation.py``     held-out rewards
====================  =======================================================================
"""

from g2rpo.run.interrupt import Interrupted

from .evaluation import evaluate
from .loop import train

__all__ = ["Interrupted", "evaluate", "train"]
