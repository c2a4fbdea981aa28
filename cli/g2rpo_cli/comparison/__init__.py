"""Tables of rewards from files, and estimators side by side on them, in numbers and in a picture.

Everything is computed by the core; this package reads, arranges and shows. It is not imported by
``import g2rpo``, and needs what comes with the extra ``cli``; reading and writing Parquet needs
pyarrow.
"""

from g2rpo_cli.comparison.measure import compare
from g2rpo_cli.comparison.options import named_estimator
from g2rpo_cli.comparison.picture import plot_comparison
from g2rpo_cli.comparison.reports import Comparison, EstimatorReport, TaskReport, TaskRewards
from g2rpo_cli.comparison.table import RewardTable, read_rewards
from g2rpo_cli.comparison.topologies import TOPOLOGIES, figure_rewards, topology_rewards
from g2rpo_cli.comparison.writing import write_advantages

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
