"""The reference trainer draws its prompts from the source."""

from g2rpo_trainer.config import TrainConfig, dump_config, load_config
from g2rpo_trainer.run.records import heldout_records, source_of, training_records, with_tasks

from .conftest import sums


def test_a_description_learns_the_tasks_of_its_source(write):
    path = write(sums(30, "first") + [{**row, "task_type": "second"} for row in sums(30)])
    config = load_config(overrides={"data.source": str(path), "data.eval_items": 2})
    assert config.data.tasks == []
    known = with_tasks(config)
    assert known.data.tasks == ["first", "second"]
    # Opened once: what was checked is not checked again.
    assert source_of(known.data) is source_of(config.data)
    records = training_records(known.data, seed=0, position=12, prompts=4)
    assert records == source_of(known.data).training_records(seed=0, position=12, prompts=4)
    assert len(heldout_records(known.data, "second")) == 2


def test_a_description_with_tasks_stays_as_it_is(tmp_path, write):
    assert with_tasks(TrainConfig()) == TrainConfig()
    chosen = {"data.source": str(write(sums(3))), "data.tasks": ["sums"]}
    config = load_config(overrides=chosen)
    assert with_tasks(config) is config
    file = tmp_path / "run.yaml"
    file.write_text(dump_config(config))
    assert load_config(file) == config
