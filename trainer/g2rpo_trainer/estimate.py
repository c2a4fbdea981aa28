"""Estimate of the memory that a run takes on each device, before its weights are loaded.

Weights, gradients, optimiser and KV cache are counted. Activations follow from a formula for
transformer layers, which the tests compare with counted bytes; nothing is measured here.

A step passes four phases, each of which the device must hold beside weights and optimiser: the
rollout (KV cache), the loss (gradients, activations, logits), the backward pass (gradients,
activations, one layer at work) and AdamW's step (gradients, and what it holds for a moment).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from g2rpo._shown import error_text

from .config import Model, TrainConfig
from .errors import RunError
from .model.loading import meta_model
from .model_shape import ModelShape, Stack, model_shape
from .packing import responses_per_row


class WeightBytes(NamedTuple):
    """Bytes that training takes for each trained weight of 16 bits, beside itself.

    Attributes
    ----------
    gradient : int
    state : int
        Float32 master and two moments.
    step : int
        What AdamW holds while it steps.
    """

    gradient: int
    state: int
    step: int


ADAMW = WeightBytes(gradient=2, state=12, step=8)
"""Those of :class:`g2rpo_trainer.optimizer.MasterAdamW`: 24 bytes with the weight itself, at their
peak.

In its step there are a float32 copy of each gradient, and a full square root of the second moments,
which AdamW holds where it goes through all weights at once, as on CUDA. A float32 weight needs no
master and no copy.
"""

ASSUMED_PROMPT = 1024
"""Tokens of a prompt where ``rollout.max_prompt_length`` is null."""

# Of float32 logits of a chunk of tokens, the most that the head without logits holds.
_HEAD_CHUNK = 1 << 28
# With fewer entries, or a head that is no linear layer, the update has full logits.
_LARGE_VOCABULARY = 2048
# Bytes for each entry of the vocabulary and row of a sampled token: logits as they are, scaled and
# masked, log-probabilities, probabilities, their float64 sums, the parts of the entropy.
_SAMPLING = 36
# Bytes for each entry of the vocabulary and token in an update with full logits.
_UPDATE_LOGITS = 24


class Workload(NamedTuple):
    """Rows and tokens of one rank.

    Attributes
    ----------
    prompt, completion : int
        Longest prompt and response [tokens].
    rows : int
        Responses that are sampled at once, in training or evaluation.
    prefilled : int
        Prompts that are computed at once before.
    sampled, sampled_at_once : int
        Responses of a step, and those of them that are sampled at once.
    tokens : int
        Tokens of one pass of the update.
    row : int
        Tokens of a row of it.
    predicted : int
        Response tokens in it.
    """

    prompt: int
    completion: int
    rows: int
    prefilled: int
    sampled: int
    sampled_at_once: int
    tokens: int
    row: int
    predicted: int


@dataclass(frozen=True)
class Estimate:
    """Memory of one rank, in bytes.

    Attributes
    ----------
    shape : ModelShape
    work : Workload
    phases : dict of str to dict of str to int
        Phase -> part -> bytes: ``rollout``, ``loss``, ``backward``, ``step``.
    """

    shape: ModelShape
    work: Workload
    phases: dict[str, dict[str, int]]

    @property
    def peak_phase(self) -> str:
        """Phase that takes most."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def peak(self) -> int:
        """Bytes of that phase."""
        return sum(self.phases[self.peak_phase].values())

    @property
    def state(self) -> int:
        """Bytes of weights and optimiser, which are there all the time."""
        parts = self.phases["loss"]
        return sum(parts.get(name, 0) for name in ("weights", "optimiser", "reference"))


