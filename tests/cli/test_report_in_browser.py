"""The report in headless Chromium: nothing fails, all is drawn, nothing of a model runs."""

import time

import pytest

from g2rpo_cli.reporting import build_page, group_runs, read_runs

from .test_report import HOSTILE
from .written_runs import write_run

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    tasks = ("ocr", HOSTILE[:60])
    run = write_run(folder / "run", tasks=tasks, response=HOSTILE, problem=HOSTILE)
    path = folder / "page.html"
    path.write_text(build_page(group_runs(read_runs([run]))), encoding="utf-8")
    return path


@pytest.fixture
def opened(driver, page, show, complaints):
    """Return a function that opens the page at a width and in a colour scheme."""

    def open_page(width=1000, scheme="light"):
        show(width, scheme)
        complaints()  # what earlier tests left
        driver.get(page.as_uri())
        return driver

    return open_page


def scroll_through(driver, timeout=120):
    """Look at every chart, and wait until it is drawn."""
    undrawn = "return document.querySelector('.plot:not([data-drawn])')"
    end = time.monotonic() + timeout
    while (plot := driver.execute_script(undrawn)) is not None:
        driver.execute_script("arguments[0].scrollIntoView()", plot)
        assert time.monotonic() < end, "a chart was never drawn"
        time.sleep(0.1)


def brightness(colour):
    red, green, blue = map(int, colour.removeprefix("rgb(").removesuffix(")").split(","))
    return 0.299 * red + 0.587 * green + 0.114 * blue


INKED = """
const found = [];
const walk = (root) => root.querySelectorAll('*').forEach((element) => {
  if (element.shadowRoot) walk(element.shadowRoot);
  if (element.tagName === 'CANVAS' && element.width && element.height) {
    const data = element.getContext('2d').getImageData(0, 0, element.width, element.height).data;
    found.push(data.some((value, index) => index % 4 === 3 && value > 0));
  }
});
document.querySelectorAll('.plot').forEach((plot) => {
  const before = found.length;
  plot.querySelectorAll('*').forEach((element) => element.shadowRoot && walk(element.shadowRoot));
  const own = found.splice(before);
  found.push(own.some(Boolean));
});
return found;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_without_errors_and_everything_is_drawn(opened, complaints, scheme):
    driver = opened(scheme=scheme)
    scroll_through(driver)
    assert complaints() == []
    assert driver.execute_script(INKED) == [True] * 10
    images = driver.execute_script(
        "return [...document.images].map((image) => image.complete && image.naturalWidth)"
    )
    assert images == [240] * 2


def test_nothing_of_a_model_runs_or_is_loaded(opened, complaints):
    driver = opened()
    scroll_through(driver)
    assert driver.execute_script("return document.scripts.length") == 3
    assert driver.execute_script("return performance.getEntriesByType('resource').length") == 0
    # An alert would make every later command fail.
    assert "<script>alert(1)</script>" in driver.find_element("tag name", "pre").text
    # Even if the page did not escape: its policy lets no other script run.
    driver.execute_script(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 1\">');"
        "const s = document.createElement('script'); s.textContent = 'window.ran = 2';"
        "document.body.append(s)"
    )
    time.sleep(0.3)
    assert driver.execute_script("return window.ran") is None
    assert any("Content Security Policy" in text for text in complaints())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_at_400_pixels_in_both_colour_schemes(opened, scheme):
    driver = opened(400, scheme)
    scroll_through(driver)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 400
    widths = driver.execute_script(
        "return [...document.querySelectorAll('.plot')].map((plot) => plot.firstChild.offsetWidth)"
    )
    assert all(300 <= width <= 400 for width in widths)
    size = driver.execute_script(
        "return parseFloat(getComputedStyle(document.querySelector('td')).fontSize)"
    )
    assert size >= 14
    page, text = (
        brightness(driver.execute_script(f"return getComputedStyle(document.body).{name}"))
        for name in ("backgroundColor", "color")
    )
    assert (page > text) == (scheme == "light")
    assert abs(page - text) > 150
    labels = driver.execute_script(
        "return Bokeh.documents[0].roots()[0].below[0].major_label_text_color"
    )
    assert labels == {"light": "#1f2328", "dark": "#e6edf3"}[scheme]


def test_a_chart_tells_its_numbers_under_the_pointer(opened):
    from selenium.webdriver import ActionChains

    driver = opened()
    plot = driver.find_element("css selector", "#plot-length-0")
    scroll_through(driver)
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    ActionChains(driver).move_to_element(plot).perform()
    tip = """
const texts = [];
const walk = (root) => root.querySelectorAll('*').forEach((element) => {
  if (element.shadowRoot) {
    if (element.className.includes('Tooltip')) texts.push(element.shadowRoot.textContent);
    walk(element.shadowRoot);
  }
});
walk(document);
return texts.join(' ');
"""
    end = time.monotonic() + 20
    while "step" not in (text := driver.execute_script(tip)) and time.monotonic() < end:
        time.sleep(0.2)
    assert "step" in text
    assert "mean" in text


def test_tasks_are_selected_and_answers_are_found(opened):
    driver = opened()

    def shown(selector):
        return driver.execute_script(
            "return [...document.querySelectorAll(arguments[0])]"
            ".filter((element) => element.offsetParent !== null).length",
            selector,
        )

    figures, cards, rows = shown("figure"), shown("article"), shown("tbody tr[data-task]")
    driver.find_element("css selector", "[data-shows='1']").click()
    assert shown("figure") == figures / 2
    assert shown("article") == cards / 2
    assert shown("tbody tr[data-task]") == rows / 2
    driver.find_element("css selector", "[data-shows='1']").click()
    assert shown("article") == cards
    search = driver.find_element("id", "search")
    search.send_keys("onerror AFTER:")  # words in any case, only held-out items have the second
    assert 0 < shown("article") < cards
    assert f"of {cards}" in driver.find_element("id", "shown").text
    search.send_keys(" nowhere-to-be-found")
    assert shown("article") == 0
    search.clear()
    search.send_keys(" ")
    driver.find_element("css selector", "#outcome [value='better']").click()
    assert shown("article") == 2  # the first item of each task
