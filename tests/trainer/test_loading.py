"""What a model may be, what of it is trained, and what is said when something is wrong with it."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
import transformers

from g2rpo_trainer.config import Model, load_config
from g2rpo_trainer.data import open_run
from g2rpo_trainer.errors import RunError, memory_advice
from g2rpo_trainer.model import reading
from g2rpo_trainer.model.adapting import count_parameters, vision_tower
from g2rpo_trainer.model.loading import load_policy, load_run_policy
from g2rpo_trainer.prompts.chat import chat_of, conversation
from g2rpo_trainer.prompts.encoding import Prompt, encode_prompts, join_prompts
from g2rpo_trainer.record import FORMAT_INSTRUCTION

from .one_update import learn_once
from .tiny_models import (
    FAMILIES,
    IMAGE_FAMILIES,
    PLACEHOLDERS,
    build_tokenizer,
    chat_template,
    make_records,
)

REFUSES_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
)


def load(folder, **options):
    return load_policy(str(folder), device="cpu", model=Model(**options))


@pytest.fixture
def copied(folders, tmp_path):
    """Return a function that copies a family's folder, to be spoilt."""

    def copy(family):
        return shutil.copytree(folders(family), tmp_path / family)

    return copy


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_a_frozen_vision_tower_stays_as_it_is(family, folders):
    policy = load(folders(family), freeze_vision=True)
    tower = vision_tower(policy.model)
    inside = {name: weight.clone() for name, weight in tower.named_parameters()}
    assert inside
    trained, total = count_parameters(policy.model)
    assert total - trained == sum(weight.numel() for weight in inside.values())
    embeddings = policy.model.get_input_embeddings().weight.clone()
    learn_once(policy, family)
    for name, weight in tower.named_parameters():
        assert torch.equal(weight, inside[name]), name
    assert not torch.equal(policy.model.get_input_embeddings().weight, embeddings)


def test_a_text_model_has_nothing_to_freeze(folders):
    with pytest.raises(RunError, match="LlamaForCausalLM has no vision tower; leave it out"):
        load(folders("llama"), freeze_vision=True)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_is_a_choice(attention, folders):
    policy = load(folders("qwen3_vl"), attention=attention)
    assert policy.model.config.get_text_config()._attn_implementation == attention


def test_flash_attention_that_is_missing_is_named(folders):
    must = r"model.attention is 'flash_attention_2', which .* name another, or leave it out .*Flash"
    with pytest.raises(RunError, match=must):
        load(folders("llama"), attention="flash_attention_2")


@pytest.mark.parametrize("name", ["./models/none", "/models/none", "~/none", "runs/g2rpo/final"])
def test_a_path_that_leads_nowhere_is_not_looked_for_on_the_hub(name):
    with pytest.raises(RunError, match=rf"--model is '{name}', but there is no such folder"):
        load_policy(name, device="cpu")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("no/model", "--model is 'no/model'"), ("{tmp}", "config.json")],
)
def test_a_missing_model_is_named(name, reason, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match="which cannot be loaded; it must be") as raised:
        load(name.replace("{tmp}", str(tmp_path)))
    assert reason in str(raised.value)


def test_a_model_of_another_kind_is_named(tmp_path):
    transformers.BertConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    config = transformers.CLIPConfig()
    config.save_pretrained(tmp_path)
    with pytest.raises(RunError, match="it is a clip, which generates no text"):
        load(tmp_path)


def test_a_broken_file_is_named(copied):
    folder = copied("llama")
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(RunError, match=r"--model is .*llama.* cannot be loaded"):
        load(folder)


def test_a_missing_gguf_is_named(tmp_path):
    with pytest.raises(RunError, match="cannot be loaded"):
        load(tmp_path, gguf_file="model.gguf")


