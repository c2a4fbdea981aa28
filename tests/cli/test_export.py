"""`g2rpo export` as a user types it, and the tables behind it."""

import json
import re
from functools import partial

import pytest

from g2rpo_cli.hosts.keys import leaves, settle
from g2rpo_cli.hosts.trl import TRL
from g2rpo_cli.hosts.verl import VERL
from g2rpo_trainer.config import TrainConfig, load_config

from ..way_over import rows_of_two_tasks, write

TABLES = {"trl": TRL.table, "verl": VERL.table}
KEYS = dict(leaves(TrainConfig()))


@pytest.fixture
def export(g2rpo):
    """Return a function that runs ``g2rpo export``: exit code, stdout, stderr."""
    return partial(g2rpo, "export")


@pytest.fixture
def data(tmp_path):
    """Return a file of two tasks."""
    return write(tmp_path / "sums.jsonl", rows_of_two_tasks())


def fates(host, *settings, **overrides):
    """Return what becomes of each key of a run on two tasks."""
    base = {"model.name": "some/model", "data.source": "a.jsonl", "data.tasks": ["sums", "box"]}
    config = load_config(overrides={**base, **overrides}, settings=settings)
    return {each.key: each.fate for each in settle(config, TABLES[host])}


@pytest.mark.parametrize("host", TABLES)
def test_every_key_has_its_place_in_the_table(host):
    assert KEYS.keys() - TABLES[host].keys() == set()
    assert TABLES[host].keys() - KEYS.keys() == set()


@pytest.mark.parametrize("host", TABLES)
def test_every_key_is_carried_or_has_a_reason(host):
    for key, fate in fates(host).items():
        assert fate.status in ("carried", "not needed", "not carried"), key
        assert fate.text, key
        assert fate.status == "carried" or not fate.text.startswith("`"), key


#: Key: value that asks for something that the host does not have.
LOST = {
    "rollout.limits": {"sums": 64},
    "rollout.stop": "</answer>",
    "rollout.dynamic_sampling.mode": "signal",
    "task_weights.adapt": 10,
    "optimization.mask_truncated_completions": "all",
    "optimization.aggregation": "task",
    "optimization.top_entropy_quantile": 0.2,
    "optimization.schedule": "linear",
    "output.equity_steps": 5,
    "output.plots": True,
}


@pytest.mark.parametrize("host", TABLES)
@pytest.mark.parametrize("key", LOST)
def test_what_the_host_lacks_is_told_and_what_is_off_is_not(host, key):
    has_linear = key == "optimization.schedule" and host == "trl"
    expected = "carried" if has_linear else "not carried"
    assert fates(host, **{key: LOST[key]})[key].status == expected
    off = False if key == "output.plots" else 0 if key == "output.equity_steps" else None
    quiet = fates(host) if off is None else fates(host, **{key: off})
    assert quiet[key].status != "not carried"


@pytest.mark.parametrize(
    ("host", "settings", "expected"),
    [
        ("trl", ["loss_type=gspo"], {"importance_sampling_level": "sequence", "loss_type": "grpo"}),
        ("trl", ["loss_type=cispo"], {"loss_type": "cispo", "epsilon_high": 5.0}),
        ("trl", ["loss_type=dapo"], {"loss_type": "dapo", "epsilon_high": 0.28}),
        ("trl", ["aggregation=constant"], {"loss_type": "dr_grpo", "delta": 3.0}),
        ("trl", ["updates_per_batch=3", "steps=10"], {"max_steps": 30, "save_steps": 75}),
        ("trl", ["beta=0.1", "kl_kind=k3"], {"beta": 0.1, "use_bias_correction_kl": False}),
        (
            "verl",
            ["loss_type=grpo"],
            {
                "actor_rollout_ref.actor.policy_loss.loss_mode": "vanilla",
                "actor_rollout_ref.actor.loss_agg_mode": "seq-mean-token-mean",
                "actor_rollout_ref.actor.clip_ratio_c": 1e6,
            },
        ),
        ("verl", ["updates_per_batch=5"], {"actor_rollout_ref.actor.ppo_mini_batch_size": 5}),
        ("verl", ["beta=0.1", "kl_kind=k1"], {"actor_rollout_ref.actor.kl_loss_type": "k1"}),
    ],
)
def test_options_mean_the_same(host, settings, expected):
    found = {}
    for fate in fates(host, *(f"optimization.{each}" for each in settings)).values():
        found |= fate.options
    assert expected.items() <= found.items()


def test_targets_that_follow_from_a_limit_are_numbers():
    found = fates("trl", **{"length.targets": {"sums": "direct"}, "rollout.limits": {"sums": 64}})
    assert found["length.targets"].options == {"length_targets": {"sums": [0.0, 0.0, 2.0, 8.0]}}


