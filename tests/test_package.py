"""Contents of the distribution, and the cost of importing it."""

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

import g2rpo

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "g2rpo",
    "g2rpo_torch",
    "g2rpo_jax",
    "g2rpo_trl",
    "g2rpo_tunix",
    "g2rpo_verl",
    "g2rpo_trainer",
    "g2rpo_cli",
}


@pytest.fixture(scope="module")
def archives(fill_once):
    """Build the sdist, and the wheel from it: what an installer would do."""

    def build(folder):
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)]
        result = subprocess.run([*command, str(ROOT)], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr

    target = fill_once("dist", build)
    (wheel,), (sdist,) = target.glob("*.whl"), target.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def built(archives):
    """Return what is in the two archives, and the metadata."""
    wheel, sdist = archives
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {PurePosixPath(name) for name in archive.namelist()}
        metadata = next(name for name in archive.namelist() if name.endswith("METADATA"))
        text = archive.read(metadata).decode()
    with tarfile.open(sdist) as archive:
        in_sdist = {PurePosixPath(*PurePosixPath(name).parts[1:]) for name in archive.getnames()}
    return in_wheel, in_sdist, text


def test_wheel_has_exactly_our_top_level_names(built):
    wheel, _, _ = built
    assert {path.parts[0] for path in wheel} == {*PACKAGES, f"g2rpo-{g2rpo.__version__}.dist-info"}


def test_wheel_holds_every_file_of_the_packages(built):
    wheel, sdist, _ = built
    for folder in (ROOT, ROOT / "adapters", ROOT / "trainer", ROOT / "cli"):
        for package in PACKAGES & {path.name for path in folder.iterdir()}:
            for path in (folder / package).rglob("*"):
                if path.is_file() and "__pycache__" not in path.parts:
                    assert PurePosixPath(path.relative_to(folder).as_posix()) in wheel
                    assert PurePosixPath(path.relative_to(ROOT).as_posix()) in sdist


def test_the_wheel_is_small(archives):
    assert archives[0].stat().st_size < 6_000_000


def test_every_package_is_typed(built):
    wheel, _, _ = built
    assert {path.parts[0] for path in wheel if path.name == "py.typed"} == PACKAGES


def test_metadata(built):
    _, _, metadata = built
    assert f"\nVersion: {g2rpo.__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    core = [line.split()[1].partition(">")[0] for line in required if "extra ==" not in line]
    assert sorted(core) == ["array-api-compat", "numpy"]


def modules_after(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return {name.partition(".")[0] for name in result.stdout.split()}


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import g2rpo", {"torch", "jax", "typer", "PIL", "pydantic", "yaml", "rich", "sklearn"}),
        ("import g2rpo_trainer.run_folder", {"torch", "jax", "typer"}),
        ("import g2rpo_cli.app", {"torch", "jax", "transformers", "matplotlib", "sklearn"}),
        ("import g2rpo.rewards", {"matplotlib", "PIL", "pydantic", "rich", "torch", "jax"}),
        ("import g2rpo_trainer.data", {"matplotlib", "g2rpo_cli", "PIL", "sklearn", "torch"}),
        ("import g2rpo_trainer.tasks", {"matplotlib", "g2rpo_cli", "PIL", "sklearn", "torch"}),
        ("import g2rpo_torch", {"jax", "typer", "transformers"}),
        ("import g2rpo_jax", {"torch", "typer"}),
    ],
)
def test_import_loads_no_more_than_it_needs(statement, absent):
    assert modules_after(statement) & absent == set()


def test_run_is_not_loaded_with_the_core():
    code = "import g2rpo, sys; assert not any(n.startswith('g2rpo_trainer') for n in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_data_do_not_load_the_run():
    code = (
        "import sys, g2rpo_trainer.data; rooms = {n.split('.')[1] for n in sys.modules "
        "if n.startswith('g2rpo_trainer.')}; print(*sorted(rooms))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) == {"config", "data", "errors", "record", "tasks"}


def test_this_check_can_fail():
    assert "array_api_compat" in modules_after("import g2rpo")


README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_links_to_files_that_exist():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_reference_lists_every_public_name():
    page = (ROOT / "docs" / "reference" / "core.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"\w+", page))
    assert [name for name in g2rpo.__all__ if name not in listed] == []