def estimate_memory(
    config: TrainConfig,
    *,
    ranks: int = 1,
    is_sharded: bool = False,
    device_total: int = 0,
    shape: ModelShape | None = None,
) -> Estimate:
    """Estimate the memory of a run on each of its devices.

    Parameters
    ----------
    config : TrainConfig
        Its model, data, rollout and optimization sections. Of the model only its configuration is
        read, and no weights.
    ranks : int
        World size.
    is_sharded : bool
        Whether the ranks divide the model (FSDP), or each has all of it.
    device_total : int
        Memory of a device in bytes, of which vLLM takes its share.
    shape : ModelShape, optional
        Sizes of the model, if they are known already.

    Raises
    ------
    RunError
        If the model's configuration cannot be read, or it is made of unknown parts.

    Examples
    --------
    >>> from g2rpo_trainer.config import load_config
    >>> estimate = estimate_memory(load_config())
    >>> estimate.phases["loss"]["weights"] == 4 * estimate.shape.parameters
    True
    """
    shape = shape or _shape(config.model)
    work = workload(config, shape, ranks)
    parts = ranks if is_sharded else 1
    wide = shape.trained - shape.narrow
    common = {
        "weights": shape.weight_bytes // parts,
        "optimiser": (ADAMW.state * shape.narrow + 8 * wide) // parts,
    }
    gradients = (ADAMW.gradient * shape.narrow + 4 * wide) // parts
    if config.optimization.beta and not config.model.lora.rank:
        common["reference"] = shape.weight_bytes // parts
    kept, working = activation_bytes(shape, work, config.model.gradient_checkpointing)
    update = {**common, "gradients": gradients, "activations": kept}
    # A float32 weight takes the square root alone, where a 16-bit one takes a copy as well.
    adamw = (ADAMW.step * shape.narrow + min(4, ADAMW.step) * wide) // parts
    phases = {
        "rollout": {**common, **_rollout_parts(config, shape, work, device_total)},
        "loss": {**update, "output layer": head_bytes(shape, work)},
        "backward": {**update, "layer at work": working},
        "step": {**common, "gradients": gradients, "AdamW": adamw},
    }
    if is_sharded:
        gathered = shape.root_bytes + 2 * shape.unit_bytes
        for phase in ("rollout", "loss", "backward"):
            phases[phase]["gathered weights"] = gathered
        # Whole gradients of the root unit, and what is reduced of them in float32.
        phases["backward"]["gathered weights"] += shape.root_trained * (shape.item + 4)
    return Estimate(shape, work, phases)


def _shape(model: Model) -> ModelShape:
    empty = meta_model(model)
    try:
        return model_shape(empty)
    except Exception as error:  # of an architecture without such parts
        kind = type(empty).__name__
        raise RunError(f"{kind} has no layers that are known here ({error_text(error)})") from error