@pytest.mark.parametrize("host", TABLES)
def test_what_is_not_carried_stands_on_the_screen_and_all_in_the_readme(
    host, export, data, tmp_path
):
    settings = ["optimization.steps=2", "rollout.prompts_per_step=3", "rollout.stop=</answer>"]
    code, out, err = export(
        host,
        "-c",
        "text",
        "--data",
        data,
        "-o",
        tmp_path / "x",
        *(w for s in settings for w in ("-s", s)),
    )
    assert (code, err) == (0, "")
    page = (tmp_path / "x" / "README.md").read_text()
    rows = dict(
        re.findall(r"^\| `([\w.]+)` \| .* \| (carried|not needed|not carried) \|", page, re.M)
    )
    assert rows.keys() == KEYS.keys()
    for key, status in rows.items():
        assert (f"  {key}: " in out) == (status == "not carried")
        assert (f"- {key}: " in page) == (status == "not carried")
    assert "  rollout.stop: no text ends a response here" in out
    lost = sum(status == "not carried" for status in rows.values())
    assert f"of {len(KEYS)} keys" in out
    assert f"{lost} are not carried over" in out
    assert "data/train.parquet: 6 records" in out


def test_prompts_are_those_of_the_run_in_their_order(export, data, tmp_path):
    import pyarrow.parquet as pq

    from g2rpo_trainer.data import open_source

    settings = ["seed=3", "optimization.steps=4", "rollout.prompts_per_step=5"]
    settings += ["data.mixing.weights={sums: 3, box: 1}"]
    words = [word for text in settings for word in ("-s", text)]
    assert export("trl", "-c", "text", "--data", data, "-o", tmp_path / "x", *words)[0] == 0
    rows = pq.read_table(tmp_path / "x" / "data" / "train.parquet").to_pylist()
    config = load_config("text", {"data.source": str(data)}, settings)
    records = open_source(config.data).training_records(seed=3, position=0, prompts=20)
    assert [row["prompt"][-1]["content"] for row in rows] == [r.problem for r in records]
    assert [row["task_type"] for row in rows].count("sums") == 15


def test_the_embedded_policy_is_refused(export, data, tmp_path):
    code, out, err = export("trl", "--data", data, "-o", tmp_path / "x")
    assert (code, out) == (2, "")
    assert "model.name is builtin, the policy inside this package" in err
    assert "--model" in err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("host", TABLES)
def test_built_in_text_tasks_go_along(host, export, tmp_path):
    settings = ("-s", "optimization.steps=2", "-s", "data.eval_items=3")
    code, out, _ = export(host, "--config", "text", "-o", tmp_path / "x", *settings)
    assert code == 0
    assert "train.parquet: 48 records" in out
    assert "test.parquet: 12 records" in out


def test_unknown_trainers_and_folders_that_hold_something_else_are_refused(export, data, tmp_path):
    code, _, err = export("verk", "-c", "text", "--data", data, "-o", tmp_path / "x")
    assert code == 2
    assert "unknown trainer 'verk'; did you mean 'verl'?" in err
    code, _, err = export("trl", "-c", "text", "--data", data, "-o", tmp_path, "--force")
    assert code == 2
    assert "sums.jsonl" in err
    assert data.exists()


def test_own_rewards_are_found_from_where_the_run_is_started(export, tmp_path, monkeypatch):
    (tmp_path / "my_own.py").write_text("def near(answer, truth):\n    return 1.0\n")
    rows = ({"problem": f"{n}?", "answer": "red", "problem_type": "colour"} for n in range(9))
    data = tmp_path / "colours.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    words = ("-c", "text", "--data", data, "--reward", "colour=my_own:near")
    words += ("-s", "optimization.steps=1")
    assert export("trl", *words, "-o", tmp_path / "x")[0] == 0
    script = (tmp_path / "x" / "train.py").read_text()
    assert "functions={'colour': 'my_own:near'}" in script
    assert "sys.path.append(os.getcwd())" in script
    assert export("verl", *words, "-o", tmp_path / "y")[0] == 0
    assert "'functions': {'colour': 'my_own:near'}" in (tmp_path / "y" / "rewards.py").read_text()


@pytest.mark.parametrize(
    "settings",
    [
        ["model.lora.rank=8", "model.chat_template=TEMPLATE", "model.freeze_vision=true"],
        ["rollout.engine=vllm", "estimator.name=rloo", "data.eval_temperature=0.5"],
        ["length.calibrate=true", "length.only_right=false", "model.lora.target_modules=[q_proj]"],
    ],
)
def test_every_script_is_python(settings, export, data, tmp_path):
    (tmp_path / "a.jinja").write_text("{{ messages }}\n'\"\n")
    settings = [each.replace("TEMPLATE", str(tmp_path / "a.jinja")) for each in settings]
    words = [word for text in [*settings, "optimization.steps=1"] for word in ("-s", text)]
    assert export("trl", "-c", "text", "--data", data, "-o", tmp_path / "x", *words)[0] == 0
    compile((tmp_path / "x" / "train.py").read_text(), "train.py", "exec")
