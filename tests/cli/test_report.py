"""``g2rpo report``: what it writes, and what it says of input that it cannot use."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from g2rpo_cli.reporting import build_page, group_runs, read_runs

from .written_runs import write_run

HOSTILE = (
    "<script>alert(1)</script></script><img src=x onerror=alert(2)> </pre></article>"
    "<!-- ]]> \x1b[31mred\x1b[0m [bold]markup[/bold] {{ 7 * 7 }} {% raw %} \x00\r\n "
    "javascript:alert(3) \u2028 & &amp; 'quoted' \"double\""
)


class Page(HTMLParser):
    """The tags of a page, its texts, and the texts of its scripts."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self.scripts = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        (self.scripts if self.lasttag == "script" and self.cdata_elem else self.texts).append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self):
        return "".join(self.texts)


def page_of(path):
    return Page(path.read_text(encoding="utf-8"))


def page_about(*paths, tasks=None):
    """Return the page without the figures beside it, which take seconds."""
    return Page(build_page(group_runs(read_runs(paths, tasks))))


def test_one_run_becomes_one_page_and_its_figures(run, tmp_path):
    write_run(tmp_path / "a")
    code, out, err = run("report", "a")
    assert (code, err) == (0, "")
    assert "page: a/report.html" in out
    page = page_of(tmp_path / "a" / "report.html")
    for part in ("Run a", "finished · 30 of 30 steps", "seed 0", "estimator gaussian"):
        assert part in page.text
    for part in ("0.400 ± 0.050", "0.600 ± 0.050", "+0.200", "14.6 (9–24)", "2.13.0"):
        assert part in page.text
    # A sample with its image, before and after; the configuration; the warning of the first task.
    assert page.all("img")[0]["src"].startswith("data:image/png;base64,")
    assert "before: <answer>7</answer>" in page.text
    assert "after: <answer>7</answer>" in page.text
    assert "prompts_per_step:" in page.text
    assert "50% of the responses were cut off" in page.text
    figures = {path.name for path in (tmp_path / "a" / "report-figures").iterdir()}
    names = ("reward", "length", "entropy", "gradient", "advantages")
    assert figures == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    for name in names:
        with Image.open(tmp_path / "a" / "report-figures" / f"{name}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 5
        svg = (tmp_path / "a" / "report-figures" / f"{name}.svg").read_text()
        assert svg.lstrip().startswith("<?xml")


def test_the_page_needs_nothing_from_elsewhere(run, tmp_path):
    write_run(tmp_path / "a")
    run("report", "a", "-o", "page.html")
    page = page_of(tmp_path / "page.html")
    assert not page.all("link")
    assert not page.all("iframe")
    assert all("src" not in script for script in page.all("script"))
    assert all(image["src"].startswith("data:image/") for image in page.all("img"))
    (policy,) = (
        meta["content"]
        for meta in page.all("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    assert policy.count("unsafe-inline") == 1  # of styles
    assert (tmp_path / "page.html").stat().st_size < 5_000_000


def test_every_chart_has_its_data_and_its_element(tmp_path):
    page = page_about(write_run(tmp_path / "a", tasks=("ocr", "<b>&'\"")))
    (data,) = (
        json.loads(text)
        for attributes, text in zip(page.all("script"), page.scripts, strict=True)
        if attributes.get("type") == "application/json"
    )
    assert len(data) == 2 * 5
    assert set(data) <= {attributes.get("id") for attributes in page.all("div")}
    assert all(item["target_id"] == element for element, item in data.items())
    assert "<b>&'\"" in page.text


def test_texts_of_models_and_data_are_text(run, tmp_path):
    write_run(tmp_path / "a", tasks=(HOSTILE[:60], "ocr"), response=HOSTILE, problem=HOSTILE)
    code, _, err = run("report", "a", "-o", "page.html")
    assert (code, err) == (0, "")
    raw = (tmp_path / "page.html").read_bytes()
    page = Page(raw.decode("utf-8"))
    harmless = page_about(write_run(tmp_path / "b", tasks=("maths", "ocr")))
    # The same tags with the same attributes, whatever the texts are.
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in harmless.tags]
    assert [sorted(each) for _, each in page.tags] == [sorted(each) for _, each in harmless.tags]
    assert not any(name.startswith("on") for _, each in page.tags for name in each)
    assert "<script>alert(1)</script></script><img src=x onerror=alert(2)>" in page.text
    assert "␛[31mred␛[0m [bold]markup[/bold] {{ 7 * 7 }} {% raw %} ␀" in page.text
    assert b"\x1b" not in raw
    assert b"\x00" not in raw
    data = page.scripts[0]
    assert "<" not in data


def test_an_address_of_an_image_that_no_run_writes_is_left_out(tmp_path):
    write_run(tmp_path / "a")
    path = tmp_path / "a" / "samples" / "before.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for address in ("javascript:alert(1)", "https://example.org/a.png", 'data:image/png;base64,"x'):
        rows[0]["images"] = [address]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        addresses = [each["src"] for each in page_about(tmp_path / "a").all("img")]
        assert address not in addresses
        assert len(addresses) == 1  # that of the other task


def test_several_seeds_are_a_mean_with_its_interval(run, tmp_path):
    for seed in range(3):
        write_run(tmp_path / f"g{seed}", seed=seed, gain=0.3)
        write_run(tmp_path / f"r{seed}", "estimator.name=grpo", seed=seed, gain=0.1 + seed / 100)
    runs = [f"{name}{seed}" for name in "gr" for seed in range(3)]
    code, _, err = run("report", *runs)
    assert (code, err) == (0, "")
    text = page_of(tmp_path / "report.html").text
    assert "gaussian (seeds 0, 1, 2); grpo (seeds 0, 1, 2)" in text
    # Before 0.40, 0.41, 0.42: Student's quantile for two degrees is 4.303, so ± 0.025.
    assert "0.410 ± 0.025" in text
    # Seed by seed -0.20, -0.19, -0.18.
    assert "grpo less gaussian, paired by seed (0, 1, 2)" in text
    assert "-0.190 ± 0.025" in text


def test_runs_of_one_configuration_and_seed_stand_for_themselves(tmp_path):
    text = page_about(*(write_run(tmp_path / name) for name in ("one", "two"))).text
    assert "one (seed 0); " in text
    assert "two (seed 0)" in text


def test_only_the_tasks_that_are_asked_for_are_shown(run, tmp_path):
    write_run(tmp_path / "a")
    code, _, err = run("report", "a", "-t", "maths", "-o", "page.html")
    assert (code, err) == (0, "")
    page = page_of(tmp_path / "page.html")
    assert [each["data-shows"] for each in page.all("input") if "data-shows" in each] == ["0"]
    assert "ocr" not in page.text.partition("Configuration, versions, seeds")[0]
    # Shares of the gradient are still of all tasks.
    assert "67%" in page.text


@pytest.mark.parametrize(
    ("steps", "tasks", "length"), [(3000, 3, 20), (20, 24, 12_000), (40, 3, 200_000)]
)
def test_a_page_stays_below_5_megabytes(tmp_path, steps, tasks, length):
    names = [f"task {number}" for number in range(tasks)]
    path = write_run(tmp_path / "a", tasks=names, steps=steps, response="<&é>" * (length // 4))
    html = build_page(group_runs(read_runs([path])))
    assert 1_000_000 < len(html.encode()) < 5_000_000
    page = Page(html)
    shown = {each["data-task"] for each in page.all("article")}
    assert shown == {str(number) for number in range(tasks)}


def test_a_run_that_is_being_written_is_shown_up_to_its_last_whole_line(run, tmp_path):
    write_run(tmp_path / "a", steps=12, is_finished=False)
    with (tmp_path / "a" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "reward": 0.')
    code, out, err = run("report", "a")
    assert (code, err) == (0, "")
    said = (
        "line 13 is not whole: the run is being written, or was stopped there; shown up to step 12"
    )
    assert said in out
    text = page_of(tmp_path / "a" / "report.html").text
    assert said in text
    assert "not finished · 12 of 12 steps" in text
    assert "the run has not ended: 12 of 12 steps are logged" in text


def test_a_damaged_line_in_the_middle_ends_what_is_shown(run, tmp_path):
    write_run(tmp_path / "a", steps=5)
    path = tmp_path / "a" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:3], "[1, 2\n", *lines[4:]]))
    code, out, _ = run("report", "a")
    assert code == 0
    assert "line 4 is no JSON object; it and all that follows are left out (2 lines)" in out
    assert "shown up to step 3" in out


def test_a_run_that_kept_no_samples_and_no_histograms_says_so(run, tmp_path):
    write_run(tmp_path / "a", steps=3)
    for name in ("samples/before.jsonl", "samples/after.jsonl", "advantages.jsonl"):
        (tmp_path / "a" / name).unlink()
    (tmp_path / "a" / "environment.json").unlink()
    code, out, err = run("report", "a")
    assert (code, err) == (0, "")
    assert "no answers to held-out items were kept" in out
    assert "no histograms of advantages were kept" in out
    page = page_of(tmp_path / "a" / "report.html")
    assert "first step" in page.text  # responses of the training stand in for them
    assert not (tmp_path / "a" / "report-figures" / "advantages.png").exists()


@pytest.fixture(scope="module")
def bad_input(tmp_path_factory):
    """Return a folder with all that the cases of bad input need."""
    path = tmp_path_factory.mktemp("bad")
    write_run(path / "a", steps=2)
    write_run(path / "other", steps=2, tasks=("ocr", "chart"))
    (path / "file").write_text("")
    (path / "empty").mkdir()
    (path / "no-run").mkdir()
    (path / "no-run" / "notes.txt").write_text("")
    write_run(path / "no-step", steps=1)
    (path / "no-step" / "metrics.jsonl").unlink()
    write_run(path / "half", steps=1)
    (path / "half" / "metrics.jsonl").write_text('{"step": 1')
    write_run(path / "config", steps=1)
    (path / "config" / "config.yaml").write_text("seeds: 1\n")
    write_run(path / "summary", steps=1)
    (path / "summary" / "summary.json").write_text("{")
    write_run(path / "metrics", steps=1)
    (path / "metrics" / "metrics.jsonl").write_text('{"step": 1, "reward": [1]}\n')
    write_run(path / "order", steps=1)
    (path / "order" / "metrics.jsonl").write_text('{"step": 2}\n{"step": 1}\n')
    write_run(path / "samples", steps=1)
    (path / "samples" / "samples" / "before.jsonl").write_text('{"task": "ocr"}\n')
    write_run(path / "folder", steps=1)
    (path / "folder" / "metrics.jsonl").unlink()
    (path / "folder" / "metrics.jsonl").mkdir()
    (path / "page.html").mkdir()
    return path


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["nowhere"], ["there is no folder nowhere"]),
        (["file"], ["file is a file", "folder of a run"]),
        (["empty"], ["empty is empty", "folder of a run"]),
        (["no-run"], ["no-run holds no run", "config.yaml"]),
        (["no-step"], ["no-step/metrics.jsonl has no step yet"]),
        (["half"], ["half/metrics.jsonl has no step yet"]),
        (["config"], ["seeds", "'seed'"]),
        (["summary"], ["summary/summary.json is damaged"]),
        (["metrics"], ["metrics/metrics.jsonl, line 1"]),
        (["order"], ["order/metrics.jsonl, line 2: step 1 follows step 2"]),
        (["samples"], ["samples/samples/before.jsonl does not hold", "'item'"]),
        (["folder"], ["folder/metrics.jsonl cannot be read"]),
        (["a", "a"], ["a is named twice"]),
        (["a", "./a"], ["named twice"]),
        (["a", "other"], ["different tasks", "ocr, maths", "ocr, chart"]),
        (["a", "-t", "math"], ["unknown task 'math'", "'maths'"]),
        (["a", "-o", "page.html"], ["--output page.html is a folder"]),
        (["a", "-o", "page.txt"], ["--output page.txt", "must end in .html"]),
        (["a", "-o", "file/page.html"], ["cannot be written", "--output"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, bad_input, monkeypatch, arguments, parts):
    monkeypatch.chdir(bad_input)
    code, out, err = run("report", *arguments)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert all(part in line for part in parts), err


def test_no_run_at_all_is_exit_code_2(run):
    code, _, err = run("report")
    assert code == 2
    assert "RUN" in err


def test_an_unreadable_folder_is_said(run, tmp_path, monkeypatch):
    write_run(tmp_path / "a", steps=1)

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    # Root may read everything, so modes of files prove nothing.
    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    code, _, err = run("report", "a")
    assert code == 2
    assert err == "error: a cannot be read (Permission denied)\n"


def test_without_its_packages_the_command_says_what_to_install(without):
    result = without(["bokeh"], "report", "a")
    assert result.returncode == 2
    assert 'pip install "g2rpo[cli]"' in result.stderr


def test_the_same_runs_give_the_same_figures(run, tmp_path):
    write_run(tmp_path / "a", steps=5)
    for name in ("one", "two"):
        run("report", "a", "-o", f"{name}.html")
    for path in (tmp_path / "one-figures").iterdir():
        assert path.read_bytes() == (tmp_path / "two-figures" / path.name).read_bytes()


def test_pages_of_documentation_name_the_options(run):
    _, out, _ = run("report", "--help")
    assert re.search(r"--output\s+-o", out)
    assert "--task" in out
