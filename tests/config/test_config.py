import json
import runpy
from operator import attrgetter
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from g2rpo import LOSSES
from g2rpo_trainer.config import (
    BUILTIN_TASKS,
    PRESETS,
    TASK_KEYS,
    Model,
    TrainConfig,
    config_origins,
    config_template,
    dump_config,
    load_config,
)
from g2rpo_trainer.config.keys import joined_key, split_key
from g2rpo_trainer.data import open_run
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.tasks import TASKS


def values_by_key():
    """Return the fields that are no sections, by their dotted keys."""
    return {
        k: field for k, field in fields(TrainConfig) if not isinstance(field.default, BaseModel)
    }


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
    is_section = isinstance(field.default, BaseModel)
    assert field.annotation.__doc__ if is_section else field.description


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
    assert open_run(load_config(settings=[*settings, low])).tasks == ("sums",)
    with pytest.raises(RunError) as refused:
        open_run(load_config(settings=[*settings, high]))
    assert str(refused.value) == UNREACHABLE


def test_without_a_preset_the_builtin_policy_starts_from_its_own():
    assert load_config() == load_config("builtin") != TrainConfig()
    assert load_config(settings=["model.name=builtin"]) == load_config()
    assert load_config("builtin", {"model.name": "some/model"}).rollout.max_completion_length == 48


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
    assert load_config().length.targets["ocr"] == (0, 0, 10, 20)
    assert TrainConfig().length.targets == TrainConfig().entropy.bounds == {}


