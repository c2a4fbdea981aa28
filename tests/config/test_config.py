import json

import pytest
from pydantic import BaseModel

from g2rpo import LOSSES
from g2rpo_trainer.config import BUILTIN_TASKS, TrainConfig, dump_config, load_config
from g2rpo_trainer.config.keys import joined_key, split_key
from g2rpo_trainer.config.presets import presets
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.run.records import with_tasks
from g2rpo_trainer.tasks import TASKS


def fields(model: type[BaseModel], prefix: str = ""):
    for name, field in model.model_fields.items():
        yield prefix + name, field
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{prefix}{name}.")


def error_of(**arguments) -> str:
    with pytest.raises(RunError) as caught:
        load_config(**arguments)
    return str(caught.value)


@pytest.mark.parametrize(("name", "field"), list(fields(TrainConfig)))
def test_every_field_is_described(name, field):
    assert field.description


def test_names_of_the_tasks_are_those_of_the_tasks():
    assert tuple(TASKS) == BUILTIN_TASKS


UNREACHABLE = (
    "length.targets.sums rewards nothing up to 40 tokens, but rollout.max_completion_length is 40; "
    "lower the target or raise that"
)


def test_a_length_target_that_no_response_can_reach():
    settings = ["rollout.max_completion_length=40", "length.targets={sums: [40, 50, 60, 70]}"]
    named = ["data.source=own.jsonl", "data.tasks=[sums]"]
    assert error_of(settings=[*settings, *named]) == UNREACHABLE
    load_config(settings=[*settings, *named, "length.mode=off"])
    own_limit = ["rollout.max_completion_length=99", "rollout.limits={sums: 40}"]
    text = error_of(settings=[*settings, *named, *own_limit])
    assert "but rollout.limits.sums is 40" in text


def test_a_task_that_the_data_name_has_a_target_in_reach(tmp_path):
    path = tmp_path / "own.jsonl"
    rows = [f'{{"problem": "{n}+1?", "answer": {n + 1}, "task_type": "sums"}}\n' for n in range(9)]
    path.write_text("".join(rows))
    settings = [f"data.source={path}", "data.problem_type=numerical", "data.eval_items=2"]
    settings.append("rollout.max_completion_length=40")
    low, high = "length.targets={sums: [39, 50, 60, 70]}", "length.targets={sums: [40, 50, 60, 70]}"
    assert with_tasks(load_config(settings=[*settings, low])).data.tasks == ["sums"]
    with pytest.raises(RunError) as refused:
        with_tasks(load_config(settings=[*settings, high]))
    assert str(refused.value) == UNREACHABLE


def test_defaults_alone_are_valid():
    assert load_config() == TrainConfig()


def test_dump_reads_back(tmp_path):
    config = load_config(settings=["estimator.task_stage=null", "data.level=2"])
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config


def test_flag_wins_over_setting_wins_over_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("seed: 1\noptimization: {steps: 1, learning_rate: 1e-3}\n")
    config = load_config(path, {"seed": 3}, ["seed=2", "optimization.steps=2"])
    assert (config.seed, config.optimization.steps) == (3, 2)
    # PyYAML reads 1e-3, without a point, as text.
    assert config.optimization.learning_rate == 1e-3


