"""The answers of a page: a card for each prompt, its responses beside each other."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from g2rpo_cli.reporting.groups import Group
from g2rpo_cli.reporting.reading import Item, Response, Run

# What a run writes: nothing else is put into the address of an image.
_IMAGE = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+")
# An escaped character takes up to six, one beyond ASCII up to four bytes.
_BYTES_A_CHARACTER, _BYTES_A_CARD = 6, 1500
# Accuracies may be graded.
_RIGHT = 0.5


def cards(groups: Sequence[Group], room: int) -> tuple[list[dict[str, Any]], int]:
    """Return the cards that fit into `room` bytes, and how many do not.

    Tasks take turns, so that none is left out for another.
    """
    tasks = groups[0].runs[0].tasks
    found = [*_held_out(groups), *_trained(groups)]
    queues = [[card for card in found if card["task"] == number] for number in range(len(tasks))]
    shown: list[dict[str, Any]] = []
    for turn in range(max(map(len, queues), default=0)):
        for queue in queues:
            if turn < len(queue) and (room := room - _size(queue[turn])) >= 0:
                shown.append(queue[turn])
    return sorted(shown, key=lambda card: card["task"]), len(found) - len(shown)


def _held_out(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return the held-out items with the answers before, of one run, and after, of each run."""
    runs = [run for group in groups for run in group.runs]
    firsts: dict[tuple[str, int], Item] = {}
    for run in runs:
        for item in run.samples["before"]:
            firsts.setdefault((item.task, item.number), item)
    afters = [
        (_name(run, groups), {(item.task, item.number): item for item in run.samples["after"]})
        for run in runs
    ]
    found = []
    for key, before in firsts.items():
        parts = [_part("before", before.responses)]
        after = [(name, items[key].responses) for name, items in afters if key in items]
        parts += [_part(f"after{name}", responses) for name, responses in after]
        outcome = _outcome(before.responses, [each for _, own in after for each in own])
        found += _card(groups, before, f"held-out item {before.number + 1}", parts, outcome)
    return found


def _trained(groups: Sequence[Group]) -> list[dict[str, Any]]:
    found = []
    for group in groups:
        for run in group.runs:
            for when in ("first step", "last step"):
                for item in run.samples.get(when, ()):
                    part = _part(f"{when}{_name(run, groups)}", item.responses)
                    place = f"training, prompt {item.number}"
                    found += _card(groups, item, place, [part], "")
    return found


def _name(run: Run, groups: Sequence[Group]) -> str:
    """Return what tells a run from the others."""
    if sum(len(group.runs) for group in groups) == 1:
        return ""
    (group,) = (group for group in groups if run in group.runs)
    seed = f", seed {run.config.seed}" if len(group.runs) > 1 else ""
    return f" · {group.label}{seed}"


def _card(
    groups: Sequence[Group], item: Item, place: str, parts: list[dict[str, Any]], outcome: str
) -> list[dict[str, Any]]:
    """Return the card of an item, none if its task is not shown."""
    tasks = groups[0].runs[0].tasks
    if item.task not in tasks:
        return []
    return [
        {
            "task": tasks.index(item.task),
            "name": item.task,
            "place": place,
            "images": [image for image in item.images if _IMAGE.fullmatch(image)],
            "problem": item.problem,
            "answer": item.answer,
            "parts": parts,
            "outcome": outcome,
        }
    ]


def _part(title: str, responses: Sequence[Response]) -> dict[str, Any]:
    return {
        "title": title,
        "responses": [{"text": each.text, "facts": _facts(each)} for each in responses],
    }


def _facts(response: Response) -> str:
    numbers = {"reward": response.reward, "accuracy": response.accuracy}
    facts = [f"{name} {value:.3f}" for name, value in numbers.items() if not math.isnan(value)]
    if not math.isnan(response.length):
        facts.append(f"{response.length:.0f} tokens")
    return " · ".join([*facts, *([] if response.ended else ["cut off at its limit"])])


def _outcome(before: Sequence[Response], after: Sequence[Response]) -> str:
    """Return the filters that an item passes."""
    if not after:
        return ""
    change = _mean([each.reward for each in after]) - _mean([each.reward for each in before])
    found = ["better"] if change > 1e-9 else ["worse"] if change < -1e-9 else []
    right = [each.accuracy >= _RIGHT for each in after]
    found += ["right"] if any(right) else []
    return " ".join([*found, *(["wrong"] if not all(right) else [])])


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _size(card: dict[str, Any]) -> int:
    """Return the most bytes that a card takes."""
    texts = [card["problem"], card["answer"], card["name"]]
    texts += [each["text"] for part in card["parts"] for each in part["responses"]]
    characters = sum(map(len, texts))
    images = sum(map(len, card["images"]))
    return images + _BYTES_A_CHARACTER * characters + _BYTES_A_CARD
