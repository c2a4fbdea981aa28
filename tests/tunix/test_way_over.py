"""From `g2rpo train` to tunix: converted records train, and have the reference rewards."""

from __future__ import annotations

import numpy as np
import pytest

from g2rpo_trainer.config import load_config
from g2rpo_trainer.data import open_source
from g2rpo_trainer.record import FORMAT_INSTRUCTION
from g2rpo_trainer.scoring import Scorer

from ..way_over import ANSWERS, rows_of_every_kind, write
from .conftest import GROUP, Recorder, make_cluster, make_config
from .test_page import Bytes, blocks, run

KINDS = ("numerical", "OCR", "spatial grounding")


@pytest.fixture
def converted(tmp_path, monkeypatch, g2rpo):
    """Return the file of records, after its conversion into tunix-data in the working folder."""
    path = write(tmp_path / "mixed.jsonl", rows_of_every_kind(4, kinds=KINDS))
    monkeypatch.chdir(tmp_path)
    assert g2rpo("data", "convert", path, "--to", "tunix", "-o", "tunix-data")[0] == 0
    return path


def test_rewards_of_converted_rows_are_those_of_the_reference_trainer(converted):
    names = run(blocks()[3])
    settings = load_config(overrides={"data.source": str(converted), "model.name": "any"})
    source = open_source(settings.data)
    records = list(source.stored_records(lambda record: record, held_out=False))
    rows = [
        {name: column[0] for name, column in batch.items()}
        for batch in names["Records"]("tunix-data/train.parquet", 1)
    ]
    with Scorer(settings.rewards, settings.data, source) as scorer:
        for row, record in zip(rows, records, strict=True):
            assert row["prompts"] == f"{FORMAT_INSTRUCTION}\n\n{record.problem}"
            assert row["task"] == record.task
            for text in ANSWERS[record.problem_type][1]:
                found = names["accuracy"]([text], record=[row["record"]])
                assert found == scorer([record], [text], dtype=np.float64).accuracy.tolist()


def test_the_learner_trains_on_converted_records(converted):
    from g2rpo_tunix import G2RPOLearner

    names = run(blocks()[3])
    cluster = make_cluster(steps=2, tokenizer=Bytes(), mini_batch_size=2, prompt=160)
    tasks = tuple(kind.split()[0] for kind in KINDS)
    learner = G2RPOLearner(cluster, make_config(tasks=tasks), [names["accuracy"]])
    record = Recorder(learner)
    learner.train(names["dataset"])
    assert cluster.actor_trainer.train_steps == 2
    assert record.rewards[0].shape[0] == 2 * GROUP
