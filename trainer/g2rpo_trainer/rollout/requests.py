"""What an engine is asked: prompts and how they are answered, without anything of the policy's."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import Image

from g2rpo_trainer.config import Rollout
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.record import Record

from ..inputs.chat import chat_text
from ..inputs.prompts import Inputs
from ..model.policy_model import Policy
from .stopping import stop_texts


class Request(NamedTuple):
    """One prompt, and how it is answered; it may travel to another process.

    Attributes
    ----------
    prompt : list of int
        Tokens of the chat, with a single placeholder for each image.
    images : list of PIL.Image.Image
        In their order in the prompt.
    tokens : list of int
        The prompt as the policy reads it, with all placeholders.
    num_generations : int
        Responses wanted.
    max_tokens : int
        Longest response in tokens.
    temperature : float
        Of the sampling.
    seed : int
        Of its random numbers.
    stops : list of str
        Texts whose completion ends a response.
    eos_ids, banned_ids : list of int
        Tokens that end a response, and those that must not be sampled.
    """

    prompt: list[int]
    images: list[Image.Image]
    tokens: list[int]
    num_generations: int
    max_tokens: int
    temperature: float
    seed: int
    stops: list[str]
    eos_ids: list[int]
    banned_ids: list[int]

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold; images as PNG files."""
        return {**self._asdict(), "images": [_png(image) for image in self.images]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Request:
        """Undo :meth:`to_json`."""
        files = [io.BytesIO(base64.b64decode(text)) for text in values["images"]]
        return cls(**{**values, "images": [Image.open(file) for file in files]})


class Sampled(NamedTuple):
    """One response of an engine.

    Attributes
    ----------
    tokens : list of int
        The token that ends it included.
    logprobs : list of float
        Log-probability in nats of each under the engine's distribution.
    ended : bool
        False where it was cut off at its limit.
    """

    tokens: list[int]
    logprobs: list[float]
    ended: bool


def make_requests(
    policy: Policy,
    prompts: Inputs,
    records: Sequence[Record],
    options: Rollout,
    seeds: Sequence[int],
) -> list[Request]:
    """Return the requests of P records.

    Parameters
    ----------
    policy : Policy
        Whose chat template and tokens they have.
    prompts : dict of str to Tensor
        The records' model inputs.
    records : sequence of Record
        The prompts.
    options : Rollout
        How they are answered.
    seeds : sequence of int
        One for each.

    Raises
    ------
    RunError
        If one of them has a video.
    """
    rows = zip(prompts["input_ids"], prompts["attention_mask"].bool(), records, seeds, strict=True)
    requests = []
    for ids, mask, record, seed in rows:
        if record.videos:
            raise RunError(
                f"rollout.engine is 'vllm', which takes no videos (task {record.task}); "
                "name 'transformers', or leave these records out"
            )
        images, tokens = list(record.images), ids[mask].tolist()
        requests.append(
            Request(
                prompt=_with_one_placeholder_each(policy, record) if images else tokens,
                images=images,
                tokens=tokens,
                num_generations=options.num_generations,
                max_tokens=options.limit_of(record.task),
                temperature=options.temperature,
                seed=seed,
                stops=stop_texts(policy, options.stop),
                eos_ids=list(policy.eos_ids),
                banned_ids=policy.banned_ids.tolist(),
            )
        )
    return requests


def _with_one_placeholder_each(policy: Policy, record: Record) -> list[int]:
    # As a processor begins: what it adds to a text is what the tokenizer adds.
    text, begins = chat_text(policy, record), policy.tokenizer.bos_token
    has_begun = bool(begins) and text.startswith(begins)
    tokens: list[int] = policy.tokenizer(text, add_special_tokens=not has_begun)["input_ids"]
    return tokens


def _png(image: Image.Image) -> str:
    file = io.BytesIO()
    if image.mode not in ("1", "L", "LA", "I;16", "P", "RGB", "RGBA"):
        image = image.convert("RGB")
    image.save(file, "png", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()
