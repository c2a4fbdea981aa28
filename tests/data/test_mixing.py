import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from g2rpo_trainer.config import BUILTIN_TASKS, Data
from g2rpo_trainer.data import open_source, schedule, shares
from g2rpo_trainer.data.mixing import shuffled
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.tasks import TASKS

from .conftest import opened, sums

SHARES = st.lists(st.floats(0, 1e6), min_size=1, max_size=7).filter(any)


@given(st.integers(1, 300), st.text(max_size=5))
def test_a_shuffle_is_a_permutation(size, key):
    assert sorted(shuffled(position, size, key) for position in range(size)) == list(range(size))


def test_shuffles_of_two_keys_differ():
    first, second = ([shuffled(place, 50, key) for place in range(50)] for key in "ab")
    assert first != second
    assert first != list(range(50))


def test_a_shuffle_moves_records_everywhere():
    landed = Counter(shuffled(0, 10, str(key)) for key in range(5000))
    assert all(abs(landed[place] - 500) < 100 for place in range(10))


def test_a_shuffle_refuses_positions_outside():
    with pytest.raises(ValueError, match="position is 3; it must be from 0 to 2"):
        shuffled(3, 3, "")


@given(SHARES, st.integers(0, 2000), st.integers(0, 60))
def test_a_schedule_needs_no_state(wanted, start, count):
    whole = schedule(wanted, 0, start + count)
    assert schedule(wanted, start, count) == whole[start:]


@given(SHARES, st.integers(1, 1500))
def test_a_schedule_keeps_shares_at_every_length(wanted, count):
    done = Counter(task for task, _ in schedule(wanted, 0, count))
    for task, share in enumerate(wanted):
        expected = count * share / sum(wanted)
        # Half a prompt of its own rounding, and its share of half a prompt of every task's.
        assert abs(done[task] - expected) <= 1.001 + len(wanted) / 2 * share / sum(wanted)


def test_turns_count_up():
    turns = [turn for task, turn in schedule([3, 1], 0, 400) if task == 0]
    assert turns == list(range(300))


def test_a_share_of_nothing_is_never_asked():
    assert {task for task, _ in schedule([1, 0, 1], 0, 100)} == {0, 2}


@given(st.lists(st.integers(1, 10**9), min_size=2, max_size=6))
def test_shares_follow_the_formula(sizes):
    roots = [size ** (1 / 3) for size in sizes]
    expected = [root / sum(roots) for root in roots]
    assert shares(sizes, 3.0) == pytest.approx(expected)
    assert shares(sizes, 1.0) == pytest.approx([size / sum(sizes) for size in sizes])
    assert shares(sizes, 1e12) == pytest.approx([1 / len(sizes)] * len(sizes))
    assert sum(shares(sizes, 1e-3)) == pytest.approx(1)


def test_builtin_tasks_come_in_turn_and_are_those_of_the_tasks():
    source = open_source(Data(level=2))
    assert source.tasks == BUILTIN_TASKS
    records = source.training_records(seed=3, position=10, prompts=5)
    names = [BUILTIN_TASKS[position % 6] for position in range(10, 15)]
    assert [record.task for record in records] == names
    for position, record in zip(range(10, 15), records, strict=True):
        item = TASKS[record.task].item(3, position, level=2).record
        assert (item.problem, item.answer) == (record.problem, record.answer)
        assert record.place == f"{record.task}, item {position} of seed 3"
    held = source.held_out_records("maths", 3)
    expected = [TASKS["maths"].item(0, n, split="heldout", level=2).record for n in range(3)]
    assert [record.problem for record in held] == [record.problem for record in expected]
    assert held[2].place == "maths, held-out item 2"
    with pytest.raises(TypeError, match="without end"):
        len(source)


@pytest.fixture
def mixed(write):
    return write(
        sums(90, "big")
        + [{**row, "problem": "Small: " + row["problem"]} for row in sums(20, "small")]
    )


def problems(source, seed, step, prompts):
    found = source.training_records(seed=seed, position=step * prompts, prompts=prompts)
    return [record.problem for record in found]


def test_every_record_comes_once_an_epoch_of_its_task(mixed):
    source = opened(mixed, mixing__temperature=3)
    sizes = {name: task.training for name, task in source.summary().tasks.items()}
    seen = {name: [] for name in sizes}
    for step in range(60):
        for record in source.training_records(seed=1, position=7 * step, prompts=7):
            seen[record.task].append(record.problem)
    for name, size in sizes.items():
        epochs = [seen[name][start : start + size] for start in range(0, len(seen[name]), size)]
        whole = [epoch for epoch in epochs if len(epoch) == size]
        assert len(whole) >= 2
        assert all(set(epoch) == set(whole[0]) and len(set(epoch)) == size for epoch in whole)
        assert whole[0] != whole[1]


