"""Every page in headless Chromium, light and dark, wide and narrow."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from selenium.webdriver.support.ui import WebDriverWait

pytestmark = pytest.mark.browser


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address(site):
    """Serve the site; return where."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


START = "const start = (element) => element.textContent.slice(0, 40);"

LAYOUT = f"""{START}
const found = [], width = innerWidth;
if (document.documentElement.scrollWidth > width) found.push('the page scrolls sideways');
for (const element of document.querySelectorAll('pre, table, math')) {{
  if (element.getBoundingClientRect().right <= width) continue;
  let frame = element;
  while (frame && !['auto', 'scroll'].includes(getComputedStyle(frame).overflowX))
    frame = frame.parentElement;
  if (!frame) found.push('cut off: ' + start(element));
}}
return found;
"""

COLOURS = f"""{START}
const found = [], scheme = arguments[0];
const luminance = (colour) => {{
  const [red, green, blue] = colour.match(/[0-9.]+/g).map(Number);
  return 0.299 * red + 0.587 * green + 0.114 * blue;
}};
const page = luminance(getComputedStyle(document.body).backgroundColor);
if ((page > 128) !== (scheme === 'light')) found.push('the page is not ' + scheme);
const look = (element, colour, least) => {{
  if (colour.startsWith('rgb(') && Math.abs(luminance(colour) - page) < least)
    found.push(`${{element.tagName}} is hard to see: ${{colour}} ` + start(element));
}};
for (const element of document.querySelectorAll('main :is(p, li, td, math)'))
  look(element, getComputedStyle(element).color, 80);
for (const element of document.querySelectorAll('[role=img] svg :is(path, text, use)')) {{
  if (element.closest('defs, clipPath')) continue;
  const {{fill, stroke}} = getComputedStyle(element);
  look(element, fill, 25);
  look(element, stroke, 25);
}}
for (const picture of document.querySelectorAll('main img')) {{
  if (!picture.naturalWidth) found.push('not loaded: ' + picture.src);
  if (luminance(getComputedStyle(picture).backgroundColor) < 250)
    found.push('no white below ' + picture.src);
}}
return found;
"""

ELSEWHERE = """
return performance.getEntriesByType('resource').map((entry) => entry.name)
  .filter((name) => !name.startsWith(location.origin) && !name.startsWith('data:'));
"""


def wait_for_scheme(driver, name):
    """Wait until the theme's script has followed the system."""
    shown = "return document.body.dataset.mdColorScheme"
    WebDriverWait(driver, 60).until(lambda driver: driver.execute_script(shown) == name)


@pytest.mark.timeout(900)
def test_every_page_is_readable_light_and_dark_wide_and_narrow(
    driver, site, address, show, complaints
):
    faults = {}
    complaints()  # what earlier tests left
    for path in sorted(site.rglob("index.html")):
        name = path.parent.relative_to(site).as_posix()
        show(400, "light")
        driver.get(f"{address}/{name}/")
        found = driver.execute_script(LAYOUT)
        for scheme, of_theme in (("light", "default"), ("dark", "slate")):
            show(1280, scheme)
            wait_for_scheme(driver, of_theme)
            found += driver.execute_script(COLOURS, scheme)
        found += driver.execute_script(LAYOUT)
        found += driver.execute_script(ELSEWHERE)
        found += complaints()
        if found:
            faults[name] = found[:5]
    assert faults == {}


BROKEN = """
<body style="background: white; color: #eee; margin: 0">
<main><p>pale</p><pre style="width: 900px">long</pre><img src="nowhere.png"></main>
<script src="http://127.0.0.1:9/other.js"></script></body>
"""


def test_the_check_finds_what_is_broken(driver, tmp_path, show, complaints):
    (tmp_path / "index.html").write_text(BROKEN)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        show(400, "dark")
        driver.get(f"http://127.0.0.1:{server.server_port}/")
        assert driver.execute_script(LAYOUT) == ["the page scrolls sideways", "cut off: long"]
        found = " ".join(driver.execute_script(COLOURS, "dark"))
        for part in ("not dark", "P is hard to see: rgb", "pale", "not loaded", "no white"):
            assert part in found
        assert driver.execute_script(ELSEWHERE) == ["http://127.0.0.1:9/other.js"]
        assert complaints()
        server.shutdown()
