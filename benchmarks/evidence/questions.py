"""The questions, each with the settings that answer it, and how its table shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .simulator import Setting
from .world import LONGEST

RATES = (0.03, 0.1, 0.3)


@dataclass(frozen=True)
class Question:
    """A question in words, and settings by name.

    Attributes
    ----------
    text : str
        The question.
    settings : mapping of str to Setting
        By name; the others are compared with the first.
    columns : tuple of str
        Names of the table's columns, see :data:`benchmarks.evidence.tables.COLUMNS`.
    clean : mapping of str to Setting
        By the same names, each setting without the disturbance, for the column "lost".
    rates : bool
        Run every setting at each learning rate on seeds of their own, and report it at its best.
    """

    text: str
    settings: Mapping[str, Setting]
    columns: tuple[str, ...] = ("reward", "difference", "worst task", "area")
    clean: Mapping[str, Setting] = field(default_factory=dict)
    rates: bool = False


GAUSSIAN, GRPO = Setting(), Setting(estimator="grpo")
CORE = {
    "grpo": GRPO,
    "gaussian": GAUSSIAN,
    "gaussian, no stage": Setting(options={"task_stage": None}),
    "dr-grpo": Setting(estimator="dr-grpo"),
    "rloo": Setting(estimator="rloo"),
    "ema-grpo": Setting(estimator="ema-grpo"),
}


def _stage(stage: str | None) -> Setting:
    return Setting(options={"task_stage": stage})


def _estimators() -> dict[str, Setting]:
    plain = ("grpo", "dr-grpo", "grpo-batch", "rloo", "gdpo", "ema-grpo", "opo", "pass@k")
    more = ("reinforce++", "reinforce++-baseline")
    stages = {"none": None, "match": "match", "match-all": "match-all"}
    return {
        **{name: Setting(estimator=name) for name in (*plain, *more)},
        "gaussian": GAUSSIAN,
        **{f"gaussian, stage {name}": _stage(stage) for name, stage in stages.items()},
    }


def _disturbed(text: str, **changes: Any) -> Question:
    settings = {name: replace(setting, **changes) for name, setting in CORE.items()}
    return Question(text, settings, ("reward", "difference", "worst task", "lost", "by task"), CORE)


def _weighed(name: str, base: Setting) -> dict[str, Setting]:
    of_tasks = replace(base, loss={"aggregation": "task"})
    return {
        f"{name}, token mean": base,
        f"{name}, mean by task": of_tasks,
        f"{name}, weights follow the norms": replace(base, follow_norms=5),
        f"{name}, both": replace(of_tasks, follow_norms=5),
    }


def _length() -> dict[str, Setting]:
    term = replace(GAUSSIAN, length="term")
    reward = replace(GAUSSIAN, length="reward")
    open_term, open_reward = replace(term, gate=False), replace(reward, gate=False)
    return {
        "off": GAUSSIAN,
        **{f"term, weight {w}": replace(term, length_weight=w) for w in (0.1, 0.3, 1.0)},
        "term, weight .3, no gate": open_term,
        "term, weight 1, no gate": replace(open_term, length_weight=1.0),
        "in the reward, weight .1": replace(reward, length_weight=0.1),
        "in the reward, weight .3": reward,
        "in the reward, weight .3, no gate": open_reward,
        "term, weight .3, calibrated": replace(term, calibrated=True),
        "term, weight 1, calibrated": replace(term, calibrated=True, length_weight=1.0),
    }


def _entropy(**changes: Any) -> Question:
    base = replace(GAUSSIAN, **changes)
    exact = {f"exact, weight {w}": replace(base, entropy_weight=w) for w in (0.02, 0.1, 0.5)}
    settings = {
        "off": base,
        **exact,
        **{
            name.replace("exact", "sampled"): replace(setting, entropy_estimate="sampled")
            for name, setting in exact.items()
        },
        "exact, adaptive from .02": replace(base, entropy_weight=0.02, entropy_rate=0.02),
    }
    columns = ("reward", "difference", "worst task", "entropy", "outside")
    text = "Does the entropy term hold its band of .2 to .6 nats?"
    how = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in changes.items())
    return Question(f"{text} Here with {how}.", settings, columns)


def _losses() -> dict[str, Setting]:
    of_length = {"max_completion_length": LONGEST}
    losses: dict[str, dict[str, Any]] = {
        "ppo": {},
        "grpo": {},
        "dapo": {},
        "dr-grpo": of_length,
        "gspo": {},
        "cispo": {},
        "sapo": {},
    }
    return {
        "ppo, one update": GAUSSIAN,
        **{
            f"{name}, four updates": Setting(loss={"loss_type": name, **more}, updates=4)
            for name, more in losses.items()
        },
    }


def _components(weight: float) -> Question:
    settings = {
        "gaussian, summed": replace(GAUSSIAN, format_weight=weight),
        "gaussian, decoupled": Setting(format_weight=weight, options={"decoupled": True}),
        "grpo, summed": replace(GRPO, format_weight=weight),
        "gdpo, decoupled": Setting(estimator="gdpo", format_weight=weight),
    }
    text = "Are components summed or matched one by one, with one that soon says nothing more?"
    return Question(f"{text} Its weight is {weight:g}.", settings)


def _ties() -> dict[str, Setting]:
    rounded = {"resolution": 0.1}
    return {
        "midpoint": GAUSSIAN,
        "barycentre": Setting(options={"ties": "barycentre"}),
        "resolution .1": Setting(options=rounded),
        **{f"noise {n}": Setting(noise=n) for n in (0.02, 0.1)},
        **{f"noise {n}, resolution .1": Setting(noise=n, options=rounded) for n in (0.02, 0.1)},
        **{f"grpo, noise {n}": Setting(estimator="grpo", noise=n) for n in (0.02, 0.1)},
    }


def _signal() -> dict[str, Setting]:
    dynamic = {"candidates": 4}
    return {
        "standardize": GAUSSIAN,
        "match": _stage("match"),
        "match-all": _stage("match-all"),
        "standardize, dynamic sampling": replace(GAUSSIAN, **dynamic),
        "standardize, 3 prompts": replace(GAUSSIAN, prompts=3),
        "standardize, 4 prompts": replace(GAUSSIAN, prompts=4),
        "grpo": GRPO,
        "grpo, dynamic sampling": replace(GRPO, **dynamic),
        "grpo, 4 prompts": replace(GRPO, prompts=4),
    }


def _together() -> dict[str, Setting]:
    settings = {}
    for name in ("gaussian", "grpo"):
        base = Setting(estimator=name, prompts=3)
        dynamic = Setting(estimator=name, candidates=4)
        settings |= {
            f"{name}, 3 prompts": base,
            f"{name}, 3 prompts, weights follow": replace(base, follow_norms=5),
            f"{name}, dynamic sampling": dynamic,
            f"{name}, dynamic sampling, weights follow": replace(dynamic, follow_norms=5),
        }
    return settings


def _sizes() -> dict[str, Setting]:
    shapes = ((8, 2), (4, 4), (16, 1))
    return {
        f"{name}, {size} responses to {prompts} prompts": Setting(
            estimator=name, group_size=size, prompts=prompts
        )
        for size, prompts in shapes
        for name in ("grpo", "gaussian")
    }


QUESTIONS = {
    "estimators": Question(
        "Which estimator gives the most reward, each at its best learning rate of three?",
        _estimators(),
        ("reward", "difference", "worst task", "area", "norms", "W1", "by task"),
        rates=True,
    ),
    "equity": Question(
        "What evens out the gradients of the tasks, and does reward follow?",
        {
            **_weighed("gaussian", GAUSSIAN),
            "gaussian, sequence mean": Setting(loss={"aggregation": "sequence"}),
            **_weighed("grpo", GRPO),
        },
        ("reward", "difference", "worst task", "norms", "share", "by task"),
    ),
    "scale": _disturbed(
        "The rewards of grounding are ten times as large as the others.", scale=10.0
    ),
    "small scale": _disturbed("The rewards of grounding are a tenth of what they were.", scale=0.1),
    "outliers x 10": _disturbed(
        "1 % of the rewards are ten times as large.", outliers=(0.01, 10.0)
    ),
    "outliers x 100": _disturbed(
        "1 % of the rewards are a hundred times as large.", outliers=(0.01, 100.0)
    ),
    "noisy verifier": _disturbed(
        "5 % of the all-or-nothing rewards are turned round.", flipped=0.05
    ),
    "signal": Question(
        "How many groups have no signal, and what do match-all's advantages for them and dynamic "
        "sampling do?",
        _signal(),
        ("reward", "difference", "worst task", "no signal", "misplaced", "sampled"),
    ),
    "together": Question(
        "Dynamic sampling and task weights together, at about the same number of rollouts as with "
        "three prompts of each task",
        _together(),
        ("reward", "difference", "worst task", "norms", "sampled", "by task"),
    ),
    "length": Question(
        "What do the ways to shape lengths move, and what does it cost?",
        _length(),
        ("reward", "difference", "worst task", "off target", "lengths"),
    ),
    "entropy, rate .3": _entropy(learning_rate=0.3),
    "entropy, rate 1": _entropy(learning_rate=1.0),
    "entropy, temperature 2": _entropy(temperature=2.0),
    "losses": Question(
        "Which loss bears four updates on the same rollouts, each at its best learning rate?",
        _losses(),
        rates=True,
    ),
    "aggregation": Question(
        "How should the loss be averaged?",
        {
            name: Setting(loss={"aggregation": name, **more})
            for name, more in (
                ("token", {}),
                ("sequence", {}),
                ("constant", {"max_completion_length": LONGEST}),
                ("task", {}),
            )
        },
        ("reward", "difference", "worst task", "area", "norms"),
    ),
    "components, weight .3": _components(0.3),
    "components, weight 1": _components(1.0),
    "ties": Question("How are ties and rewards that differ by noise alone to be treated?", _ties()),
    "group size": Question("What do group sizes change at the same number of rollouts?", _sizes()),
}
