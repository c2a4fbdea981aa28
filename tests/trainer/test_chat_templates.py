"""What chat templates of several families make of a run: ends, bans, openings, system messages."""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from g2rpo_cli.app import app
from g2rpo_trainer import evaluate, train
from g2rpo_trainer.config import Model, load_config
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.model.loading import load_policy, load_run_policy
from g2rpo_trainer.prompts.chat import chat_of
from g2rpo_trainer.prompts.encoding import encode_prompts
from g2rpo_trainer.record import FORMAT_INSTRUCTION, BrokenRecord, Record
from g2rpo_trainer.sampling import sample

from .scripted_models import BOXES, FAMILIES, TAGS, Family, save

ANSWER = "<think>a</think><answer>4</answer>"
STAND_IN = Path(__file__).parent / "stand_in"


def said_by(family):
    """Return the rest of an answer whose beginning the prompt may have opened."""
    if "</think>" in family.opened:
        return "<answer>4</answer>"
    return ANSWER.removeprefix("<think>") if family.opened else ANSWER


@pytest.fixture
def data(tmp_path):
    rows = [
        {"problem": f"What is {n} − {n - 4}?", "answer": 4, "problem_type": "numerical"}
        for n in range(24)
    ]
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps({**row, "task_type": "sums"}) + "\n" for row in rows))
    return path


@pytest.fixture
def describe(tmp_path, data):
    def describe(*settings):
        return load_config(settings=[*all_settings(tmp_path, data), *settings])

    return describe


def all_settings(folder, data):
    return [
        f"model.name={folder / 'model'}",
        "model.device=cpu",
        f"data.source={data}",
        "data.eval_items=2",
        "data.eval_generations=1",
        "length.mode=off",
        "rollout.prompts_per_step=4",
        "rollout.num_generations=2",
        "rollout.max_completion_length=24",
        "optimization.steps=1",
        "output.plots=false",
        f"output.dir={folder / 'run'}",
    ]


def completions(folder):
    return [
        json.loads(line) for line in (folder / "run/completions.jsonl").read_text().splitlines()
    ]


def record(*messages):
    turns = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in messages]
    several = turns if len(turns) > 1 else None
    return Record(messages[-1][1], "4", "numerical", "sums", messages=several)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_right_answer_ends_and_gets_its_whole_reward(name, describe, tmp_path):
    family = FAMILIES[name]
    said = said_by(family)
    save(tmp_path / "model", family, said + family.closes)
    summary = train(describe())
    assert summary["before"] == summary["after"] == {"sums": 1.5, "mean": 1.5}
    rows = completions(tmp_path)
    assert len(rows) == 8
    for row in rows:
        assert row["response"] == family.opened + said
        assert row.get("opened", "") == family.opened
        assert (row["reward"], row["accuracy"], row["format"]) == (1.5, 1, 1)
        assert row["ended"]
        # Sampled tokens only, the closing one among them.
        assert row["length"] == len(re.findall("<[^>]+>|.", said)) + 1


@pytest.mark.parametrize("name", ["chatml", "r1"])
def test_the_command_line_trains_and_evaluates_such_models(name, data, tmp_path):
    family = FAMILIES[name]
    said = said_by(family)
    save(tmp_path / "model", family, said + family.closes)
    settings = [part for one in all_settings(tmp_path, data) for part in ("--set", one)]
    trained = CliRunner().invoke(app, ["train", *settings])
    assert trained.exit_code == 0, trained.output
    file = tmp_path / "answers.jsonl"
    measured = CliRunner().invoke(app, ["eval", str(tmp_path / "run"), "--samples", str(file)])
    assert measured.exit_code == 0, measured.output
    for row in map(json.loads, file.read_text().splitlines()):
        assert (row["response"], row["format"]) == (family.opened + said, 1)
        assert row.get("opened", "") == family.opened


@pytest.mark.parametrize("name", ["chatml", "r1", "qwen3_without_thinking"])
def test_an_engine_gives_the_same_responses(name, describe, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(STAND_IN))
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    family = FAMILIES[name]
    save(tmp_path / "model", family, said_by(family) + family.closes)
    train(describe("rollout.engine=vllm", "rollout.stop=</none>"))
    sys.modules.pop("vllm", None)
    rows = completions(tmp_path)
    assert {row["response"] for row in rows} == {family.opened + said_by(family)}
    assert all(row["ended"] and row["format"] == 1 for row in rows)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_closes_a_turn_ends_and_what_opens_one_is_banned(name, describe, tmp_path):
    family = FAMILIES[name]
    save(tmp_path / "model", family, said_by(family) + family.closes)
    policy = load_run_policy(describe())
    tokens = policy.tokenizer.convert_ids_to_tokens
    assert {*tokens(list(policy.eos_ids))} == {family.special[0], family.closes}
    banned = {*tokens(policy.banned_ids.tolist())}
    expected = {*family.special} - {family.special[0], family.closes}
    # Where a prompt does not open an answer the model must do it.
    assert banned == (set() if name == "ignores_prompt" else expected)


