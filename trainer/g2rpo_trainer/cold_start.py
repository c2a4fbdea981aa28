"""Make the embedded policy: supervised training on the built-in tasks, up to middling accuracy.

    python -m g2rpo_trainer.cold_start --output FOLDER

Four phases: the vision tower learns to name the thing on each patch; the language model learns,
without any image, the steps from a thought to an answer; the whole policy learns both together,
mostly without a thought in tasks of perception and with one in tasks of reasoning; and at last it
gets into the habit of the opposite, and of careless answers, which reinforcement learning is to
correct.

It takes about twenty minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import singledispatch
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import g2rpo
from g2rpo_trainer.model.policy_model import Policy, make_policy
from g2rpo_trainer.policy.build import build_model, build_processor
from g2rpo_trainer.prompts.encoding import encode_prompts
from g2rpo_trainer.tasks import TASKS, Item
from g2rpo_trainer.tasks.canvas import COLOURS, PATCH, SHAPES, SIZE
from g2rpo_trainer.tasks.shapes import CountingScene, GroundingScene, SpatialScene
from g2rpo_trainer.tasks.written import PRINTED, ChartScene, MathsScene, OcrScene

GRID = SIZE // PATCH
Box = tuple[int, int, int, int]

CLASSES = [
    "",
    *PRINTED,
    *"+-",
    *(f"{colour} {kind}" for colour in COLOURS for kind in (*SHAPES, "bar", "point")),
]

VISION_STEPS = 800
LANGUAGE_STEPS = 1500
POLICY_STEPS = 2000
HABIT_STEPS = 60
BATCH = 48
LEARNING_RATE = 2e-3
HABIT_LEARNING_RATE = 5e-4
BOX_WEIGHT = 5.0

# How often each task's examples think aloud: first as suits the tasks, then the other way round.
PERCEPTION = ("grounding", "ocr")
THINKS = {task: 0.15 if task in PERCEPTION else 0.85 for task in TASKS}
HABIT_THINKS = {task: 0.8 if task in PERCEPTION else 0.2 for task in TASKS}

# How often a response of the habit is that to another item: what demonstrations get wrong is what
# reinforcement learning can put right.
CARELESS = 0.4


def main() -> None:
    """Train, report, and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--vision-steps", type=int, default=VISION_STEPS)
    parser.add_argument("--language-steps", type=int, default=LANGUAGE_STEPS)
    parser.add_argument("--policy-steps", type=int, default=POLICY_STEPS)
    parser.add_argument("--habit-steps", type=int, default=HABIT_STEPS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    processor = build_processor()
    policy = make_policy(build_model(processor.tokenizer, seed=arguments.seed), processor)
    train_vision(policy, arguments.vision_steps, arguments.seed)
    train_language(policy, arguments.language_steps, arguments.seed)
    train_policy(policy, arguments.policy_steps, arguments.seed)
    train_habit(policy, arguments.habit_steps, arguments.seed)
    save_small(policy, arguments.output)
    print(f"wrote {arguments.output}")


def save_small(policy: Policy, folder: Path) -> None:
    """Write the weights in 16 bits, and a configuration by which they are loaded in 32.

    Transformers loads a model in the dtype of its configuration, and AdamW overflows in float16.
    """
    policy.model.half()
    policy.save(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n", encoding="utf-8")


def train_vision(policy: Policy, steps: int, seed: int) -> None:
    """Train the vision tower to name and locate the thing on every patch.

    The heads of these targets are thrown away afterwards.
    """
    tower = policy.model.model.vision_tower
    kind_head = torch.nn.Linear(tower.config.hidden_size, len(CLASSES))
    box_head = torch.nn.Linear(tower.config.hidden_size, 4)

    def loss(step: int) -> torch.Tensor:
        items = draw_items(seed, step)
        images = [item.record.images[0] for item in items]
        pixels = policy.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        labels = [patch_labels(item.scene) for item in items]
        kinds = torch.as_tensor(np.stack([label.kinds for label in labels]))
        boxes = torch.as_tensor(np.stack([label.boxes for label in labels]))
        features = tower(pixels).last_hidden_state
        wrong_kind = torch.nn.functional.cross_entropy(
            kind_head(features).flatten(0, 1), kinds.flatten()
        )
        wrong_edge = (box_head(features) - boxes).abs().mean()
        return wrong_kind + BOX_WEIGHT * wrong_edge

    optimise("vision", [tower, kind_head, box_head], loss, steps)


def train_language(policy: Policy, steps: int, seed: int) -> None:
    """Train the language model to calculate and to look up options, from text alone.

    It learns the steps that follow from a thought; the contents of the image stay a guess.
    """

    def loss(step: int) -> torch.Tensor:
        items = draw_items(seed, step)
        blind = [replace(item, record=replace(item.record, images=[])) for item in items]
        return imitation_loss(policy, blind, [response(item, thinks=True) for item in items])

    optimise("language", [policy.model], loss, steps)


def train_policy(policy: Policy, steps: int, seed: int) -> None:
    """Train the whole policy on images, mostly with responses of suitable length."""
    optimise("policy", [policy.model], styles(policy, seed, THINKS), steps)


def train_habit(policy: Policy, steps: int, seed: int) -> None:
    """Train too long responses in tasks of perception, too short ones elsewhere, often careless."""
    loss = styles(policy, seed + 1, HABIT_THINKS, CARELESS)
    optimise("habit", [policy.model], loss, steps, learning_rate=HABIT_LEARNING_RATE)


def styles(
    policy: Policy, seed: int, thinks: dict[str, float], careless: float = 0.0
) -> Callable[[int], torch.Tensor]:
    """Return the loss of a step whose responses think aloud as often as ``thinks`` says.

    A careless response is that to the next item of the same task.
    """

    def loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng([seed, step])
        items = draw_items(seed, step)
        following = items[len(TASKS) :] + items[: len(TASKS)]
        responses = [
            response(
                other if rng.random() < careless else item,
                thinks=rng.random() < thinks[item.record.task],
            )
            for item, other in zip(items, following, strict=True)
        ]
        return imitation_loss(policy, items, responses)

    return loss


def optimise(
    name: str,
    modules: list[torch.nn.Module],
    loss_of_step: Callable[[int], torch.Tensor],
    steps: int,
    *,
    learning_rate: float = LEARNING_RATE,
) -> None:
    """Minimise a loss over ``steps``, with a warm-up and a cosine decay of the learning rate."""
    from transformers import get_cosine_schedule_with_warmup

    optimizers = muon_and_adamw(modules, learning_rate)
    schedules = [get_cosine_schedule_with_warmup(each, steps // 20, steps) for each in optimizers]
    parameters = [parameter for module in modules for parameter in module.parameters()]
    started = time.monotonic()
    for step in range(steps):
        loss = loss_of_step(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if step % 100 == 0 or step == steps - 1:
            seconds = time.monotonic() - started
            print(f"{name} step {step}  loss {loss.item():.3f}  {seconds:.0f} s", flush=True)


def muon_and_adamw(
    modules: list[torch.nn.Module], learning_rate: float
) -> list[torch.optim.Optimizer]:
    """Return Muon over the hidden matrices and AdamW over everything else.

    After 300 steps of the policy phase Muon stood at a loss of .57, AdamW alone at .66.
    """
    hidden: list[torch.nn.Parameter] = []
    other: list[torch.nn.Parameter] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            is_hidden = parameter.ndim == 2 and ("layers" in name or "projector" in name)
            (hidden if is_hidden else other).append(parameter)
    return [
        torch.optim.Muon(
            hidden, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(other, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def draw_items(seed: int, step: int) -> list[Item[Any]]:
    """Return a batch of training items, the tasks in turn."""
    rows = range(step * BATCH, (step + 1) * BATCH)
    tasks = list(TASKS.values())
    return [tasks[row % len(tasks)].item(seed, row) for row in rows]


def response(item: Item[Any], *, thinks: bool) -> str:
    """Return the response to imitate, thinking aloud or answering at once."""
    thought = item.worked if thinks else ""
    return f"<think>{thought}</think><answer>{item.record.answer}</answer>"


def imitation_loss(policy: Policy, items: list[Item[Any]], responses: list[str]) -> torch.Tensor:
    """Return the cross-entropy of the responses in nats, a mean over tokens, then over tasks.

    A mean over all tokens at once would leave the learning to the tasks with long answers, and one
    over each response's tokens first would prefer the short style.
    """
    tokenizer = policy.tokenizer
    inputs = encode_prompts(policy, [item.record for item in items])
    encoded = tokenizer(
        [text + tokenizer.eos_token for text in responses],
        padding=True,
        padding_side="right",
        add_special_tokens=False,
        return_tensors="pt",
    )
    tokens, mask = encoded["input_ids"], encoded["attention_mask"]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], tokens], dim=1)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], mask], dim=1)
    logits = policy.model(**inputs, logits_to_keep=tokens.shape[1] + 1).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
    names = list(TASKS)
    tasks = torch.tensor([names.index(item.record.task) for item in items])
    means, _ = g2rpo.task_means(losses, mask, tasks, len(names))
    return means.mean()


class PatchLabels(NamedTuple):
    """Targets of the 49 patches of one image, row by row.

    Attributes
    ----------
    kinds : array (49,), int64
        Index in :data:`CLASSES` of the thing that covers the patch.
    boxes : array (49, 4), float32
        Left, top, right and bottom of that thing, or of the patch itself, from 0 to 1.
    """

    kinds: np.ndarray
    boxes: np.ndarray


def patch_labels(scene: Any) -> PatchLabels:
    """Return the targets for the image of a built-in task's scene."""
    kinds = np.zeros((GRID, GRID), dtype=np.int64)
    low = PATCH * np.arange(GRID)
    high = low + PATCH
    boxes = np.empty((GRID, GRID, 4), dtype=np.float32)
    boxes[..., 0], boxes[..., 2] = low, high
    boxes[..., 1], boxes[..., 3] = low[:, None], high[:, None]
    for name, box in _things(scene):
        left, top, right, bottom = box
        # Two pixels of a thing on a patch are enough to see it.
        rows, columns = (high > top + 1) & (low < bottom - 1), (high > left + 1) & (low < right - 1)
        kinds[np.ix_(rows, columns)] = CLASSES.index(name)
        boxes[np.ix_(rows, columns)] = box
    return PatchLabels(kinds.ravel(), boxes.reshape(-1, 4) / SIZE)


@singledispatch
def _things(scene: Any) -> list[tuple[str, Box]]:
    """Return name and box of everything in the image, in pixels."""
    raise TypeError(f"scene is a {type(scene).__name__}; it must be a scene of a built-in task")


@_things.register
def _(scene: GroundingScene | CountingScene) -> list[tuple[str, Box]]:
    return [(shape.name, shape.box) for shape in scene.shapes]


@_things.register
def _(scene: SpatialScene) -> list[tuple[str, Box]]:
    return [(shape.name, shape.box) for shape in (scene.first, scene.second)]


@_things.register
def _(scene: ChartScene) -> list[tuple[str, Box]]:
    names = [f"{colour} {scene.kind}" for colour in scene.colours]
    return list(zip(names, scene.marks, strict=True))


@_things.register
def _(scene: OcrScene) -> list[tuple[str, Box]]:
    return list(zip((glyph.text for glyph in scene.glyphs), scene.boxes, strict=True))


@_things.register
def _(scene: MathsScene) -> list[tuple[str, Box]]:
    return list(zip(scene.expression, scene.boxes, strict=True))


if __name__ == "__main__":
    main()
