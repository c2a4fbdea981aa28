"""`g2rpo data convert`: what is written, in what order, and what is refused."""

import json

import pyarrow.parquet as pq
import pytest

from g2rpo_trainer.record import FORMAT_INSTRUCTION

from ..films import film
from .conftest import opened, sums


@pytest.fixture
def convert(g2rpo, tmp_path):
    """Return a function that runs ``g2rpo data convert``: exit code, stdout, stderr."""

    def command(source, host, *arguments, output=tmp_path / "out"):
        return g2rpo("data", "convert", source, "--to", host, "-o", output, *arguments)

    return command


@pytest.fixture
def rows(tmp_path):
    return lambda split="train": pq.read_table(tmp_path / "out" / f"{split}.parquet").to_pylist()


def questions(records):
    return [record["prompt"][-1]["content"] for record in records]


def test_records_are_written_once_in_their_order_and_held_out_as_in_training(write, convert, rows):
    path = write([*sums(30), *sums(10, "more", answer="7")])
    code, out, err = convert(path, "trl")
    assert (code, err) == (0, "")
    source = opened(path)
    training = source.summary().tasks
    assert f"train.parquet: {sum(task.training for task in training.values())} records" in out
    found = questions(rows()) + questions(rows("test"))
    given = [json.loads(line)["problem"] for line in path.read_text().splitlines()]
    assert sorted(found) == sorted(given)
    places = [given.index(text) for text in questions(rows()) if given.count(text) == 1]
    assert places == sorted(places)
    held = {r.problem for task in source.tasks for r in source.held_out_records(task, 99)}
    assert set(questions(rows("test"))) == held


def test_prompts_of_a_run_are_written_in_its_order(write, convert, rows):
    path = write([*sums(30), *sums(10, "more")])
    weights = ("-s", "data.mixing.weights={sums: 1, more: 1}", "-s", "data.eval_items=1")
    code, _, _ = convert(path, "verl", "--prompts", 50, "--seed", 3, *weights)
    assert code == 0
    source = opened(path, mixing__weights={"sums": 1, "more": 1})
    records = source.training_records(seed=3, position=0, prompts=50)
    assert questions(rows()) == [record.problem for record in records]
    assert [row["data_source"] for row in rows()] == ["sums", "more"] * 25
    assert [row["data_source"] for row in rows("test")] == ["sums", "more"]


def test_turns_of_a_conversation_keep_their_roles(write, convert, rows):
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "7+5?"},
        {"role": "assistant", "content": "12"},
        {"role": "user", "content": "And +1?"},
    ]
    row = {"answer": "13", "problem_type": "numerical"}
    others = [{"role": "user", "content": [{"type": "text", "text": "7+6?"}]}]
    path = write([{**row, "prompt": turns}, {**row, "prompt": others}, {**row, "problem": "13?"}])
    expected = [
        [{**turns[0], "content": f"Be kind.\n\n{FORMAT_INSTRUCTION}"}, *turns[1:]],
        *(
            [{"role": "system", "content": FORMAT_INSTRUCTION}, {"role": "user", "content": text}]
            for text in ("7+6?", "13?")
        ),
    ]
    for host in ("trl", "verl", "tunix"):
        assert convert(path, host, "--force")[0] == 0
        found = [*rows(), *rows("test")]
        if host == "tunix":
            prompts = [json.loads(row["messages"]) for row in found]
            texts = ["\n\n".join(turn["content"] for turn in turns) for turns in prompts]
            assert [row["prompts"] for row in found] == texts
        else:
            prompts = [row["prompt"] for row in found]
        assert sorted(map(json.dumps, prompts)) == sorted(map(json.dumps, expected))


def test_broken_records_follow_the_rules_of_training(write, convert, picture, tmp_path):
    good = [{**row, "images": picture(f"{n}.png")} for n, row in enumerate(sums(20))]
    (tmp_path / "bad.png").write_bytes(b"no image")
    (late,) = [{**row, "problem": "bad?", "images": "bad.png"} for row in sums(1)]
    path = write([*good, late])
    code, out, err = convert(path, "trl")
    assert (code, out) == (2, "")
    assert "line 21: image 'bad.png' cannot be read" in err
    assert "set data.skip_broken: true" in err
    assert [each.name for each in tmp_path.iterdir() if "out" in each.name] == []
    code, out, _ = convert(path, "trl", "-s", "data.skip_broken=true")
    assert code == 0
    assert "1 broken record is left out, such as:" in out
    counts = [
        pq.read_metadata(tmp_path / "out" / f"{s}.parquet").num_rows for s in ("train", "test")
    ]
    assert sum(counts) == 20


def test_an_older_data_set_is_replaced_only_if_told_and_nothing_else_ever(
    write, convert, rows, tmp_path
):
    assert convert(write(sums(9)), "trl")[0] == 0
    code, _, err = convert(write(sums(20)), "trl")
    assert code == 2
    assert "exists; name another folder by --output, or replace it by --force" in err
    assert convert(write(sums(20)), "trl", "--force")[0] == 0
    assert len(rows()) + len(rows("test")) == 20
    (tmp_path / "out" / "notes.txt").write_text("mine")
    code, _, err = convert(write(sums(20)), "trl", "--force")
    assert code == 2
    assert "holds notes.txt, which this command did not write" in err
    code, _, err = convert(write(sums(9)), "trl", output=tmp_path / "sums.jsonl")
    assert code == 2
    assert "is a file" in err


def test_what_a_host_cannot_take_is_refused_before_anything_is_written(
    write, convert, picture, tmp_path
):
    texts, images = sums(4), [{**row, "images": picture()} for row in sums(4, "seen")]
    (tmp_path / "a.mp4").write_bytes(film(1, size=(16, 16)))
    films = [{**row, "videos": "a.mp4"} for row in sums(4, "film")]
    for rows, host, reason in (
        (films, "trl", "records with videos, but TRL's GRPOTrainer takes text and images"),
        ([*texts, *images], "trl", "cannot have in one batch; name tasks of one sort"),
        (films, "tunix", "records with videos, but tunix's learner takes prompts of text alone"),
        (images, "tunix", "records with images, but tunix's learner takes prompts of text alone"),
    ):
        code, out, err = convert(write(rows), host)
        assert (code, out) == (2, "")
        assert reason in err
    assert not (tmp_path / "out").exists()
    assert convert(write([*texts, *images]), "trl", "-s", "data.tasks=[seen]")[0] == 0
    assert convert(write([*texts, *images, *films]), "verl", "--force")[0] == 0


def test_endless_sources_need_a_number(convert, rows):
    code, _, err = convert("builtin-text", "tunix")
    assert code == 2
    assert "the records of builtin-text are drawn without end; say how many: --prompts" in err
    code, out, _ = convert("builtin-text", "tunix", "--prompts", 8, "-s", "data.eval_items=2")
    assert code == 0
    assert {row["task"] for row in rows()} == {"arithmetic", "box", "bars", "sorting"}
    assert "test.parquet: 8 records" in out
    code, _, err = convert("reasoning-gym:leg_counting", "trl", "--prompts", 8, "--force")
    assert code == 2
    assert "scored by its own scorers" in err


def test_built_in_images_are_written(convert, rows):
    assert convert("builtin", "trl", "--prompts", 6, "-s", "data.eval_items=1")[0] == 0
    assert all(row["images"][0]["bytes"].startswith(b"\x89PNG") for row in rows())


def test_an_unknown_trainer_is_told(write, convert):
    code, _, err = convert(write(sums(3)), "tunics")
    assert code == 2
    assert "--to: unknown trainer 'tunics'; did you mean 'tunix'?" in err