def test_tokens_between_reasoning_and_answer_may_be_sampled(describe, tmp_path):
    """As in templates with channels, where the token that opens turns also opens the answer."""
    template = (
        "{% for message in messages %}<|start|>{{ message.role }}"
        "{% if message.thinking %}<|channel|>analysis<|message|>{{ message.thinking }}<|end|>"
        "<|start|>assistant{% endif %}"
        "{{ '<|channel|>final' if message.role == 'assistant' }}<|message|>{{ message.content }}"
        "{{ '<|return|>' if message.role == 'assistant' and loop.last else '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    )
    special = ["<|eot|>", "<|start|>", "<|end|>", "<|channel|>", "<|message|>", "<|return|>"]
    save(tmp_path / "model", Family(template, special, "t", "<|return|>"), ANSWER + "<|return|>")
    policy = load_run_policy(describe())
    tokens = policy.tokenizer.convert_ids_to_tokens
    assert {*tokens(list(policy.eos_ids))} == {"<|eot|>", "<|return|>"}
    assert not tokens(policy.banned_ids.tolist())


@pytest.mark.parametrize("special_tags", [True, False])
@pytest.mark.parametrize("stop", ["null", "</answer>"])
def test_tags_and_boxes_stay_in_the_text(special_tags, stop, describe, tmp_path):
    family = FAMILIES["chatml"]
    said = ANSWER.replace("4", f"{BOXES[0]}4{BOXES[1]}")
    save(tmp_path / "model", family, said + family.closes, special_tags=special_tags)
    config = describe(f"rollout.stop={stop}")
    samples = []
    evaluate(config.model.name, config, on_samples=samples.extend)
    assert {sample["response"] for sample in samples} == {said}
    length = len(TAGS) + len(BOXES) + 2
    assert {sample["length"] for sample in samples} == {length + (stop == "null")}
    assert all(sample["ended"] and sample["format"] == 1 for sample in samples)


def test_a_turn_may_end_with_a_text_that_is_no_token(describe, tmp_path):
    template = FAMILIES["chatml"].template.replace("<|im_end|>", "[END]")
    family = FAMILIES["chatml"]._replace(template=template, closes="[END]")
    save(tmp_path / "model", family, ANSWER + "[END]")
    config = describe()
    assert load_run_policy(config).closing_text == "[END]"
    train(config)
    for row in completions(tmp_path):
        assert (row["response"], row["format"], row["ended"]) == (ANSWER, 1, True)
        assert row["length"] == 6 + len("[END]")


def test_a_model_that_nothing_can_end_is_refused(describe, tmp_path):
    template = (
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    family = FAMILIES["chatml"]._replace(template=template, prompt_end=":")
    save(tmp_path / "model", family, ANSWER, eos=False)
    with pytest.raises(RunError, match=r"nothing can end a response.*rollout\.stop"):
        train(describe())
    train(describe("rollout.stop=</answer>"))
    for row in completions(tmp_path):
        assert (row["response"], row["length"], row["ended"]) == (ANSWER, 6, True)


def test_an_end_that_the_model_has_no_weights_for_is_none(describe, tmp_path):
    family = FAMILIES["chatml"]
    save(tmp_path / "model", family, ANSWER + family.closes, eos=False)
    file = tmp_path / "model" / "chat_template.jinja"
    file.write_text(family.template.replace("<|im_end|>", "<|late|>"))
    policy = load_run_policy(describe("rollout.stop=x"))
    policy.tokenizer.add_special_tokens({"additional_special_tokens": ["<|late|>"]})
    policy.tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(RunError, match="nothing can end a response"):
        load_run_policy(describe())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_text_reaches_the_prompt_once(name, describe, tmp_path):
    family = FAMILIES[name]
    save(tmp_path / "model", family, said_by(family) + family.closes)
    policy = load_run_policy(describe())
    turns = [("system", " be  kind\n"), ("user", "7+5? "), ("assistant", "13"), ("user", "No.")]
    text = chat_of(policy, record(*turns)).text
    for part in ("be  kind", FORMAT_INSTRUCTION, "7+5?", "13", "No."):
        assert text.count(part) == 1
    (ids,) = encode_prompts(policy, [record(*turns)])["input_ids"]
    assert policy.tokenizer.decode(ids) == text
    assert text.endswith(family.opened)
    assert chat_of(policy, record(*turns)).opened == family.opened
    if not family.system:
        assert "system" not in text
        assert text.index(FORMAT_INSTRUCTION) < text.index("7+5?")


def test_a_system_text_in_the_middle_opens_the_next_question(describe, tmp_path):
    family = FAMILIES["drops_system"]
    save(tmp_path / "model", family, ANSWER + family.closes)
    policy = load_run_policy(describe())
    turns = [("user", "one"), ("assistant", "two"), ("system", "be kind"), ("user", "three")]
    text = chat_of(policy, record(*turns)).text
    assert text == (
        "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n"
        "<|im_start|>user\nbe kind\n\nthree<|im_end|>\n<|im_start|>assistant\n"
    ).replace("one", f"{FORMAT_INSTRUCTION}\n\none")


@pytest.mark.parametrize(
    "change", ["upper", "lower", "trim", "e", "replace('<', '&lt;')", "split() | join(' ')"]
)
def test_a_template_may_change_the_texts(change, describe, tmp_path):
    joint = "." if change.startswith(("split", "replace")) else " | "
    template = FAMILIES["chatml"].template.replace(
        "message.content", f"message.content{joint}{change}"
    )
    save(tmp_path / "model", FAMILIES["chatml"]._replace(template=template), ANSWER + "<|im_end|>")
    policy = load_run_policy(describe())
    text = chat_of(policy, record(("system", " be \n <kind>"), ("user", "<b> 2+2?"))).text
    assert text.count("<|im_start|>system") == text.count("<|im_start|>user") == 1


def test_a_template_that_leaves_out_a_question_is_refused(describe, tmp_path):
    template = FAMILIES["chatml"].template.replace("in messages", "in messages[-1:]")
    save(tmp_path / "model", FAMILIES["chatml"]._replace(template=template), ANSWER + "<|im_end|>")
    policy = load_run_policy(describe())
    assert FORMAT_INSTRUCTION in chat_of(policy, record(("user", "2+2?"))).text
    turns = record(("user", "2+2?"), ("assistant", "5"), ("user", "No."))
    with pytest.raises(RunError, match=r"leaves out the text of its user message.*chat_template"):
        encode_prompts(policy, [turns])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_that_opens_no_answer_is_told_of(name, describe, tmp_path, caplog):
    family = FAMILIES[name]
    save(tmp_path / "model", family, said_by(family) + family.closes)
    with caplog.at_level(logging.WARNING):
        train(describe())
    warnings = [text for text in caplog.messages if "add_generation_prompt" in text]
    if name == "ignores_prompt":
        (warning,) = warnings
        assert r"'<|im_start|>assistant\n'" in warning
        assert "model.chat_template" in warning
    else:
        assert not warnings


def test_bare_texts_are_told_of(describe, tmp_path, caplog):
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    family = FAMILIES["chatml"]._replace(template=template, prompt_end="?")
    save(tmp_path / "model", family, ANSWER + "<|endoftext|>")
    with caplog.at_level(logging.WARNING):
        evaluate(str(tmp_path / "model"), describe())
    assert "end without a mark behind the question" in caplog.text


def test_a_template_among_several_is_the_default(describe, tmp_path):
    family = FAMILIES["chatml"]
    save(tmp_path / "model", family, ANSWER + family.closes)
    policy = load_run_policy(describe())
    policy.tokenizer.chat_template = {"default": family.template, "tool_use": "tools"}
    policy.tokenizer.save_pretrained(tmp_path / "model")
    policy = load_run_policy(describe())
    assert isinstance(policy.tokenizer.chat_template, dict)
    torch.manual_seed(0)
    prompts = encode_prompts(policy, [record(("user", "2+2?"))])
    drawn = sample(policy, prompts, num_generations=2, max_completion_length=24)
    assert drawn.texts == [ANSWER] * 2


def test_the_policy_that_knows_the_format_still_reads_system_messages(random_policy):
    assert chat_of(random_policy, record(("user", "2+2?"))).text == "<bos><user>2+2?<assistant>"
    text = chat_of(random_policy, record(("system", "be kind"), ("user", "2+2?"))).text
    assert text == "<bos><user>be kind2+2?<assistant>"


@pytest.mark.parametrize(
    "attack",
    [
        "{{ cycler.__init__.__globals__.os.system('touch MARK') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append.__self__.__class__.__base__.__subclasses__() }}",
    ],
)
def test_a_template_cannot_reach_python(attack, random_policy_folder, tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "template.jinja"
    path.write_text("{{ messages[0]['content'] }}" + attack.replace("MARK", str(mark)))
    model = Model(chat_template=str(path))
    policy = load_policy(str(random_policy_folder), device="cpu", model=model)
    with pytest.raises(BrokenRecord, match="unsafe"):
        chat_of(policy, Record("1 + 1?", "2", "numerical", "sums"))
    assert not mark.exists()
