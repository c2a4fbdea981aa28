"""The site builds, and its pages need nothing but themselves."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Build the site; return the text of each page."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    paths = folder.rglob("*.html")
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in paths}


def test_no_page_asks_another_host(pages):
    loaded = re.compile(r"""<(?:script|link|img|iframe)[^>]*(?:src|href)=["']?(https?:[^"'> ]*)""")
    found = {(name, url) for name, text in pages.items() for url in loaded.findall(text)}
    assert {(name, url) for name, url in found if "canonical" not in url} == set()


def test_formulas_and_names_of_docstrings_are_rendered(pages):
    text = pages["reference/core/index.html"]
    assert text.count("<math") > 20
    for name, page in pages.items():
        assert "arithmatex" not in page, name
        assert not re.search(r":[a-z]+:<code>|\.\. math::", page), name


@pytest.mark.parametrize("library", ["NumPy", "PyTorch", "JAX"])
def test_code_of_the_home_page_runs(library):
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    tab = re.search(rf'=== "{library}"\n\n    ```python\n(.*?)    ```', text, re.DOTALL)
    assert tab
    exec(compile(textwrap.dedent(tab[1]), "docs/index.md", "exec"), {})
