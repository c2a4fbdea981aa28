"""The site builds, and its pages need nothing but themselves."""

import html
import posixpath
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pages(site):
    """Return the text of each page."""
    paths = site.rglob("*.html")
    return {str(path.relative_to(site)): path.read_text(encoding="utf-8") for path in paths}


def test_no_page_asks_another_host(pages):
    loaded = re.compile(r"""<(?:script|link|img|iframe)[^>]*(?:src|href)=["']?(https?:[^"'> ]*)""")
    found = {(name, url) for name, text in pages.items() for url in loaded.findall(text)}
    assert {(name, url) for name, url in found if "canonical" not in url} == set()


def test_every_link_and_anchor_has_its_target(site, pages):
    identifiers = {name: set(re.findall(r' id="([^"]+)"', text)) for name, text in pages.items()}
    links = 0
    for name, text in pages.items():
        for link in re.findall(r'<a [^>]*href="([^"]+)"', text):
            target = urlsplit(html.unescape(link))
            if target.scheme or link == "." or name == "404.html":
                continue
            links += 1
            path = name
            if target.path:
                path = posixpath.normpath(posixpath.join(posixpath.dirname(name), target.path))
                if target.path.endswith(("/", ".")):
                    path = posixpath.normpath(posixpath.join(path, "index.html"))
            anchor = unquote(target.fragment)
            assert (site / path).is_file(), f"{name}: {link}"
            assert not anchor or anchor in identifiers[path], f"{name}: {link}"
    assert links > 1000


def test_formulas_and_names_of_docstrings_are_rendered(pages):
    text = pages["reference/core/index.html"]
    assert text.count("<math") > 20
    for name, page in pages.items():
        assert "arithmatex" not in page, name
        assert not re.search(r":[a-z]+:<code>|\.\. math::", page), name


def test_pictures_are_drawn_alike_and_have_names(pages):
    text = pages["concepts/index.html"]
    assert "<!-- picture" not in text
    drawn = re.findall(r'<div role="img" aria-label="([^"]+)"', text)
    assert len(set(drawn)) == len(drawn) == 7
    identifiers = re.findall(r' id="([^"]+)"', text)
    assert len(set(identifiers)) == len(identifiers)
    # The same bytes when they are drawn again, by another process.
    code = "import pictures; print(*map(pictures.svg, pictures.PICTURES), sep='\\n')"
    command = [sys.executable, "-c", code]
    again = subprocess.run(command, cwd=ROOT / "docs", capture_output=True, text=True, check=True)
    assert all(line in text for line in again.stdout.splitlines())


def test_every_command_has_a_section(pages):
    command = [sys.executable, "-m", "g2rpo_cli", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = re.findall(r"^\W*([a-z]+)  ", shown.partition("Commands")[2], flags=re.MULTILINE)
    assert {"train", "eval", "compare"} <= set(names)
    sections = re.findall(r"<h2[^>]*><code>g2rpo ([a-z]+)</code>", pages["cli/index.html"])
    assert sections == names


def test_the_skill_has_the_form_that_agents_read():
    text = (ROOT / "docs" / "skill" / "SKILL.md").read_text(encoding="utf-8")
    head = yaml.safe_load(text.split("---")[1])
    assert head["name"] == "gaussian-grpo"
    assert len(head["description"]) <= 1024
    steps = re.findall(r"^### Step (\d): ", text, flags=re.MULTILINE)
    assert steps == ["1", "2", "3", "4"]
