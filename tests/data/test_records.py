"""The reference trainer draws its prompts from the source."""

from g2rpo_trainer.config import TrainConfig, dump_config, load_config
from g2rpo_trainer.data import open_run

from .conftest import sums


def test_the_tasks_of_a_run_are_those_of_its_source(write):
    path = write(sums(30, "first") + [{**row, "task_type": "second"} for row in sums(30)])
    config = load_config(overrides={"data.source": str(path), "data.eval_items": 2})
    source = open_run(config)
    assert source.tasks == ("first", "second")
    # Opened once: what was checked is not checked again.
    assert open_run(config, source) is source
    records = source.training_records(seed=0, position=12, prompts=4)
    again = open_run(config)
    assert records == again.training_records(seed=0, position=12, prompts=4)
    assert len(source.held_out_records("second", 2)) == 2


def test_opening_a_run_leaves_its_configuration_as_it_is(tmp_path, write):
    path = str(write(sums(3)))
    for chosen in ({}, {"data.source": path}, {"data.source": path, "data.tasks": ["sums"]}):
        config = load_config(overrides=chosen)
        before = config.model_copy(deep=True)
        open_run(config)
        assert config == before
        file = tmp_path / "run.yaml"
        file.write_text(dump_config(config))
        assert load_config(file) == config


def test_the_default_configuration_opens():
    assert open_run(TrainConfig()).tasks == tuple(TrainConfig().data.tasks)


def test_slots_name_the_records_before_they_are_read(write):
    path = write(sums(30, "first") + [{**row, "task_type": "second"} for row in sums(30)])
    source = open_run(load_config(overrides={"data.source": str(path)}))
    slots = source.slots(seed=3, position=5, prompts=6)
    assert [slot.position for slot in slots] == list(range(5, 11))
    records = source.training_records(seed=3, position=5, prompts=6)
    assert [source.tasks[slot.task] for slot in slots] == [record.task for record in records]
    # Read in any order, and each by itself.
    places = [source.read(slot, lambda record: record.place) for slot in reversed(slots)]
    assert places == [record.place for record in reversed(records)]
