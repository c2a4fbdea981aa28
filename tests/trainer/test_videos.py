"""Videos in the reference trainer: beside images and text in a batch, sampled and learnt from."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers.utils import is_torchvision_available

from g2rpo_trainer import logprobs, train
from g2rpo_trainer.config import load_config
from g2rpo_trainer.data import open_run, open_source
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.logprobs import completion_logprobs, plain_predictions
from g2rpo_trainer.model.loading import load_policy
from g2rpo_trainer.model.policy_model import Shortcuts
from g2rpo_trainer.packing import prompt_positions
from g2rpo_trainer.prompts.batching import select_rows
from g2rpo_trainer.prompts.encoding import Prompt, encode_prompts
from g2rpo_trainer.record import BrokenRecord
from g2rpo_trainer.sampling import sample
from g2rpo_trainer.shortcuts import choose_shortcuts

from ..films import film, numbers_of
from .one_update import learn_from, rollouts_to
from .shared_prompt_models import own_lines
from .tiny_videos import VIDEO_FAMILIES, build_policy, make_records


@pytest.fixture(scope="module")
def policies():
    """Return a function that makes the policy and the prompts of a family, each time anew."""

    def make(family, **options):
        policy = build_policy(family, **options)
        return policy, encode_prompts(policy, make_records(family))

    return make


@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_a_family_learns_from_text_images_and_videos(family, policies, caplog):
    policy, prompts = policies(family)
    before = {name: weight.clone() for name, weight in policy.model.named_parameters()}
    metrics = learn_from(policy, rollouts_to(policy, prompts))
    assert torch.isfinite(torch.tensor(list(metrics.values()))).all()
    assert metrics["grad_norm"] > 0
    changed = {n for n, w in policy.model.named_parameters() if not torch.equal(w, before[n])}
    assert any("visi" in name or "visual" in name for name in changed)
    assert not own_lines(caplog)


@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_first_update_has_ratio_one(family, policies):
    policy, prompts = policies(family)
    # Prompts are shared, videos or not.
    policy = choose_shortcuts(policy, prompts=select_rows(prompts, slice(0, 1)))
    assert policy.shortcuts == Shortcuts(shared_rollouts=True, packed_rows=True)
    torch.manual_seed(5)
    found = sample(policy, prompts, num_generations=3, max_completion_length=6)
    arguments = (policy, prompts, torch.arange(4).repeat_interleave(3), found.tokens, found.mask)
    with torch.no_grad():
        shared, _ = completion_logprobs(*arguments)
        plain, _ = plain_predictions(*arguments).values()
    for values in (shared, plain):
        ratios = torch.exp(values - found.logprobs)[found.mask]
        assert (ratios - 1).abs().max() < 2e-5


@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_responses_are_those_of_the_plain_way(family, policies):
    policy, prompts = policies(family)
    found = []
    for is_shared in (True, False):
        torch.manual_seed(3)
        one = replace(policy, shortcuts=Shortcuts(shared_rollouts=is_shared))
        found.append(sample(one, prompts, num_generations=2, max_completion_length=5))
    assert torch.equal(found[0].tokens, found[1].tokens)
    torch.testing.assert_close(found[0].logprobs, found[1].logprobs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_prompts_are_the_same_alone_and_in_a_batch(family, policies):
    policy, prompts = policies(family)
    records = make_records(family)
    with torch.no_grad():
        whole = policy.model(**prompts).logits[:, -1]
        for row in range(4):
            alone = policy.model(**encode_prompts(policy, [records[row]])).logits[:, -1]
            chosen = policy.model(**select_rows(prompts, slice(row, row + 1))).logits[:, -1]
            for found in (alone, chosen):
                torch.testing.assert_close(found[0], whole[row], rtol=0, atol=1e-4)
        order = [3, 0, 2, 0, 1]
        mixed = policy.model(**select_rows(prompts, torch.tensor(order))).logits[:, -1]
    torch.testing.assert_close(mixed, whole[order], rtol=0, atol=1e-4)


def video_of(data, frames=4):
    rows = [{"problem": f"{n}?", "answer": n, "videos": {"bytes": data}} for n in range(2)]
    rows = [{**row, "problem_type": "numerical"} for row in rows]
    settings = load_config(settings=[f"data.video_frames={frames}"]).data
    return open_source(settings, rows=rows).training_records(seed=0, position=0, prompts=1)[0]


def fault(policy, record):
    """Return why a policy cannot be asked a record."""
    with pytest.raises(BrokenRecord) as caught:
        Prompt.encoded(policy, record)
    return str(caught.value)


def test_the_model_is_told_when_frames_are_shown(policies):
    policy, _ = policies("qwen3_vl")
    # Eight frames in 21.7 seconds, at uneven distances. What is seen stands at 0, 5.4, 10.9 and
    # 16.3 seconds, two frames to a patch.
    record = video_of(film(8, 1, stamps=[0, 1, 4, 5, 9, 12, 15, 19]))
    encoded = encode_prompts(policy, [record])
    text = policy.tokenizer.decode(encoded["input_ids"][0])
    assert re.findall(r"<([\d.]+) seconds>", text) == ["2.7", "13.6"]
    assert numbers_of(record.videos[0].read().frames) == [0, 3, 4, 6]


def test_time_moves_the_positions_of_qwen2_5(policies):
    policy, _ = policies("qwen2_5_vl")
    positions = []
    for fps in (8, 2):
        encoded = encode_prompts(policy, [video_of(film(8, fps))])
        # Two frames a patch, a quarter of the video each.
        seconds = 8 / fps / 2
        assert encoded["second_per_grid_ts"].tolist() == pytest.approx([seconds])
        grid = encoded["video_grid_thw"][0].tolist()
        found = prompt_positions(policy.model, encoded)[0, 0]
        video = found[encoded["mm_token_type_ids"][0] == 2].view(grid[0], -1)
        positions.append(video[:, 0] - video[0, 0])
        pace = policy.model.config.vision_config.tokens_per_second
        assert positions[-1].tolist() == [0, int(seconds * pace)]
    assert positions[0][1] < positions[1][1]


def test_a_wrong_place_in_time_is_noticed(policies, monkeypatch, caplog):
    policy, prompts = policies("qwen2_5_vl")
    prompt = select_rows(prompts, torch.tensor([0]))
    assert choose_shortcuts(policy, prompts=prompt).shortcuts.packed_rows

    def without_time(model, prompts):
        return prompt_positions(model, {**prompts, "second_per_grid_ts": torch.zeros(1)})

    monkeypatch.setattr(logprobs, "prompt_positions", without_time)
    assert not choose_shortcuts(policy, prompts=prompt).shortcuts.packed_rows
    assert "differ from the plain pass by" in caplog.text


@pytest.mark.parametrize("family", ["llama", "llava", "idefics3", "gemma3"])
def test_a_model_without_videos_refuses_them(family, folders):
    policy = load_policy(str(folders(family)), device="cpu")
    with pytest.raises(RunError) as caught:
        encode_prompts(policy, [video_of(film(2))])
    text = str(caught.value)
    assert text.startswith("rows, record ")
    what = "takes text only" if family == "llama" else "takes none; name a model that takes videos"
    assert "has 1 video, but " in text
    assert what in text
    assert "1 video" in fault(policy, video_of(film(2)))


def test_a_missing_torchvision_is_named(folders, monkeypatch):
    monkeypatch.setattr("transformers.utils.import_utils.is_torchvision_available", lambda: False)
    policy = load_policy(str(folders("qwen3_vl")), device="cpu")
    for ask in (lambda one: encode_prompts(policy, [one]), partial(Prompt.encoded, policy)):
        with pytest.raises(
            RunError, match=r'torchvision for videos; run: pip install "g2rpo\[video\]"'
        ):
            ask(video_of(film(2)))


def test_images_and_videos_in_a_prompt_of_smolvlm_are_refused(policies):
    policy, _ = policies("smolvlm")
    record = replace(video_of(film(2)), images=[Image.new("RGB", (8, 8))])
    assert "takes one kind a prompt" in fault(policy, record)


def test_what_a_processor_refuses_is_told_by_its_record(policies):
    policy, _ = policies("qwen3_vl")
    with pytest.raises(RunError, match=r"^rows, record \d: the processor of .* refuses it \("):
        encode_prompts(policy, [video_of(film(1))])


def test_a_video_too_long_for_the_model():
    policy = build_policy("qwen3_vl", max_prompt_length=150)
    assert Prompt.encoded(policy, video_of(film(16), frames=2)).inputs
    assert "fewer frames (data.video_frames)" in fault(policy, video_of(film(16), frames=16))


@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_a_saved_folder_takes_videos_where_torchvision_is(family, policies, tmp_path):
    policy, _ = policies(family)
    policy.save(tmp_path)
    again = load_policy(str(tmp_path), device="cpu")
    assert again.takes_videos == is_torchvision_available()
    if again.takes_videos:
        # Without its image: torchvision and Pillow resize those differently.
        record = replace(make_records(family)[3], images=[])
        found, expected = (encode_prompts(one, [record]) for one in (again, policy))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.fixture
def films(tmp_path):
    """Thirty records of videos, of which every third is damaged."""
    rows = []
    for number in range(30):
        data = film(2 + number % 5, 4)
        (tmp_path / f"{number}.mp4").write_bytes(data if number % 3 else data[:99])
        window = f"[0.0, {(2 + number % 5) / 4}]"
        rows.append(
            {"problem": f"When is it dark? {number}", "videos": [f"{number}.mp4"], "answer": window}
            | {"problem_type": "temporal grounding", "data_type": "video", "task_type": "when"}
        )
    path = tmp_path / "films.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_a_run_on_videos(films, folders, tmp_path, monkeypatch):
    policy = build_policy("qwen2_5_vl")
    monkeypatch.setattr("g2rpo_trainer.model.reading.load_processor", lambda *_: policy.processor)
    config = load_config(
        overrides={
            "data.source": str(films),
            "data.video_frames": 4,
            "data.skip_broken": True,
            "data.eval_items": 2,
            "data.eval_generations": 2,
            "model.name": str(folders("qwen2_5_vl")),
            "model.device": "cpu",
            "rollout.prompts_per_step": 3,
            "rollout.num_generations": 2,
            "rollout.max_completion_length": 8,
            "optimization.steps": 2,
            "output.plots": False,
            "output.dir": str(tmp_path / "run"),
        }
    )
    source = open_run(config)
    summary = train(config, source=source)
    assert summary["steps"] == 2
    assert set(summary["after"]) == {"when", "mean"}
    lines = Path(tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert "loss/total" in json.loads(lines[-1])
    assert source.summary().skipped > 0