def test_mapping_in_a_file_replaces_and_a_setting_changes_one_entry(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("length: {targets: {ocr: [0, 1, 2, 3]}}\n")
    assert set(load_config(path).length.targets) == {"ocr"}
    targets = load_config(settings=["length.targets.ocr=[0, 1, 2, 3]"]).length.targets
    assert targets["ocr"] == (0, 1, 2, 3)
    assert set(targets) == set(BUILTIN_TASKS)


def test_loading_leaves_the_defaults_alone():
    load_config(settings=["length.targets.ocr=[0, 1, 2, 3]", "entropy.bounds.ocr=[0, 1]"])
    assert TrainConfig().length.targets["ocr"] != (0, 1, 2, 3)
    assert TrainConfig().entropy.bounds == {}


def test_empty_file_changes_nothing(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("")
    assert load_config(path) == TrainConfig()


@pytest.mark.parametrize(("word", "mode"), [("off", "off"), ("term", "term")])
def test_length_mode_off_survives_yaml(word, mode):
    assert load_config(settings=[f"length.mode={word}"]).length.mode == mode


@pytest.mark.parametrize(
    ("word", "mode"),
    [("off", "off"), ("false", "off"), ("true", "loss"), ("loss", "loss"), ("all", "all")],
)
def test_truncated_responses_are_masked_as_in_trl_or_further(word, mode, tmp_path):
    settings = [f"optimization.mask_truncated_completions={word}"]
    described = load_config(settings=settings)
    assert described.optimization.mask_truncated_completions == mode
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(described))
    assert load_config(path) == described


def test_shared_prompts_off_survives_yaml():
    assert load_config().rollout.shared_prompts == "auto"
    assert load_config(settings=["rollout.shared_prompts=off"]).rollout.shared_prompts == "off"


@pytest.mark.parametrize("word", ["null", "~", "none", "None"])
def test_no_task_stage(word):
    assert load_config(settings=[f"estimator.task_stage={word}"]).estimator.task_stage is None


def test_entropy_bounds_of_a_task():
    entropy = load_config(settings=["entropy.bounds.ocr=[0.1, 0.3]"]).entropy
    assert (entropy.of("ocr"), entropy.of("vqa")) == ((0.1, 0.3), (entropy.low, entropy.high))


@pytest.mark.parametrize("name", ["v1.5", "a=b", "a.b.c", "it's", 'say "x"', "[x]", "a b", "é\\"])
def test_every_mapping_by_task_takes_every_name(name):
    quoted = f"[{json.dumps(name)}]"
    values = {
        "rollout.limits": 30,
        "entropy.bounds": (0.0, 1.0),
        "entropy.weights": 2.0,
        "length.targets": (0.0, 1.0, 2.0, 3.0),
        "data.mixing.weights": 2.0,
        "rewards.functions": "module:function",
    }
    settings = [f"{key}{quoted}={json.dumps(value)}" for key, value in values.items()]
    config = load_config(settings=["data.source=own.jsonl", *settings])
    for key, value in values.items():
        section = config
        for part in key.split("."):
            section = getattr(section, part)
        assert section == {name: value}
        assert split_key(joined_key([*key.split("."), name])) == (*key.split("."), name)


@pytest.mark.parametrize("key", ["a..b", ".a", "a.", "", " ", 'a["b', 'a["b"]c', r'a["\x"]'])
def test_what_is_no_key(key):
    with pytest.raises(RunError, match="dotted key"):
        split_key(key)
    assert 'rollout.limits["v1.5"]=30' in error_of(settings=[f"{key}=3"]) or "\\x" in key


def test_a_name_with_a_dot_is_quoted_in_errors():
    named = ["data.source=own.jsonl", "data.tasks=[v1.5]", "rollout.max_completion_length=40"]
    settings = [*named, "length.targets['v1.5']=[30, 40, 50, 60]", "rollout.limits['v1.5']=20"]
    assert error_of(settings=settings) == (
        'length.targets["v1.5"] rewards nothing up to 30 tokens, but rollout.limits["v1.5"] is 20; '
        "lower the target or raise that"
    )
    assert "a name with a dot in it" in error_of(settings=["rollout.limits.v1.5=30"])


def test_no_message_is_longer_than_a_screen():
    long, many = "x" * 10**5, ", ".join(map(str, range(10**5)))
    for setting in (long, f"{long}=3", f"seed={long}", f"data=[{many}]", f"data.source={long}"):
        assert len(error_of(settings=[setting])) < 1000
    load_config(settings=[f"data.source=reasoning-gym:{','.join(['chain_sum'] * 99)}"])


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("rollout.num_generation=3", ["rollout.num_generation", "'num_generations'"]),
        ("rolout.x=3", ["rolout", "'rollout'"]),
        ("optimization.steps=0", ["optimization.steps is 0", "greater than or equal to 1"]),
        ("optimization.epsilon=.nan", ["optimization.epsilon is nan", "finite"]),
        ("seed=x", ["seed is 'x'", "whole number"]),
        ("seed=-1", ["seed is -1"]),
        ("data=3", ["data is 3", "section"]),
        ("data.tasks=maths", ["data.tasks is 'maths'", "a list"]),
        ("data.tasks=[]", ["data.tasks", "at least one"]),
        ("data.tasks=[math]", ["data.tasks", "'math'", "'maths'", "grounding"]),
        ("data.tasks=[ocr, ocr]", ["data.tasks", "once", "ocr"]),
        ("data.source=web", ["data.source", "'web'", "builtin"]),
        (
            "estimator={name: pass@k, options: {k: 8}}",
            ["estimator.options.k 8", "less than rollout.num_generations 8"],
        ),
        (
            "estimator={name: pass@k, options: {q: 8}}",
            ["options {'q': 8} of pass@k", "unexpected keyword argument 'q'"],
        ),
        (
            "estimator={name: grpo, options: {scale: all}}",
            ["of grpo: scale must be one of 'group', 'batch', 'none', got 'all'"],
        ),
        ("estimator.options={ties: barycentre}", ["but those of gaussian are keys beside it"]),
        (
            "estimator={name: opo, options: {lengths: 3}}",
            ["options has ['lengths'], which the run itself gives"],
        ),
        ("estimator.name=gausian", ["estimator.name", "'gausian'", "'gaussian'", "rloo"]),
        ("optimization.loss_type=dr_grpo", ["optimization.loss_type", "did you mean 'dr-grpo'"]),
        ("optimization.loss_type=no_such_module:own", ["loss_type", "cannot be imported"]),
        (
            "optimization.epsilon=-0.1",
            ["optimization", "epsilon must be", "non-negative, got -0.1"],
        ),
        ("optimization.dual_clip=0.5", ["optimization", "dual_clip must be at least 1, got 0.5"]),
        ("optimization.temperature_positive=2", ["'ppo'", "no temperature_positive"]),
        ("optimization.aggregation=mean", ["optimization.aggregation is 'mean'", "'task'"]),
        ("model.device=gpu", ["model.device", "'gpu'", "cuda"]),
        ("length.mode=fo", ["length.mode is 'fo'", "'term', 'reward' or 'off'"]),
        ("rollout.shared_prompts=never", ["shared_prompts is 'never'", "'auto' or 'off'"]),
        ("length.targets.maths=[3, 2]", ["length.targets.maths: [3, 2]", "too few"]),
        ("length.targets.maths=[3, 2, 1, 0]", ["length.targets", "maths", "ascend"]),
        ("length.targets.maths=[50, 60, 70, 80]", ["maths", "max_completion_length is 48"]),
        ("entropy.low=3", ["entropy.low 3.0", "entropy.high"]),
        ("entropy.bounds.ocr=[1, 0]", ["entropy.bounds", "ocr", "low <= high"]),
        ("optimization.updates_per_batch=99", ["updates_per_batch 99", "prompts_per_step"]),
        (
            "optimization.mask_truncated_completions=some",
            ["mask_truncated_completions is 'some'", "'off', 'loss' or 'all'"],
        ),
        ("optimization.top_entropy_quantile=1.5", ["top_entropy_quantile is 1.5", "equal to 1"]),
        (
            "optimization.off_policy_mask_threshold=0.5",
            ["off_policy_mask_threshold is 0.5", "updates_per_batch 1", "several updates"],
        ),
        ("rollout.vllm_importance_sampling_mode=token", ["mode is 'token'", "'token_truncate'"]),
        (
            "rollout.vllm_importance_sampling_clip_min=3",
            ["vllm_importance_sampling_clip_min 3 must be below", "clip_max 3"],
        ),
        ("task_weights.weights.ocr=-1", ["task_weights.weights", "ocr is -1", "0 or more"]),
        ("task_weights.low=2", ["task_weights.low is 2", "less than or equal to 1"]),
        ("steps", ["'steps'", "KEY=VALUE"]),
        ("seed=[", ["'['", "YAML"]),
    ],
)
def test_error_names_the_key_the_value_and_the_way_out(setting, parts):
    text = error_of(settings=[setting])
    assert "\n" not in text
    assert all(part in text for part in parts), text


