"""tunix's agentic learner: one group at a time, on a running scale that is saved."""

from __future__ import annotations

import numpy as np

from g2rpo_tunix import AgenticG2RPOConfig, AgenticG2RPOLearner, RunningScale

from .conftest import GROUP, LETTERS, PROMPTS, TASKS, TOKENS, batches, make_cluster


class Plain:
    """Renders a conversation as its letters, one after the other."""

    def parse(self, messages, add_generation_prompt=False, is_first_msg=False):
        # tunix hands a prompt on as an array of one.
        return "".join(str(np.atleast_1d(message["content"])[0]) for message in messages)

    @property
    def assistant_token(self):
        return ""


def letters(prompts, completions, **_):
    return [text.count("a") + len(set(text)) / len(LETTERS) for text in completions]


def make_learner(steps, root=None, rewards=letters):
    config = AgenticG2RPOConfig(
        tasks=TASKS,
        num_generations=GROUP,
        beta=0.0,
        max_response_length=TOKENS,
        max_concurrency=1,
        scale_options={"decay": 0.8},
        sampling_seed=1,
    )
    cluster = make_cluster(steps=steps, root=root, logprobs=True, compute_logps_micro_batch_size=1)
    learner = AgenticG2RPOLearner(cluster, config, reward_fns=rewards, chat_parser=Plain())
    seen = []
    make = learner._batch_to_train_example

    def recorded(batch_results, mode):
        columns = [item.traj["original_input"] for item in batch_results]
        examples = make(batch_results, mode)
        seen.append((str(mode), columns, examples[0]))
        return examples

    learner._batch_to_train_example = recorded
    learner.seen = seen
    return learner


def train(data, steps, **options):
    evaluation = options.pop("evaluation", None)
    learner = make_learner(steps, **options)
    learner.train(data, evaluation)
    return learner


def replayed(learner, scale):
    """Feed a scale what the learner's saw, and compare what came out."""
    for mode, columns, example in learner.seen:
        tasks = [TASKS.index(str(column["task"][0])) for column in columns]
        texts = [
            "".join(LETTERS[i - 3] for i in row[np.asarray(mask) > 0] if i >= 3)
            for row, mask in zip(
                np.asarray(example.completion_ids), example.completion_mask, strict=True
            )
        ]
        rewards = np.asarray(letters(None, texts))
        advantages = scale(rewards, np.zeros(GROUP, int), np.asarray(tasks), update=mode == "train")
        np.testing.assert_allclose(example.advantages, advantages, atol=1e-6)


def test_groups_are_scaled_by_what_came_before(tmp_path):
    data = batches(3)
    learner = train(data, 2, root=tmp_path, evaluation=batches(1))
    modes = [mode for mode, *_ in learner.seen]
    assert modes.count("train") >= 2 * PROMPTS
    assert modes.count("eval") >= PROMPTS
    scale = RunningScale(TASKS, decay=0.8)
    replayed(learner, scale)
    assert scale.state_dict() == learner.scale.state_dict()
    assert learner.scale.deviations

    again = make_learner(3, root=tmp_path)
    assert again.scale.state_dict() != RunningScale(TASKS).state_dict()
    scale.load_state_dict(again.scale.state_dict())
    again.train(data)
    assert again.seen
    replayed(again, scale)