def test_empty_file_changes_nothing(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("")
    assert load_config(path) == load_config()


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
            ["options of 'pass@k': ", "unexpected keyword argument 'q'"],
        ),
        (
            "estimator={name: grpo, options: {scale: all}}",
            ["options of 'grpo': scale must be one of 'group', 'batch', 'none', got 'all'"],
        ),
        ("estimator.options={ties: barycentre}", ["but those of gaussian are keys beside it"]),
        (
            "estimator={name: opo, options: {lengths: 3}}",
            ["options must not have lengths: they are those of the responses"],
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
        ("rollout.shared_prompts=never", ["shared_prompts is 'never'", "'auto', 'try' or 'off'"]),
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


def test_neutral_defaults_suit_a_pretrained_model():
    neutral = load_config(overrides={"model.name": "some/model"})
    assert neutral == TrainConfig(model=Model(name="some/model"))
    assert neutral.rollout.max_completion_length == 1024
    optimization = neutral.optimization
    assert (optimization.learning_rate, optimization.schedule) == (1e-6, "constant")
    assert (neutral.entropy.low, neutral.length.weight) == (0.2, 0.1)
    assert all(attrgetter(key)(neutral) == {} for key in TASK_KEYS)


def test_adapters_have_a_learning_rate_of_their_own_unless_one_is_given(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: {name: some/model, lora: {rank: 4}}")
    assert load_config(path).optimization.learning_rate == 1e-5
    assert (
        load_config(path, {"optimization.learning_rate": 3e-6}).optimization.learning_rate == 3e-6
    )
    assert load_config(path, {"model.name": "builtin"}).optimization.learning_rate == 1.5e-4


def test_preset_file_setting_and_option_are_layers_in_this_order(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: {lora: {alpha: 8}}\nrollout: {stop: <end>, temperature: 0.5}\n")
    # Of a preset and a file the order does not matter, of two files it does.
    for paths in (["vlm-lora", path], [str(path), "vlm-lora"]):
        config = load_config(paths, {"seed": 3}, ["seed=2", "rollout.temperature=0.7"])
        assert (config.model.lora.rank, config.model.lora.alpha) == (16, 8)
        assert (config.rollout.stop, config.rollout.temperature, config.seed) == ("<end>", 0.7, 3)
    other = tmp_path / "other.yaml"
    other.write_text("rollout: {stop: null}\n")
    assert load_config([path, other]).rollout.stop is None
    assert load_config([other, path]).rollout.stop == "<end>"
    other.write_text("rollout: {stop: 3}\n")
    assert error_of(path=[path, other]).startswith(f"{other}: rollout.stop is 3")


def test_a_setting_does_not_hide_that_its_section_is_none(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("data: 3\nlength: {targets: 4}\n")
    lines = error_of(path=path, settings=["data.level=2", "length.targets.ocr=direct"]).splitlines()
    assert [line.partition(" is ")[0] for line in lines] == [
        f"{path}: data",
        f"{path}: length.targets",
    ]


def test_a_setting_of_a_section_leaves_its_other_keys_alone():
    config = load_config(settings=["length={mode: reward}", "model.lora={rank: 2}"])
    assert (config.length.mode, config.length.weight) == ("reward", 1.0)
    assert set(config.length.targets) == set(BUILTIN_TASKS)
    assert config.model.lora.rank == 2


@pytest.mark.parametrize("source", ["own.jsonl", "builtin-text"])
def test_targets_of_a_preset_are_for_its_own_data(source):
    own = load_config(overrides={"data.source": source})
    assert own.length.targets == {}
    assert own.length.weight == 1.0  # the rest of the preset holds


@pytest.mark.parametrize("name", PRESETS)
def test_every_key_of_a_preset_reaches_the_configuration(name):
    contents = yaml.safe_load(PRESETS[name].read_text(encoding="utf-8"))
    config = load_config(name)
    assert load_config(PRESETS[name]) == config  # as a file it is the same
    for section, values in contents.items():
        for key, value in values.items():
            found = config.model_dump(mode="json")[section][key]
            assert found == value if not isinstance(value, dict) else value.items() <= found.items()
    config.check_tasks(config.data.tasks, config.data.tasks)


def test_presets_train_what_they_are_named_after():
    assert sorted(PRESETS.values()) == sorted(PRESETS["vlm"].parent.iterdir())
    configs = {name: load_config(name) for name in PRESETS}
    assert [name for name in PRESETS if configs[name].model.lora.rank] == ["vlm-lora"]
    assert configs["vlm-lora"].optimization.learning_rate == 1e-5
    assert configs["text"].data.source == "builtin-text"
    assert all(configs[name].model.dtype == "bfloat16" for name in PRESETS if name != "builtin")


def test_a_misspelt_preset_is_refused_with_a_suggestion():
    text = error_of(path="vml")
    assert "did you mean 'vlm'?" in text
    assert "builtin, text, vlm, vlm-lora" in text


def test_each_value_has_the_place_that_decides_it(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("seed: 1\nrollout:\n  stop: <end>\n  limits: {ocr: 9}\n")
    second.write_text("# a comment\nseed: 2\n")
    overrides = {'rollout.limits["vqa"]': 8, "model.lora.rank": 4}
    config, origins = config_origins(["builtin", first, second], overrides)
    assert config == load_config(["builtin", first, second], overrides)
    assert origins["seed"] == f"{second}:2"
    assert origins["rollout.stop"] == f"{first}:3"
    assert origins["rollout.limits"] == f"{first}:4, override"
    assert origins["model.name"] == "preset builtin"
    assert origins["model.lora.rank"] == "override"
    assert origins["entropy.high"] == "default"
    _, origins = config_origins(first, {"model.name": "some/model", "model.lora.rank": 4})
    assert origins["optimization.learning_rate"] == "default of adapters"
    assert list(origins) == list(values_by_key())


def test_a_file_that_holds_itself_is_refused(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: &own {lora: *own}\n")
    assert "model.lora" in error_of(path=path)


def test_an_alias_and_a_merged_mapping_have_an_origin_too(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: &own {dtype: bfloat16}\n")
    assert config_origins(path)[1]["model.dtype"] == f"{path}:1"
    path.write_text("entropy:\n  <<: {low: 0.1}\n  high: 0.3\n")
    origins = config_origins(path)[1]
    assert origins["entropy.high"] == f"{path}:3"
    assert origins["entropy.low"] == str(path)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_template_holds_every_key_with_its_description(preset):
    text = " ".join(config_template(preset).replace("#", " ").split())
    for key, field in values_by_key().items():
        assert f"{' '.join(field.description.split())} {key.rpartition('.')[2]}:" in text, key


VALUES = {
    "length.targets": (0, 1, 2, 3),
    "entropy.bounds": (0, 1),
    "entropy.weights": 2,
    "task_weights.weights": 2,
    "rollout.limits": 30,
    "data.mixing.weights": 2,
}


@pytest.mark.parametrize("key", TASK_KEYS)
@pytest.mark.parametrize("tasks", [[], ["sums"], ["sums", "signs"]])
def test_a_misspelt_task_is_refused_in_every_mapping_by_task(key, tasks, tmp_path):
    path = tmp_path / "own.jsonl"
    rows = [{"problem": f"{n}+1?", "answer": n + 1, "problem_type": "numerical"} for n in range(20)]
    named = [{**row, "task_type": ("sums", "signs")[n % 2]} for n, row in enumerate(rows)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in named))
    own, known = {"data.source": str(path), "data.tasks": tasks}, ["sums", "signs"]
    with pytest.raises(RunError) as caught:
        open_run(load_config(overrides={**own, f"{key}.sum": VALUES[key]}))
    assert str(caught.value).startswith(f"{key}: unknown task 'sum'; did you mean 'sums'?")
    with pytest.raises(RunError, match=f"{key}: unknown task 'sum'"):
        load_config(overrides={**own, f"{key}.sum": VALUES[key]}).check_tasks(known, known)
    good = load_config(overrides={**own, f"{key}.sums": VALUES[key]})
    good.check_tasks(known, known)


@pytest.mark.parametrize("key", TASK_KEYS)
def test_what_decides_on_responses_is_for_trained_tasks_only(key):
    config = load_config(
        overrides={"data.source": "own.jsonl", "data.tasks": ["sums"], f"{key}.signs": VALUES[key]}
    )
    if key in ("rollout.limits", "data.mixing.weights"):
        with pytest.raises(
            RunError, match=rf"{key}\.signs is set, but the run leaves that task out"
        ):
            config.check_tasks(["sums", "signs"], ["sums"])
    else:
        config.check_tasks(["sums", "signs"], ["sums"])


def test_every_misspelt_task_has_a_line_of_its_own():
    settings = ["length.targets.orc=direct", "entropy.bounds.orc=[0, 1]", "data.tasks=[ocr]"]
    with pytest.raises(RunError) as caught:
        open_run(load_config(settings=settings))
    assert len(str(caught.value).splitlines()) == 2


def test_a_run_of_a_few_tasks_that_keeps_the_targets_of_all_can_be_loaded(tmp_path):
    path = tmp_path / "config.yaml"
    targets = dict(load_config().length.targets)
    for source, task in (("builtin", "ocr"), ("builtin-text", "box")):
        few = {"data.source": source, "data.tasks": [task], "length.targets": targets}
        path.write_text(dump_config(load_config(overrides=few)))
        assert open_run(load_config(path)).tasks == (task,)


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


def test_tables_of_the_documentation_hold_every_key_and_all_that_presets_change():
    hooks = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "hooks.py"))
    page = hooks["on_page_markdown"]
    keys = page("<!-- table of the configuration -->")
    assert "| `optimization.learning_rate` | `1.0e-06` | AdamW's" in keys
    for name, field in fields(TrainConfig):
        assert isinstance(field.default, BaseModel) or f"| `{name}` |" in keys
    presets = page("<!-- table of the presets -->")
    assert "| `rollout.max_completion_length` | `1024` | `48` |  |  |  |" in presets
    assert "optimization.updates_per_batch" not in presets
    assert page("no mark") == "no mark"