@pytest.mark.parametrize("loss_type", list(LOSSES))
def test_a_loss_type_brings_its_own_numbers_and_survives_yaml(tmp_path, loss_type):
    config = load_config(settings=[f"optimization.loss_type={loss_type}"])
    options = config.optimization.loss_options(77)
    assert options.aggregation == LOSSES[loss_type].aggregation
    assert options.max_completion_length == (77 if loss_type == "dr-grpo" else None)
    for name, default in LOSSES[loss_type].defaults.items():
        assert getattr(options, name) == default
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config


def test_no_dual_clip_survives_yaml(tmp_path):
    config = load_config(settings=["optimization.dual_clip=.inf"])
    assert config.optimization.loss_options(9).dual_clip == float("inf")
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config


def test_a_loss_of_one_s_own_by_its_module(tmp_path, monkeypatch):
    (tmp_path / "losses_of_one.py").write_text(
        "from g2rpo import register_loss\n"
        "@register_loss('squared', aggregation='task', epsilon_high=0.5)\n"
        "def squared(ratio, logprobs, advantages, *, epsilon_high):\n"
        "    return -advantages * ratio**2\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        config = load_config(settings=["optimization.loss_type=losses_of_one:squared"])
        options = config.optimization.loss_options(9)
        assert (options.loss_type, options.aggregation) == ("squared", "task")
        assert options.epsilon_high == 0.5
        assert load_config(settings=["optimization.loss_type=squared"])
        assert "no epsilon" in error_of(
            settings=["optimization.loss_type=losses_of_one:squared", "optimization.epsilon=0.1"]
        )
    finally:
        LOSSES.pop("squared", None)


def test_every_error_has_a_line_of_its_own():
    assert len(error_of(settings=["seed=x", "sead=1"]).splitlines()) == 2


def test_error_names_the_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("seed: x\n")
    assert error_of(path=path).startswith(f"{path}: seed is 'x'")


@pytest.mark.parametrize(
    ("text", "part"), [("a: [", "is not YAML"), ("3", "holds a int"), (None, "cannot be read")]
)
def test_unreadable_file(tmp_path, text, part):
    path = tmp_path / "run.yaml"
    if text is not None:
        path.write_text(text)
    message = error_of(path=path)
    assert str(path) in message
    assert part in message


def test_description_does_not_change():
    with pytest.raises(ValueError, match="frozen"):
        TrainConfig().seed = 3


def test_no_preset_of_the_built_in_policy_and_none_for_a_key_that_does_not_exist():
    assert presets("builtin", 0) == {}
    for rank in (0, 8):
        settings = ["model.name=some/model", f"model.lora.rank={rank}"]
        values = load_config(settings=settings).model_dump()
        for key, preset in presets("some/model", rank).items():
            value = values
            for part in key.split("."):
                value = value[part]
            assert value == preset


def test_a_pretrained_model_has_defaults_of_its_own(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: {name: some/model, lora: {rank: 4}}\nentropy: {low: 0.1}")
    whole = load_config(overrides={"model.name": "some/model"})
    adapted = load_config(path)
    assert whole.optimization.learning_rate == 1e-6
    assert adapted.optimization.learning_rate == 1e-5
    for config in (whole, adapted):
        assert config.rollout.max_completion_length == 1024
        assert config.optimization.schedule == "constant"
    assert (whole.entropy.low, adapted.entropy.low) == (0.2, 0.1)
    builtin = load_config(path, {"model.name": "builtin"})
    assert builtin.optimization == TrainConfig().optimization


def test_what_is_said_is_left_alone():
    said = {"model.name": "some/model", "length.targets": {"maths": (1, 2, 3, 4)}}
    settings = ["optimization.learning_rate=0.5", "rollout.max_completion_length=7"]
    config = load_config(overrides=said, settings=settings)
    assert config.optimization.learning_rate == 0.5
    assert config.rollout.max_completion_length == 7
    load_config(overrides={**said, "length.targets.ocr": (1, 2, 3, 4)})
    assert list(said["length.targets"]) == ["maths"]


def test_the_key_engine_is_unknown():
    assert "engine: unknown key" in error_of(settings=["engine=jax"])


def test_a_task_of_the_other_source_is_told():
    assert "unknown task 'maths'" in error_of(
        settings=["data.source=builtin-text", "data.tasks=[maths]"]
    )
