"""G²RPO in PyTorch and transformers: the reference trainer without its shortcuts, in one file.

    pip install "g2rpo[torch]"
    python examples/minimal_grpo.py    # or: --model Qwen/Qwen2.5-0.5B-Instruct --rows 16
                                       #     --learning-rate 1e-6 --max-completion-length 256

It trains the embedded vision-language policy, or a model by name or folder, on the built-in tasks.

Departures from the paper (arXiv:2604.08539):

- Rewards are matched to N(0, 1) in each prompt's group, then divided by the task's standard
  deviation. The paper matches "the task's rewards", its released code matches twice.
- Length is a separate term, in tokens, for right responses only: half an answer is short, too.
  The paper gives neither thresholds nor a weight.
- Entropies are exact, over the whole vocabulary, and a task's bounds apply to its mean over the
  batch. The released code averages -log p of sampled tokens over a micro-batch.
- The loss is clipped at .2 and .3 with a dual clip of 3, and a mean over the batch's tokens, as in
  the released code. The paper has one clip range, and a mean over responses.
- One update per batch, no dynamic sampling; small batches, short responses, high learning rate.

Departures from the reference trainer (`g2rpo train`), which computes the same loss and gradients:

- Each response has its own copy of its prompt; the trainer computes a prompt once for its group.
- Logits are stored in full; with a large vocabulary the trainer computes them tile by tile.
- Old log-probabilities and entropies come from a second pass; passes are split by rows, not tokens.
- All special tokens but the ends are banned, and only a token ends a response; the trainer checks
  the chat template. The answer format is explained in the question, not in a system message.
- Rewards are scored in this process, without a time limit.
- Weights are float32 in one process, the learning rate is constant, a gradient that is not finite
  ends the run. There are no controllers, no KL term, no adapters and no checkpoints.

Shapes: N = P·n rollouts, n consecutive ones of each of P prompts; T tokens; V entries.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import transformers
from torch.nn.functional import pad

import g2rpo
from g2rpo.rewards import score
from g2rpo_trainer.policy import policy_path
from g2rpo_trainer.tasks import TASKS, TEXT_TASKS

# In tokens of the built-in policy: direct answers in perception tasks, thoughts in the others.
BUILTIN_TARGETS = {
    "grounding": g2rpo.LengthTarget(0, 0, 20, 32),
    "vqa": g2rpo.LengthTarget(5, 9, 24, 40),
    "spatial": g2rpo.LengthTarget(5, 10, 24, 40),
    "chart": g2rpo.LengthTarget(5, 12, 30, 44),
    "ocr": g2rpo.LengthTarget(0, 0, 10, 20),
    "maths": g2rpo.LengthTarget(6, 9, 40, 48),
}
DIRECT = {"grounding", "ocr", "sorting"}  # the tasks of other models that need no thought
BOUNDS = g2rpo.EntropyBounds(0.05, 0.6)  # nats
LENGTH_WEIGHT, ENTROPY_WEIGHT = 1.0, 0.02
LOSS = g2rpo.LossOptions("ppo", epsilon=0.2, epsilon_high=0.3, dual_clip=3.0, aggregation="token")
WEIGHT_DECAY, MAX_GRAD_NORM = 0.01, 1.0
FORMAT = "Think first, then answer: <think>your reasoning</think><answer>your answer</answer>"


class Policy(NamedTuple):
    """A model with its processor and the records of its tasks."""

    model: Any
    processor: Any  # a tokenizer, if the model reads text only
    tokenizer: Any
    ends: list[int]  # tokens that end a response
    banned: list[int]  # tokens that are never sampled
    instruction: str  # how to answer, appended to each question
    tasks: dict[str, Any]
    targets: g2rpo.LengthTargets


class Rollouts(NamedTuple):
    """N scored responses, with their prompts."""

    inputs: list[dict[str, torch.Tensor]]  # of each pass: n copies of each prompt
    tokens: torch.Tensor  # [N, T]
    mask: torch.Tensor  # [N, T], True up to the token that ends the response
    logprobs: torch.Tensor  # [N, T], nats
    entropies: torch.Tensor  # [N, T], nats
    rewards: torch.Tensor  # [N]
    accuracies: torch.Tensor  # [N]
    tasks: torch.Tensor  # [N], numbers in the order of `Policy.tasks`


def load_policy(name: str, max_completion_length: int, device: str = "cpu") -> Policy:
    """Return the embedded policy ("builtin"), or one from a folder or the hub."""
    folder = policy_path() if name == "builtin" else name
    processor = transformers.AutoProcessor.from_pretrained(folder)
    tokenizer = getattr(processor, "tokenizer", processor)
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    kind, tasks = transformers.AutoModelForCausalLM, dict(TEXT_TASKS)
    if hasattr(processor, "image_processor"):
        kind, tasks = transformers.AutoModelForImageTextToText, dict(TASKS)
    # In evaluation mode: with dropout, the policy of the update would differ from the sampler.
    model = kind.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    known = model.generation_config.eos_token_id
    known = known if isinstance(known, list) else [known]
    ends = sorted({tokenizer.eos_token_id, *known} - {None})
    if not ends:
        raise ValueError(f"--model is {name!r}, which has no eos_token; it must have one")
    # A sampled image token would need an image in the next pass.
    vocabulary = range(model.config.get_text_config().vocab_size)
    banned = sorted(set(tokenizer.all_special_ids).intersection(vocabulary).difference(ends))
    # In place of the model's own settings, with their top-p and penalties.
    model.generation_config = transformers.GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=max_completion_length,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=banned or None,
    )
    instruction, targets = "", g2rpo.LengthTargets(BUILTIN_TARGETS)
    if name != "builtin":
        instruction = f"\n\n{FORMAT}"  # which the embedded policy has been taught
        kinds = {"reasoning": tasks.keys() - DIRECT, "direct": tasks.keys() & DIRECT}
        targets = g2rpo.LengthTargets.presets(**kinds, max_completion_length=max_completion_length)
    return Policy(model, processor, tokenizer, ends, banned, instruction, tasks, targets)


def draw(policy: Policy, seed: int, start: int, count: int, split: Any = "train") -> list[Any]:
    """Return records of the tasks in turn."""
    tasks, rows = list(policy.tasks.values()), range(start, start + count)
    return [tasks[row % len(tasks)].item(seed, row, split=split).record for row in rows]


def encode(policy: Policy, records: Sequence[Any]) -> dict[str, torch.Tensor]:
    """Return the model's inputs, one row per record, padded on the left to L tokens."""
    texts, render = [], policy.processor.apply_chat_template
    for record in records:
        question: Any = record.problem + policy.instruction
        if record.images:
            images = [{"type": "image"} for _ in record.images]
            question = [*images, {"type": "text", "text": question}]
        turns = [{"role": "user", "content": question}]
        texts.append(render(turns, add_generation_prompt=True, tokenize=False))
    # The template contains the special tokens.
    options: Any = {"add_special_tokens": False, "padding": True, "return_tensors": "pt"}
    if records[0].images:
        options["images"] = [record.images for record in records]
    return dict(policy.processor(text=texts, **options).to(policy.model.device))


