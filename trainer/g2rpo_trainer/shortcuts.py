"""Choice of the shortcuts of a policy: by its architecture, and one check at the start of a run.

Shared prompts need attention masks, positions and caches that not every architecture takes, so they
are used for the architectures that the tests compare with the plain way. One check at the start
compares all shortcuts with the plain way on this very model. It uses made-up prompts and random
numbers of its own, so it takes none from the run, and every rank runs the same passes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import torch

from g2rpo._shown import typed_error_text

from .decoding import CompiledStep
from .distributed import Ranks
from .logprobs import FromHidden, packed_predictions, plain_predictions
from .model.policy_model import ALIGNED, Policy, Shortcuts
from .packing import packing_obstacle
from .prompts.batching import Inputs, select_rows
from .prompts.encoding import encode_prompts
from .record import Record
from .sampling import Completions, prepared_rows, sample_endless
from .sharding import is_sharded

_logger = logging.getLogger(__name__)

_TEXT = ("gemma", "gemma3", "gpt2", "llama", "mistral", "qwen2", "qwen3")
_VISION = ("llava", "paligemma", "qwen2_5_vl", "qwen3_vl", "smolvlm")
PACKED_ROWS = frozenset({*_TEXT, *_VISION})
"""Model types whose packed rows are tested against the plain pass."""

SHARED_ROLLOUTS = PACKED_ROWS - {"paligemma"} | {"bloom"}
"""Model types whose rollouts from shared prompts are tested against those from repeated ones."""

# With smaller vocabularies logits cost little, and a pass with them is faster.
_LARGE_VOCABULARY = 2048
# Size of the check: 16 responses of 16 tokens are 256 compared tokens.
_RESPONSES, _TOKENS = 16, 16

# Largest accepted mean distance of log-probabilities in nats. Between two passes: other orders of
# summation, in 16 bits through all layers.
_PASSES = {torch.float32: 1e-3, torch.float64: 1e-3}
_PASSES_16_BIT = 5e-2
# Between two heads on the same hidden states, both with float32 logits; float32 may mean TF32.
_HEAD = 1e-3

_PLAIN_WAY = {
    "shared_rollouts": "prompts are not shared in the rollouts, each response computes its own",
    "packed_rows": "prompts are not shared in the log-probability and update passes, each response "
    "computes its own",
    "without_logits": "log-probabilities are computed from full logits",
}

_QUESTION = "How many of these are red, and how many are blue?"


def choose_shortcuts(
    policy: Policy,
    shared_prompts: Literal["auto", "try", "off"] = "auto",
    *,
    seed: int = 0,
    ranks: Ranks = Ranks(),
    prompts: Inputs | None = None,
) -> Policy:
    """Return a policy with the shortcuts that its model allows; a collective.

    Parameters
    ----------
    policy : Policy
        Policy without shortcuts.
    shared_prompts : {"auto", "try", "off"}
        Share prompts in architectures of :data:`PACKED_ROWS` and :data:`SHARED_ROLLOUTS`, in any
        architecture that passes the check, or never.
    seed : int
        Seed of the responses that are compared.
    ranks : Ranks
        Ranks that train together; a shortcut is taken if the check passes on all of them.
    prompts : dict of str to Tensor, optional
        One prompt for the check, the same on all ranks; by default a made-up one, with an image if
        the model takes images.

    Returns
    -------
    Policy
        One line of the log (INFO) names the shortcuts, and a warning each of those that are not
        possible, with the reason.
    """
    reasons = _known_obstacles(policy, shared_prompts)
    wanted = [name for name in _PLAIN_WAY if name not in reasons]
    if wanted:
        found = _check(policy, wanted, seed, prompts)
        for name in wanted:
            if (reason := _first(ranks, found[name])) is not None:
                reasons[name] = reason
    if ranks.is_main:
        for name, reason in reasons.items():
            if reason:
                _logger.warning("%s: %s", _PLAIN_WAY[name], reason)
    chosen = Shortcuts(**{name: name not in reasons for name in _PLAIN_WAY})
    if ranks.is_main:
        _logger.info("shortcuts of %s: %s", policy.name, chosen)
    return replace(policy, shortcuts=chosen)


def with_compiled_decoding(
    policy: Policy,
    *,
    seed: int = 0,
    ranks: Ranks = Ranks(),
    prompts: Inputs | None = None,
) -> Policy:
    """Return a policy whose decoding of a token is compiled, if its model allows it; a collective.

    A few responses are sampled and compared with the plain pass over them.

    Parameters
    ----------
    policy : Policy
        Policy with its shortcuts.
    seed, ranks, prompts
        As of :func:`choose_shortcuts`.

    Returns
    -------
    Policy
        The same policy if compilation is not possible; a warning of the log says why.
    """
    compiled = replace(policy, compiled_step=CompiledStep(), pad_to_multiple_of=ALIGNED)
    obstacle = _first(ranks, _compilation_obstacle(compiled, seed, prompts))
    if obstacle is None:
        return compiled
    if ranks.is_main:
        _logger.warning("the decoding of a token is not compiled: %s", obstacle)
    return policy


def _first(ranks: Ranks, obstacle: str | None) -> str | None:
    """Return the obstacle of the first rank that has one, or None; a collective."""
    return next((each for each in ranks.gather_objects(obstacle) if each is not None), None)


def _compilation_obstacle(policy: Policy, seed: int, prompts: Inputs | None) -> str | None:
    """Return why the decoding of a token cannot be compiled, or None."""
    if is_sharded(policy.model):
        return "the model is sharded over processes"
    if not policy.shortcuts.shared_rollouts:
        return "prompts are not shared in the rollouts"
    if obstacle := packing_obstacle(policy.model):
        return obstacle
    # Rollouts from shared prompts are what is compiled.
    return _check(policy, ["shared_rollouts"], seed, prompts)["shared_rollouts"]


def _known_obstacles(policy: Policy, shared_prompts: str) -> dict[str, str]:
    """Return the shortcuts that are not checked, with reasons; "" for what needs no warning."""
    reasons = {}
    head = policy.model.get_output_embeddings()
    if head is None or head.weight.shape[0] < _LARGE_VOCABULARY:
        reasons["without_logits"] = ""
    if shared_prompts == "off":
        return {**reasons, "shared_rollouts": "", "packed_rows": ""}
    if obstacle := packing_obstacle(policy.model):
        reasons["packed_rows"] = obstacle
    if shared_prompts == "auto":
        config = policy.model.config
        parts = (config, config.get_text_config())
        types = [part.model_type.removesuffix("_text") for part in parts]
        known = {"shared_rollouts": SHARED_ROLLOUTS, "packed_rows": PACKED_ROWS}
        for name, tested in known.items():
            untested = [each for each in types if each not in tested]
            if untested and name not in reasons:
                reasons[name] = (
                    f"{untested[0]!r} is not among the tested architectures; with "
                    "rollout.shared_prompts: try the check at the start of a run decides alone"
                )
    return reasons


@torch.no_grad()
def _check(
    policy: Policy, wanted: Sequence[str], seed: int, prompts: Inputs | None
) -> dict[str, str | None]:
    """Compare shortcuts with the plain way; return what is in the way of each, or None."""
    prompt = prompts or _example_prompt(policy)
    groups = torch.zeros(_RESPONSES, dtype=torch.int64, device=policy.device)
    samples, obstacle = _samples(policy, prompt, seed, shares="shared_rollouts" in wanted)
    rows = (prompt, groups, samples.tokens, samples.mask)
    with _head_inputs(policy) as hidden:
        plain = plain_predictions(policy, *rows).values()[0]
    passes = _PASSES.get(policy.model.dtype, _PASSES_16_BIT)

    def shared_rollouts() -> str | None:
        return obstacle or _disagreement(samples.logprobs, plain, passes)

    def packed_rows() -> str | None:
        packed = packed_predictions(policy, *rows).values()[0]
        return _disagreement(packed, plain, passes)

    def without_logits() -> str | None:
        quick = replace(policy, shortcuts=Shortcuts(without_logits=True))
        found = plain_predictions(quick, *rows)
        assert isinstance(found, FromHidden)
        # From the hidden states of the plain pass, so that only the heads differ.
        same = replace(found, hidden=hidden[-1][:, : samples.tokens.shape[1]])
        return _disagreement(same.values()[0], plain, _HEAD) or _disagreement(
            found.values()[0], plain, passes
        )

    found: dict[str, str | None] = {}
    for check in (shared_rollouts, packed_rows, without_logits):
        if check.__name__ in wanted:
            # The plain way may still work where a shortcut raises.
            try:
                found[check.__name__] = check()
            except Exception as error:
                found[check.__name__] = typed_error_text(error)
    return found


def _example_prompt(policy: Policy) -> Inputs:
    images = []
    if policy.takes_images:
        from PIL import Image

        images = [Image.new("RGB", (64, 64), "red")]
    # A long prompt is no fault here.
    example = Record(_QUESTION, "1", "numerical", "example", images)
    return encode_prompts(replace(policy, max_prompt_length=None), [example])


def _samples(
    policy: Policy, prompt: Inputs, seed: int, *, shares: bool
) -> tuple[Completions, str | None]:
    """Sample responses, from a shared prompt if that is possible; return the obstacle if not."""
    context = getattr(policy.model.config.get_text_config(), "max_position_embeddings", None)
    room = _TOKENS if context is None else context - prompt["input_ids"].shape[1]
    shape = (_RESPONSES, max(1, min(room, _TOKENS)))
    uniforms = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    obstacle = None
    if shares:
        try:
            rows = prepared_rows(policy, prompt, _RESPONSES, shape[1])
            return sample_endless(policy, rows, uniforms), None
        except Exception as error:
            obstacle = typed_error_text(error)
            policy = replace(policy, compiled_step=None)
    repeated = select_rows(prompt, torch.zeros(_RESPONSES, dtype=torch.int64))
    return sample_endless(policy, repeated, uniforms), obstacle


@contextmanager
def _head_inputs(policy: Policy) -> Iterator[list[torch.Tensor]]:
    """Yield a list that gets the hidden states of each call of the output layer."""
    seen: list[torch.Tensor] = []
    head = policy.model.get_output_embeddings()
    if head is None:
        yield seen
        return
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        hook.remove()


def _disagreement(ours: torch.Tensor, plain: torch.Tensor, tolerance: float) -> str | None:
    distance = float((ours - plain).abs().mean())
    # Written so that NaN disagrees.
    if distance <= tolerance:
        return None
    return f"log-probabilities differ from the plain pass by {distance:.2g} nats on average"
