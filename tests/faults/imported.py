"""All that a run imports, for processes that are forked; one thread, since a fork loses others."""

import matplotlib.pyplot  # noqa: F401
import torch

import g2rpo_trainer.loop
import g2rpo_trainer.report.plots  # noqa: F401

torch.set_num_threads(1)
