from PIL import Image

from g2rpo_trainer.tasks import TASKS


def test_list_names_every_task(run):
    code, out, _ = run("tasks", "list")
    assert code == 0
    assert all(task.name in out and task.reward_kind in out for task in TASKS.values())


def test_show_writes_a_picture(run, tmp_path):
    code, out, _ = run("tasks", "show", "-t", "ocr", "--level", "1", "--output", "new/ocr.png")
    assert code == 0
    assert out.strip() == "new/ocr.png"
    with Image.open(tmp_path / "new" / "ocr.png") as picture:
        assert picture.width > 100


def test_show_draws_every_task_and_row(run, tmp_path):
    assert run("tasks", "show", "--rows", "2", "--output", "all.png")[0] == 0
    with Image.open(tmp_path / "all.png") as picture:
        assert picture.width > len(TASKS) * 168
        assert picture.height > 2 * 168


def test_show_of_an_unknown_task(run):
    code, _, err = run("tasks", "show", "-t", "chrat")
    assert code == 2
    assert "'chart'" in err


def test_text_tasks_are_listed_and_printed(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "builtin-text" in run("tasks", "list")[1]
    code, out, _ = run("tasks", "show", "-t", "sorting", "--rows", "2", "--level", "1")
    assert code == 0
    assert out.count("Sort the letters") == 2
    assert not list(tmp_path.iterdir())
