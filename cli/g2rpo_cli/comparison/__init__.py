"""Tables of rewards from files, and estimators side by side on them, in numbers and in a picture.

The formulas are the core's. In the order of the data: ``rows`` (files), ``rewards`` and ``builtin``
(tables of rewards), ``estimators`` (names with options), ``measure`` (their numbers), ``picture``.
It needs the extra ``cli``.
"""

from g2rpo_cli.comparison.builtin import TOPOLOGIES, figure_rewards, topology_rewards
from g2rpo_cli.comparison.estimators import named_estimator
from g2rpo_cli.comparison.measure import (
    Comparison,
    EstimatorReport,
    TaskReport,
    TaskRewards,
    compare,
)
from g2rpo_cli.comparison.picture import plot_comparison
from g2rpo_cli.comparison.rewards import RewardTable, read_rewards, write_advantages

__all__ = [
    "TOPOLOGIES",
    "Comparison",
    "EstimatorReport",
    "RewardTable",
    "TaskReport",
    "TaskRewards",
    "compare",
    "figure_rewards",
    "named_estimator",
    "plot_comparison",
    "read_rewards",
    "topology_rewards",
    "write_advantages",
]