def workload(config: TrainConfig, shape: ModelShape, ranks: int = 1) -> Workload:
    """Return the rows and tokens of each of so many ranks.

    Responses are counted at their limit. Prompts have ``rollout.max_prompt_length`` tokens; if that
    is null, :data:`ASSUMED_PROMPT`, or what the response leaves of the model's context.
    """
    rollout, data = config.rollout, config.data
    completion, each = rollout.max_completion_length, rollout.num_generations
    room = max(1, (shape.context or ASSUMED_PROMPT + completion) - completion)
    prompt = rollout.max_prompt_length or min(ASSUMED_PROMPT, room)
    sampled = -(-rollout.prompts_per_step // ranks) * each
    limit = rollout.batch_size
    at_once = sampled if limit is None else min(sampled, max(1, limit // each) * each)
    evaluated = data.eval_batch_size * data.eval_generations
    evaluated = evaluated if limit is None else min(evaluated, max(limit, data.eval_generations))
    by_policy = evaluated if rollout.engine == "vllm" else max(at_once, evaluated)
    shares = rollout.shared_prompts != "off"
    packed = responses_per_row(prompt, completion, each, shape.text.hidden) if shares else 1
    row = prompt + packed * completion
    # A pass has at least one response, and at most all.
    single, everything = prompt + completion, sampled // packed * row
    tokens = max(single, min(config.optimization.micro_batch_tokens, everything))
    return Workload(
        prompt=prompt,
        completion=completion,
        rows=by_policy,
        prefilled=-(-by_policy // each) if shares else by_policy,
        sampled=sampled,
        sampled_at_once=at_once,
        tokens=tokens,
        row=min(row, tokens),
        predicted=round(tokens * packed * completion / row),
    )


def kv_cache_bytes(shape: ModelShape, rows: int, tokens: int) -> int:
    """Return the bytes of the keys and values of so many rows of so many tokens."""
    # A sliding window holds what the next token sees, which is one less than itself.
    kept = sum(tokens if window is None else min(tokens, window - 1) for window in shape.windows)
    return 2 * kept * rows * shape.text.kv_heads * shape.text.head_width * shape.item


def activation_bytes(shape: ModelShape, work: Workload, checkpointing: bool) -> tuple[int, int]:
    """Return the bytes of activations in an update: those that are kept, and those at work.

    Kept for the backward pass are all of each layer, with checkpointing their inputs alone. At work
    are then one layer that is computed again, and gradients on their way through it.
    """
    stack, item = shape.text, shape.item
    whole = layer_bytes(stack, item, work.row, is_eager=shape.is_eager)
    kept = item * stack.hidden if checkpointing else whole
    # The last norm, and the mask of packed rows as bytes and in the model's dtype.
    ends = (4 + 2 * item) * stack.hidden + work.row * (1 + item)
    working = item * (2 * stack.inner + 4 * stack.hidden) + (whole if checkpointing else 0)
    total = work.tokens * (stack.layers * kept + ends)
    if shape.vision is not None and shape.is_vision_trained:
        total += _vision_bytes(shape.vision, item, work, checkpointing)
    return round(total), round(work.tokens * working)


def layer_bytes(stack: Stack, item: int, row: int, *, is_eager: bool = False) -> float:
    """Return the bytes that one layer keeps for a token of a row of so many tokens.

    A norm keeps a float32 input, its output and, to train its weight, the normalised value;
    attention its queries, repeated keys and values, and its output twice; a gated MLP four
    activations of its inner width, another one three.
    """
    width = stack.heads * stack.head_width
    attention = 5 * item * width
    if is_eager:
        attention += stack.heads * row * (4 + (item if item < 4 else 0))
    mlp = item * (4 if stack.gated else 3) * stack.inner
    norms = (4 + (2 if stack.is_trained else 1) * item) * stack.normed
    return norms + attention + mlp


def head_bytes(shape: ModelShape, work: Workload) -> int:
    """Return the bytes from the last hidden states to the loss and back."""
    hidden = shape.text.hidden * (shape.item + 4) * work.predicted
    if shape.vocabulary < _LARGE_VOCABULARY:
        return hidden + _UPDATE_LOGITS * shape.vocabulary * work.predicted
    # The logits of a chunk, and two tiles of half its size together.
    chunk = 3 * min(_HEAD_CHUNK, 4 * shape.vocabulary * work.predicted) // 2
    # A 16-bit weight has its gradient summed in float32.
    is_summed = shape.is_head_trained and shape.item < 4
    return hidden + chunk + (4 * shape.vocabulary * shape.text.hidden if is_summed else 0)


def _rollout_parts(
    config: TrainConfig, shape: ModelShape, work: Workload, device_total: int
) -> dict[str, int]:
    stack, item = shape.text, shape.item
    passing = (4 + 3 * item) * stack.hidden + 3 * item * stack.inner
    cache = kv_cache_bytes(shape, work.rows, work.prompt + work.completion)
    logits = _SAMPLING * shape.vocabulary * work.rows
    # It is over before the cache is full and the first token is sampled.
    prefill = work.prefilled * work.prompt * passing
    prefill += kv_cache_bytes(shape, work.prefilled, work.prompt)
    parts = {
        "KV cache": cache,
        "sampled logits": logits,
        "more in prefill": max(0, prefill - cache - logits),
    }
    if config.rollout.engine == "vllm":
        share = round(config.rollout.vllm_memory * device_total)
        # vLLM sleeps while the policy itself samples for an evaluation.
        return {"vLLM": share} if share > sum(parts.values()) else parts
    return parts


def _vision_bytes(stack: Stack, item: int, work: Workload, checkpointing: bool) -> float:
    """Return the bytes of the vision tower, as if prompts were nothing but images."""
    # Four patches, usually, become one token of the prompt.
    patches = 4 * work.tokens * work.prompt / work.row
    whole = layer_bytes(stack, item, 0)
    kept = item * stack.hidden * stack.layers + whole if checkpointing else whole * stack.layers
    return patches * kept
