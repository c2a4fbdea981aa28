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

from .block_attention import wants_blocks
from .config import Model, Rollout, TrainConfig
from .errors import RunError
from .model.reading import meta_model
from .model_shape import ADAMW, ModelShape, Stack, model_shape, wants_checkpointing
from .optimizer import BUCKET
from .row_cost import CPU_COST, AttentionCost, cost_on, keys_of_a_token, responses_per_row

ASSUMED_PROMPT = 1024
"""Tokens of a prompt where ``rollout.max_prompt_length`` is null."""

# Bytes of AdamW's temporary tensors for each weight of a bucket, on a CPU.
BUCKET_WEIGHT = 8
# Of float32 logits of a chunk of tokens, the most that the head without logits holds.
_HEAD_CHUNK, _HEAD_CHUNK_GPU, _GPU_TILES = 1 << 28, 5 << 28, 1 << 27
# Responses whose KV cache vLLM holds at a time, bytes of what it computes with, and its largest
# share beside a policy.
_VLLM_ROWS, _VLLM_WORKSPACE, _VLLM_LARGEST_SHARE = 256, 3 << 30, 0.6
# Its share of a CPU's memory if ``rollout.vllm_memory`` is null.
VLLM_SHARE = 0.3
# With fewer entries, or a head that is no linear layer, the update has full logits.
_LARGE_VOCABULARY = 2048
# Bytes for each entry of the vocabulary and row of a sampled token: logits as they are, scaled and
# masked, log-probabilities, probabilities, their float64 sums, the parts of the entropy.
SAMPLED_LOGIT = 36
# Of the memory that weights and optimiser leave free on a GPU, the share for rows of a rollout. The
# rest is for prompts that are prefilled, whose keys and values are copied.
ROWS_SHARE = 0.6
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
    prompts : int
        Prompts of a step that are computed: each once if they are shared, else once a response.
    sampled, sampled_at_once : int
        Responses of a step, and those of them that are sampled at once.
    engine : str
        Engine that samples them.
    tokens : int
        Tokens of one pass of the update.
    row : int
        Tokens of a row of it.
    keys : float
        Mean number of keys that are computed for one of them, seen or masked.
    predicted : int
        Response tokens in it.
    passes : int
        Passes without gradients over the responses: of the reference, and of the policy over those
        that vLLM has sampled.
    """

    prompt: int
    completion: int
    rows: int
    prefilled: int
    prompts: int
    sampled: int
    sampled_at_once: int
    engine: str
    tokens: int
    row: int
    keys: float
    predicted: int
    passes: int


@dataclass(frozen=True)
class Estimate:
    """Memory of one rank, in bytes.

    Attributes
    ----------
    shape : ModelShape
    work : Workload
    phases : dict of str to dict of str to int
        Phase -> part -> bytes: ``rollout``, ``loss``, ``backward``, ``step``.
    checkpointing : bool
        Whether layers are computed twice in the update.
    """

    shape: ModelShape
    work: Workload
    phases: dict[str, dict[str, int]]
    checkpointing: bool = False

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
    gpu_free: int | None = None,
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
    gpu_free : int, optional
        Free bytes of a GPU, by which a run chooses what the configuration leaves open; None for a
        CPU.
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
    is_gpu, parts = gpu_free is not None, ranks if is_sharded else 1
    shape = shape or _shape_of(config.model, is_gpu=is_gpu)
    checkpointing = config.model.gradient_checkpointing
    if checkpointing == "auto":
        # Weights are on the device before they are divided only if they are not.
        there = 0 if is_sharded else shape.weight_bytes
        room = None if gpu_free is None else gpu_free - there
        tokens = config.optimization.micro_batch_tokens
        checkpointing = wants_checkpointing(shape, tokens, room, parts)
    common = {
        "weights": shape.weight_bytes // parts,
        "optimiser": shape.optimizer_bytes // parts,
    }
    gradients = shape.gradient_bytes // parts
    if config.optimization.beta and not config.model.lora.rank:
        common["reference"] = shape.weight_bytes // parts
    limit = None
    if gpu_free is not None and not is_sharded and not config.model.deterministic:
        tokens = _prompt_tokens(config.rollout, shape) + config.rollout.max_completion_length
        free = gpu_free - sum(common.values())
        limit = rows_that_fit(shape.cache.bytes(1, tokens), shape.vocabulary, free)
    in_blocks = shape.takes_blocks and wants_blocks(config.model, is_gpu=is_gpu)
    attention = cost_on(is_gpu=is_gpu, in_blocks=in_blocks)
    work = workload(config, shape, ranks, limit, attention)
    kept, working = activation_bytes(shape, work, checkpointing)
    update = {**common, "gradients": gradients, "activations": kept}
    adamw = ADAMW.step * shape.trained // parts
    if not is_gpu:
        adamw += BUCKET_WEIGHT * min(BUCKET, shape.trained // parts)
    phases = {
        "rollout": {**common, **_rollout_parts(config.rollout, shape, work, device_total, is_gpu)},
        "loss": {**update, "output layer": head_bytes(shape, work, is_gpu=is_gpu)},
        "backward": {**update, "layer at work": working},
        "step": {**common, "gradients": gradients, "AdamW": adamw},
    }
    if is_sharded:
        gathered = shape.root_bytes + 2 * shape.unit_bytes
        for phase in ("rollout", "loss", "backward"):
            phases[phase]["gathered weights"] = gathered
        # Whole gradients of the root unit, and what is reduced of them in float32.
        phases["backward"]["gathered weights"] += shape.root_trained * (shape.item + 4)
    return Estimate(shape, work, phases, checkpointing)


def _shape_of(model: Model, *, is_gpu: bool) -> ModelShape:
    """Return the sizes of the model of a run, of which no weights are read."""
    if model.dtype == "auto" and is_gpu:
        model = model.model_copy(update={"dtype": "bfloat16"})
    empty = meta_model(model)
    try:
        return model_shape(empty)
    except Exception as error:  # of an architecture without such parts
        kind = type(empty).__name__
        raise RunError(f"{kind} has no layers that are known here ({error_text(error)})") from error


def rows_that_fit(row: int, vocabulary: int, free: int) -> int:
    """Return how many rows a GPU samples at once: of so many bytes of KV cache each, at least 1."""
    return max(1, int(ROWS_SHARE * free) // (row + SAMPLED_LOGIT * vocabulary))


def _prompt_tokens(rollout: Rollout, shape: ModelShape) -> int:
    completion = rollout.max_completion_length
    room = max(1, (shape.context or ASSUMED_PROMPT + completion) - completion)
    return rollout.max_prompt_length or min(ASSUMED_PROMPT, room)


def workload(
    config: TrainConfig,
    shape: ModelShape,
    ranks: int = 1,
    limit: int | None = None,
    attention: AttentionCost = CPU_COST,
) -> Workload:
    """Return the rows and tokens of each of so many ranks.

    Responses are counted at their limit. Prompts have ``rollout.max_prompt_length`` tokens; if that
    is null, :data:`ASSUMED_PROMPT`, or what the response leaves of the model's context. At most
    ``limit`` rows are sampled at once if ``rollout.batch_size`` is null. ``attention`` is the cost
    of a pair of tokens on their device.
    """
    rollout, data = config.rollout, config.data
    completion, each = rollout.max_completion_length, rollout.num_generations
    prompt = _prompt_tokens(rollout, shape)
    sampled = -(-rollout.prompts_per_step // ranks) * each
    limit = rollout.batch_size or limit
    at_once = sampled if limit is None else min(sampled, max(1, limit // each) * each)
    evaluated = data.eval_batch_size * data.eval_generations
    evaluated = evaluated if limit is None else min(evaluated, max(limit, data.eval_generations))
    rows = max(at_once, evaluated)
    shares = rollout.shared_prompts != "off"
    packed = 1
    if shares:
        packed = responses_per_row(prompt, completion, each, shape.text.hidden, attention)
    budget = config.optimization.micro_batch_tokens
    # A pass has at least one response, and at most all.
    packed = max(1, min(packed, (budget - prompt) // completion))
    row = prompt + packed * completion
    tokens = max(row, min(budget, sampled // packed * row))
    return Workload(
        prompt=prompt,
        completion=completion,
        rows=rows,
        prefilled=-(-rows // each) if shares else rows,
        prompts=sampled // (each if shares else 1),
        sampled=sampled,
        sampled_at_once=at_once,
        engine=rollout.engine,
        tokens=tokens,
        row=row,
        keys=keys_of_a_token(prompt, completion, packed, attention.block if shares else None),
        predicted=round(tokens * packed * completion / row),
        passes=(config.optimization.beta > 0) + (rollout.engine == "vllm"),
    )


def activation_bytes(shape: ModelShape, work: Workload, checkpointing: bool) -> tuple[int, int]:
    """Return the bytes of activations in an update: those that are kept, and those at work.

    Kept for the backward pass are all of each layer, with checkpointing their inputs alone. At work
    are then one layer that is computed again, and gradients on their way through it.
    """
    stack, item = shape.text, shape.item
    whole = stack.layer_bytes(item, work.row, is_eager=shape.is_eager)
    kept = item * stack.hidden if checkpointing else whole
    # The last norm, and the mask of packed rows as bytes and in the model's dtype.
    ends = (4 + 2 * item) * stack.hidden + work.row * (1 + item)
    working = item * (2 * stack.inner + 4 * stack.hidden) + (whole if checkpointing else 0)
    total = work.tokens * (stack.layers * kept + ends)
    if shape.vision is not None and shape.is_vision_trained:
        total += _vision_bytes(shape.vision, item, work, checkpointing)
    return round(total), round(work.tokens * working)


def head_bytes(shape: ModelShape, work: Workload, *, is_gpu: bool = False) -> int:
    """Return the bytes from the last hidden states to the loss and back."""
    hidden = shape.text.hidden * (shape.item + 4) * work.predicted
    if shape.vocabulary < _LARGE_VOCABULARY:
        return hidden + _UPDATE_LOGITS * shape.vocabulary * work.predicted
    # The logits of a chunk, and two tiles, together at most half of it.
    most = _HEAD_CHUNK_GPU if is_gpu else _HEAD_CHUNK
    chunk = min(most, 4 * shape.vocabulary * work.predicted)
    chunk += min(_GPU_TILES, chunk // 2) if is_gpu else chunk // 2
    # A 16-bit weight has its gradient summed in float32.
    is_summed = shape.is_head_trained and shape.item < 4
    return hidden + chunk + (4 * shape.vocabulary * shape.text.hidden if is_summed else 0)


def _rollout_parts(
    options: Rollout, shape: ModelShape, work: Workload, device_total: int, is_gpu: bool
) -> dict[str, int]:
    if options.engine == "vllm":
        share = options.vllm_memory
        if share is None and is_gpu:
            row = shape.cache.bytes(1, work.prompt + work.completion)
            share = vllm_share(shape.weight_bytes, row, work.sampled, device_total)
        return {"vLLM": round((share or VLLM_SHARE) * device_total)}
    stack, item = shape.text, shape.item
    passing = (4 + 3 * item) * stack.hidden + 3 * item * stack.inner
    cache = shape.cache.bytes(work.rows, work.prompt + work.completion)
    logits = SAMPLED_LOGIT * shape.vocabulary * work.rows
    # It is over before the cache is full and the first token is sampled.
    prefill = work.prefilled * work.prompt * passing
    prefill += shape.cache.bytes(work.prefilled, work.prompt)
    return {
        "KV cache": cache,
        "sampled logits": logits,
        "more in prefill": max(0, prefill - cache - logits),
    }


def vllm_share(weights: int, row: int, rows: int, total: int) -> float:
    """Return the share of a GPU's memory that vLLM needs.

    Parameters
    ----------
    weights : int
        Bytes of the weights, of which vLLM has a whole copy.
    row : int
        Bytes of the KV cache of a row.
    rows : int
        Responses of a rollout; the KV cache of more than 256 is not held at a time.
    total : int
        Bytes of the GPU.

    Examples
    --------
    >>> vllm_share(4 << 30, 64 << 20, 256, 80 << 30)
    0.287
    """
    needed = weights + min(rows, _VLLM_ROWS) * row + _VLLM_WORKSPACE
    return round(min(max(needed / max(1, total), 0.05), _VLLM_LARGEST_SHARE), 3)


def _vision_bytes(stack: Stack, item: int, work: Workload, checkpointing: bool) -> float:
    """Return the bytes of the vision tower, as if prompts were nothing but images."""
    # Four patches, usually, become one token of the prompt.
    patches = 4 * work.tokens * work.prompt / work.row
    whole = stack.layer_bytes(item)
    kept = item * stack.hidden * stack.layers + whole if checkpointing else whole * stack.layers
    return patches * kept
