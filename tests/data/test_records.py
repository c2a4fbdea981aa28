"""The reference trainer draws its prompts from the source."""

from g2rpo_trainer.config import TrainConfig, dump_config, load_config
from g2rpo_trainer.data import open_run

from .conftest import sums


def test_a_configuration_learns_the_tasks_of_its_source(write):
    path = write(sums(30, "first") + [{**row, "task_type": "second"} for row in sums(30)])
    config = load_config(overrides={"data.source": str(path), "data.eval_items": 2})
    assert config.data.tasks == []
    named, source = open_run(config)
    assert named.data.tasks == ["first", "second"]
    # Opened once: what was checked is not checked again.
    assert open_run(named, source) == (named, source)
    records = source.training_records(seed=0, position=12, prompts=4)
    again = open_run(named)[1]
    assert records == again.training_records(seed=0, position=12, prompts=4)
    assert len(source.held_out_records("second", 2)) == 2


def test_a_configuration_with_tasks_stays_as_it_is(tmp_path, write):
    assert open_run(TrainConfig())[0] == TrainConfig()
    chosen = {"data.source": str(write(sums(3))), "data.tasks": ["sums"]}
    config = load_config(overrides=chosen)
    assert open_run(config)[0] is config
    file = tmp_path / "run.yaml"
    file.write_text(dump_config(config))
    assert load_config(file) == config