@torch.no_grad()
def sample(policy: Policy, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one response to each row of the inputs: tokens and mask [N, T]."""
    tokens = policy.model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    is_end = torch.isin(tokens, torch.tensor(policy.ends, device=tokens.device)).long()
    return tokens, is_end.cumsum(1) - is_end == 0


def predict(
    policy: Policy, inputs: dict[str, Any], tokens: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities and exact entropies [N, T] in nats, both differentiable."""
    # The padding token may be banned; the end token has a finite log-probability.
    tokens, prompt = tokens.masked_fill(~mask, policy.ends[0]), inputs["attention_mask"]
    real = torch.cat([prompt, mask.long()], dim=1)
    # All padding is moved to the right, so that default positions are right for every model.
    order = real.argsort(dim=1, descending=True, stable=True)
    whole = {**inputs, "attention_mask": real.gather(1, order)}
    for name in inputs.keys() & {"input_ids", "token_type_ids", "mm_token_type_ids"}:
        behind = tokens if name == "input_ids" else torch.zeros_like(tokens)
        whole[name] = torch.cat([inputs[name], behind], dim=1).gather(1, order)
    lengths = prompt.sum(1, keepdim=True)
    first = int(lengths.min()) - 1  # the first place in any row that predicts a response's token
    kept = order.shape[1] - first
    logits = policy.model(**whole, use_cache=False, logits_to_keep=kept).logits.float()
    rows, columns = (torch.arange(size, device=tokens.device) for size in tokens.shape)
    logits = logits[rows[:, None], lengths - 1 - first + columns]  # [N, T, V]
    banned = torch.tensor(policy.banned, dtype=torch.int64, device=tokens.device)
    logits = logits.index_fill(-1, banned, -torch.inf)
    logprobs = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    return logprobs, g2rpo.entropy_from_logits(logits)


def roll_out(policy: Policy, records: Sequence[Any], n: int, rows: int) -> Rollouts:
    """Return n responses to each record, in passes of at most `rows` rows, or one group."""
    prompts, parts = max(1, rows // n), []
    copies = [record for record in records for _ in range(n)]
    for start in range(0, len(copies), prompts * n):
        inputs = encode(policy, copies[start : start + prompts * n])
        tokens, mask = sample(policy, inputs)
        with torch.no_grad():
            parts.append((inputs, tokens, mask, *predict(policy, inputs, tokens, mask)))
    inputs_of_passes, *tables = zip(*parts, strict=True)
    longest = max(tokens.shape[1] for tokens in tables[0])
    tokens, mask, logprobs, entropies = (
        torch.cat([pad(part, (0, longest - part.shape[1])) for part in table]) for table in tables
    )
    responses = [row[own] for row, own in zip(tokens, mask, strict=True)]
    texts = policy.tokenizer.batch_decode(responses, skip_special_tokens=True)
    scores = [score(record.as_row(), text)[:2] for record, text in zip(copies, texts, strict=True)]
    rewards, accuracies = torch.tensor(scores, dtype=torch.float32, device=tokens.device).T
    tasks = tokens.new_tensor([[*policy.tasks].index(record.task) for record in copies])
    sampled = (list(inputs_of_passes), tokens, mask, logprobs, entropies)
    return Rollouts(*sampled, rewards, accuracies, tasks)


def advantages_of(policy: Policy, rollouts: Rollouts, n: int) -> list[torch.Tensor]:
    """Return the advantages [N] of rewards and of lengths, for groups of n rollouts."""
    thresholds = torch.as_tensor(policy.targets.table(policy.tasks)).to(rollouts.rewards)
    lengths, right = rollouts.mask.sum(-1).float(), rollouts.accuracies > 0
    length_rewards = g2rpo.length_reward(lengths, thresholds[rollouts.tasks], right=right)
    given = (rollouts.rewards, length_rewards)
    return [g2rpo.gaussian_advantages(each, n, rollouts.tasks) for each in given]


def accumulate_gradients(policy: Policy, rollouts: Rollouts, n: int) -> g2rpo.LossTerms:
    """Accumulate the gradient of a batch's loss, pass by pass; return its terms."""
    _, tokens, mask, old_logprobs, old_entropies, *_, tasks = rollouts
    advantages, length_advantages = advantages_of(policy, rollouts, n)
    count, sums, start = len(policy.tasks), torch.zeros(5, device=tokens.device), 0
    # The totals of the whole batch: tokens, and mean entropies for the bounds of the tasks.
    totals = g2rpo.batch_totals(mask, entropies=old_entropies, tasks=tasks, num_tasks=count)
    for inputs in rollouts.inputs:
        rows = slice(start, start := start + len(inputs["input_ids"]))
        logprobs, entropies = predict(policy, inputs, tokens[rows], mask[rows])
        terms, _ = g2rpo.g2rpo_loss(
            logprobs,
            old_logprobs[rows],
            advantages[rows],
            mask[rows],
            options=LOSS,
            entropies=entropies,
            tasks=tasks[rows],
            entropy_low=entropies.new_full((count,), BOUNDS.low),
            entropy_high=entropies.new_full((count,), BOUNDS.high),
            entropy_weight=ENTROPY_WEIGHT,
            length_advantages=length_advantages[rows],
            length_weight=LENGTH_WEIGHT,
            totals=totals,
        )
        terms.total.backward()
        sums += torch.stack(terms).detach()
    return g2rpo.LossTerms(*sums)


def train(policy: Policy, options: argparse.Namespace) -> None:
    """Take the steps: sample, score, update."""
    weights = list(policy.model.parameters())
    optimizer = torch.optim.AdamW(weights, options.learning_rate, weight_decay=WEIGHT_DECAY)
    for step in range(options.steps):
        records = draw(policy, options.seed, step * options.prompts, options.prompts)
        rollouts = roll_out(policy, records, options.generations, options.rows)
        terms = accumulate_gradients(policy, rollouts, options.generations)
        torch.nn.utils.clip_grad_norm_(weights, MAX_GRAD_NORM, error_if_nonfinite=True)
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step == options.steps - 1:
            values = "  ".join(f"{name} {value:+.3f}" for name, value in terms._asdict().items())
            print(f"step {step:4d}: reward {rollouts.rewards.mean():.3f}  {values}", flush=True)


def evaluate(policy: Policy, options: argparse.Namespace) -> list[list[float]]:
    """Return held-out reward, length in tokens and entropy in nats of each task."""
    torch.manual_seed(0)
    records = draw(policy, 0, 0, options.held_out * len(policy.tasks), split="heldout")
    rollouts = roll_out(policy, records, options.generations, options.rows)
    tokens, entropies = rollouts.mask.sum(-1).float(), (rollouts.entropies * rollouts.mask).sum(-1)
    values = torch.stack([rollouts.rewards, tokens, entropies], dim=1)
    means = [values[rollouts.tasks == task].mean(0) for task in range(len(policy.tasks))]
    return [[reward, length, sums / length] for reward, length, sums in torch.stack(means).tolist()]


def main() -> None:
    """Train, and print each task before and after."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="builtin", help='"builtin", a folder, or owner/name')
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--prompts", type=int, default=24, help="prompts a step")
    parser.add_argument("--generations", type=int, default=8, help="responses to each prompt")
    parser.add_argument("--max-completion-length", type=int, default=48, help="tokens")
    parser.add_argument("--rows", type=int, default=192, help="responses in one pass of the model")
    parser.add_argument("--held-out", type=int, default=32, help="held-out records of each task")
    parser.add_argument("--learning-rate", type=float, default=1.5e-4)
    options = parser.parse_args()
    policy = load_policy(options.model, options.max_completion_length, options.device)
    before = evaluate(policy, options)
    torch.manual_seed(options.seed)
    train(policy, options)
    print(f"\n{'task':12} reward  after  change  tokens  after  entropy  after")
    for task, old, new in zip(policy.tasks, before, evaluate(policy, options), strict=True):
        rewards = f"{old[0]:7.3f}{new[0]:7.3f}{new[0] - old[0]:+8.3f}"
        print(f"{task:12}{rewards}{old[1]:8.1f}{new[1]:7.1f}{old[2]:9.3f}{new[2]:7.3f}")


if __name__ == "__main__":
    main()