def test_records_follow_from_seed_and_position(mixed):
    first, second = opened(mixed), opened(mixed)
    assert problems(first, 0, 5, 8) == problems(second, 0, 5, 8)
    assert problems(first, 0, 6, 8) != problems(second, 0, 5, 8)
    assert problems(first, 1, 5, 8) != problems(second, 0, 5, 8)


def test_records_do_not_depend_on_the_process_or_the_order_in_the_file(mixed, tmp_path):
    other = tmp_path / "other.jsonl"
    lines = mixed.read_text().splitlines()
    # Tasks keep their order of appearance, which the order of labels follows.
    other.write_text("\n".join([lines[0], *lines[:0:-1]]))
    code = (
        "from g2rpo_trainer.data import open_source; from g2rpo_trainer.config import Data;"
        f"source = open_source(Data(source={str(other)!r}));"
        "print(*[r.problem for r in source.training_records(seed=0, position=27, prompts=9)],"
        "*[r.problem for r in source.held_out_records('big', 99)], sep='\\n')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    source = opened(mixed)
    held = [record.problem for record in source.held_out_records("big", 99)]
    assert run.stdout.splitlines() == problems(source, 0, 3, 9) + held


def test_held_out_records_are_apart_and_stay_when_records_are_added(write):
    few, more = opened(write(sums(200), "a.jsonl")), opened(write(sums(400), "b.jsonl"))
    held = {record.problem for record in few.held_out_records("sums", 999)}
    trained = set(problems(few, 0, 0, few.summary().tasks["sums"].training))
    assert len(held) + len(trained) == len(few) == 200
    assert not held & trained
    assert 10 < len(held) < 45  # an eighth
    assert held <= {record.problem for record in more.held_out_records("sums", 999)}
    assert few.held_out_records("sums", 3) == few.held_out_records("sums", 99)[:3]


def test_equal_prompts_are_on_one_side(write):
    rows = [{**row, "answer": str(copy)} for row in sums(30) for copy in range(3)]
    source = opened(write(rows), eval_fraction=0.5)
    held = {record.problem for record in source.held_out_records("sums", 999)}
    assert not held & set(problems(source, 0, 0, 90))


@pytest.mark.parametrize("fraction", [1e-6, 1 - 1e-6])
def test_small_tasks_have_both_sides(write, fraction):
    task = opened(write(sums(3)), eval_fraction=fraction).summary().tasks["sums"]
    assert 1 in (task.training, task.held_out)
    assert task.training + task.held_out == 3


@pytest.mark.parametrize(("copies", "words"), [(1, "1 record"), (2, "2 equal records")])
def test_a_task_needs_two_records(write, copies, words):
    said = rf"task 'sums' has {words} \(.*, line 1\); it needs at least two different"
    with pytest.raises(RunError, match=said):
        opened(write(sums(1) * copies))


def test_weights_and_temperature_set_the_shares(mixed):
    def share(**settings):
        return opened(mixed, **settings).summary().tasks["big"].share

    tasks = opened(mixed).summary().tasks
    by_size = tasks["big"].training / (tasks["big"].training + tasks["small"].training)
    assert share() == pytest.approx(by_size)
    assert share(mixing__temperature=1e9) == pytest.approx(0.5)
    assert share(mixing__weights={"big": 1, "small": 3}) == 0.25
    source = opened(mixed, mixing__weights={"big": 0, "small": 2})
    assert {record.task for record in source.training_records(seed=0, position=0, prompts=9)} == {
        "small"
    }


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"mixing__weights": {"bg": 1}},
            "data.mixing.weights: unknown task 'bg'; did you mean 'big'?",
        ),
        (
            {"mixing__weights": {"big": 1}},
            "data.mixing.weights has none for small; name every task",
        ),
        ({"mixing__weights": {"big": -1}}, "data.mixing.weights: big is -1, but must be 0 or more"),
        ({"mixing__weights": {"big": 0}}, "data.mixing.weights: are all 0"),
        ({"mixing__temperature": 0}, "data.mixing.temperature is 0, but must be greater than 0"),
        (
            {"tasks": ["bg"]},
            "data.tasks: unknown task 'bg'; did you mean 'big'? (there are: big, small)",
        ),
        ({"eval_fraction": 1}, "data.eval_fraction is 1, but must be less than 1"),
    ],
)
def test_wrong_settings(mixed, settings, text):
    with pytest.raises(RunError) as caught:
        opened(mixed, **settings)
    assert text in str(caught.value)


def test_tasks_are_chosen_and_ordered(mixed):
    assert opened(mixed).tasks == ("big", "small")
    assert opened(mixed, tasks=["small"]).tasks == ("small",)
    assert opened(mixed, tasks=["small", "big"]).tasks == ("small", "big")


def test_held_out_records_of_an_unknown_task(mixed):
    with pytest.raises(RunError, match="unknown task 'bag'; did you mean 'big'"):
        opened(mixed).held_out_records("bag", 1)