@pytest.mark.parametrize("family", ["llava", "llama"])
def test_a_model_without_a_template_says_what_to_do(family, copied, tmp_path):
    folder = copied(family)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(RunError, match=r"no chat template.*model\.chat_template"):
        load(folder)
    file = tmp_path / "own.jinja"
    file.write_text("Q:" + chat_template(PLACEHOLDERS.get(family)))
    policy = load(folder, chat_template=str(file))
    assert chat_of(policy, make_records(family)[1]).text.startswith("Q:<bos>")
    policy.save(tmp_path / "saved")
    assert chat_of(load(tmp_path / "saved"), make_records(family)[1]).text.startswith("Q:<bos>")
    with pytest.raises(RunError, match=r"no\.jinja.*cannot be read"):
        load(folder, chat_template=str(tmp_path / "no.jinja"))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_instruction_opens_every_prompt(family, folders):
    policy = load(folders(family))
    record = make_records(family)[0]
    text = chat_of(policy, record).text
    start = f"<bos><system>{FORMAT_INSTRUCTION}<user>"
    assert text.startswith(start)
    assert text.endswith(f"{record.problem}<assistant>")
    if family in IMAGE_FAMILIES:
        assert text.removeprefix(start).startswith(2 * PLACEHOLDERS[family])
    ids = encode_prompts(policy, [record])["input_ids"][0].tolist()
    assert ids.count(policy.tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("family", ["llava", "llama"])
def test_a_template_without_system_messages(family, folders):
    policy = load(folders(family))
    template = REFUSES_SYSTEM + chat_template(PLACEHOLDERS.get(family))
    policy.processor.chat_template = template
    record = make_records(family)[1]
    text = chat_of(policy, record).text
    assert text.startswith(f"<bos><user>{FORMAT_INSTRUCTION}")
    assert text.count("<user>") == 1
    assert [turn["role"] for turn in conversation(record)] == ["system", "user"]
    policy.processor.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(RunError, match=r"batch \(task ocr\).*refuses the conversation \(never\)"):
        encode_prompts(policy, [replace(record, task="ocr")])


def test_a_beginning_is_left_to_the_tokenizer_where_the_template_has_none(folders):
    """As in LLaVA 1.5, whose template holds no token of a beginning."""
    policy = load(folders("llava"))
    policy.processor.chat_template = chat_template("<image>").removeprefix("<bos>")
    seen = []
    processor = policy.processor

    class Watched(type(processor)):
        def __call__(self, **options):
            seen.append(options)
            return super().__call__(**options)

    processor.__class__ = Watched
    encode_prompts(policy, make_records("llava")[:1])
    processor.chat_template = chat_template("<image>")
    encode_prompts(policy, make_records("llava")[:1])
    assert "add_special_tokens" not in seen[0]
    assert seen[1]["add_special_tokens"] is False


def test_images_for_a_text_model_are_named(folders):
    policy = load(folders("llama"))
    record = replace(make_records("llava")[0], place="own.jsonl, line 7")
    with pytest.raises(RunError, match=r"^own\.jsonl, line 7: has 2 images, but .* text only"):
        encode_prompts(policy, [record])


def test_a_prompt_that_is_too_long_is_named(folders):
    policy = load_policy(str(folders("qwen3")), device="cpu", max_prompt_length=100)
    with pytest.raises(RunError, match=r"prompt 1 of the batch.* tokens, but at most 100 are"):
        encode_prompts(policy, make_records("qwen3"))
    context = load_policy(str(folders("qwen3")), device="cpu", max_completion_length=112)
    assert context.max_prompt_length == 400
    with pytest.raises(RunError, match="max_completion_length is 512, but the model's context"):
        load_policy(str(folders("qwen3")), device="cpu", max_completion_length=512)


@pytest.fixture
def mixed_records(tmp_path):
    """Sixty records, of which every third is too long for a limit of 160 tokens."""
    rows = [
        {
            "problem": f"What is {n} + 1?" + " Really?" * (20 if n % 3 == 0 else 0),
            "answer": str(n + 1),
            "problem_type": "numerical",
            "task_type": "sums",
        }
        for n in range(60)
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_records_that_do_not_fit_are_left_out_if_allowed(mixed_records, folders):
    settings = [
        f"model.name={folders('llama')}",
        "model.device=cpu",
        f"data.source={mixed_records}",
        "rollout.max_prompt_length=160",
        "length.mode=off",
    ]
    drawn = {"seed": 0, "position": 0, "prompts": 40}
    strict = load_config(settings=settings)
    policy = load_run_policy(strict)
    encode = partial(Prompt.encoded, policy)
    source = open_run(strict)
    with pytest.raises(RunError, match=r"own\.jsonl, line \d+: its prompt has .*skip_broken"):
        [source.read(slot, encode) for slot in source.slots(**drawn)]

    source = open_run(load_config(settings=[*settings, "data.skip_broken=true"]))
    prompts = [source.read(slot, encode) for slot in source.slots(**drawn)]
    assert len(prompts) == 40
    assert join_prompts(prompts)["input_ids"].shape[1] <= 160
    held_out = list(source.held_out("sums", 9, encode))
    assert not any("Really" in prompt.record.problem for prompt in held_out)
    summary = source.summary()
    assert summary.skipped > 0
    assert "its prompt has" in summary.examples[0]


def test_a_task_that_a_text_model_cannot_see_is_told_how_to_leave_out(folders, tmp_path):
    rows = [
        {
            "problem": f"What is {n} + 1?",
            "answer": str(n + 1),
            "problem_type": "numerical",
            "task_type": ("sums", "dots")[n % 2],
            "images": [f"{n}.png"] * (n % 2),
        }
        for n in range(20)
    ]
    (image, *_) = make_records("llava")[2].images
    for n in range(20):
        image.save(tmp_path / f"{n}.png")
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [
        f"model.name={folders('llama')}",
        "model.device=cpu",
        f"data.source={path}",
        "data.skip_broken=true",
        "rollout.max_prompt_length=300",
        "length.mode=off",
    ]
    config = load_config(settings=settings)
    encode = partial(Prompt.encoded, load_run_policy(config))

    def read(source):
        slots = source.slots(seed=0, position=0, prompts=8)
        return [source.read(slot, encode).record for slot in slots]

    with pytest.raises(RunError) as raised:
        read(open_run(config))
    first, reason, advice = str(raised.value).splitlines()
    assert first.startswith("task 'dots': none of its ")
    assert "own.jsonl, line " in reason
    assert "has 1 image, but" in reason
    assert advice.endswith("leave the task out: name the others in data.tasks")
    # The advice works.
    only_sums = open_run(load_config(settings=[*settings, "data.tasks=[sums]"]))
    assert {record.task for record in read(only_sums)} == {"sums"}


@pytest.mark.parametrize("family", ["qwen3_vl", "smolvlm"])
def test_settings_for_videos_are_carried_along(family, copied, tmp_path):
    folder = copied(family)
    kind = {"qwen3_vl": "Qwen3VLVideoProcessor", "smolvlm": "SmolVLMVideoProcessor"}[family]
    settings = {"video_processor_type": kind, "fps": 3}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(settings))
    for end in ("once", "twice"):
        load(folder).save(tmp_path / end)
        folder = tmp_path / end
        saved = json.loads((folder / "processor_config.json").read_text())
        assert settings.items() <= saved["video_processor"].items()
        assert saved["processor_class"] == type(load(folder).processor).__name__
    assert "pixel_values" in encode_prompts(load(folder), make_records(family))


def test_too_little_memory_says_what_to_change(folders, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nMore.")

    monkeypatch.setattr(reading, "_load_model", full)
    with pytest.raises(RunError, match=r"out of memory in loading the model.*model\.dtype"):
        load(folders("llama"))


def test_other_errors_keep_their_text():
    with pytest.raises(RuntimeError, match=r"^shapes differ$"), memory_advice("a", "b"):
        raise RuntimeError("shapes differ")
    with (
        pytest.raises(RunError, match=r"out of memory in a .*try b, c$"),
        memory_advice("a", "b", "c"),
    ):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")


def test_remote_code_stays_off_and_is_warned_of_before_it_runs(copied, caplog):
    folder = copied("llama")
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "unheard_of"
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('code was run')\n")
    with pytest.raises(RunError, match="cannot be loaded"):
        load(folder)
    assert "trust_remote_code" not in caplog.text
    with pytest.raises(SystemExit, match="code was run"):
        load(folder, trust_remote_code=True)
    assert f"Python code of {folder} runs with all your rights" in caplog.text


def test_a_configuration_that_cannot_be_saved_is_refused_before_the_run(folders, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own"}))
    (folder / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n\n"
        "class OwnConfig(LlamaConfig):\n"
        "    model_type = 'own'\n\n"
        "    def __post_init__(self, **kwargs):\n"
        "        super().__post_init__(**kwargs)\n"
        "        self.top_k = 5\n\n"
        "class OwnModel(LlamaForCausalLM):\n"
        "    config_class = OwnConfig\n"
    )
    with pytest.raises(RunError, match=r"cannot be loaded.*top_k"):
        load(folder, trust_remote_code=True)


def test_special_tokens_are_never_sampled(folders, caplog):
    with caplog.at_level(logging.WARNING):
        policy = load(folders("qwen2_5_vl"))
    banned = policy.tokenizer.convert_ids_to_tokens(policy.banned_ids.tolist())
    assert {"<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<pad>", "<user>"} <= set(banned)
    assert "<eos>" not in banned
    tokenizer = build_tokenizer("llama")
    text = "<think>1 + 1 = 2</think><answer>2 × ½</answer>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_the_vision_tower_has_attention_of_its_own(folders, family):
    model = load(folders(family), vision_attention="eager").model
    assert model.config.vision_config._attn_implementation == "eager"
    assert model.config.get_text_config()._attn_implementation == "sdpa"
    both = load(folders(family), vision_attention="sdpa", attention="eager").model
    assert both.config.vision_config._attn_implementation == "sdpa"
    assert both.config.get_text_config()._attn_implementation == "eager"


def test_attention_of_a_vision_tower_that_is_not_there_is_refused(folders):
    with pytest.raises(RunError, match=r"model.vision_attention is 'sdpa', but .* has no vision"):
        load(folders("llama"), vision_attention="sdpa")


def test_flash_attention_of_a_vision_tower_that_is_missing_is_named(folders):
    with pytest.raises(RunError, match=r"model.vision_attention is 'flash_attention_2', which"):
        load(folders("llava"), vision_attention="flash_attention_2")
