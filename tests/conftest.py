"""Settings and fixtures of all tests."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import which
from typing import Any

# A shell that starts the tests in the background leaves them deaf to Ctrl-C, which some press.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before anything loads an array library: threads of several processes would wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

# The same examples in every run: a failure in CI can be seen again at home.
settings.register_profile(
    "ci", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("nightly", deadline=None, max_examples=1000)
settings.load_profile("ci")  # --hypothesis-profile=nightly overrides it


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Who asks for the browser's tests is to see them fail without one, not pass unseen.
    asked = "browser" in config.option.markexpr.replace("not browser", "")
    if which("chromedriver") is None and not asked:
        for item in items:
            if item.get_closest_marker("browser"):
                item.add_marker(pytest.mark.skip(reason="no ChromeDriver on this machine"))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


@pytest.fixture(scope="session")
def fill_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that has a folder filled once, for all processes of the tests together."""
    from filelock import FileLock

    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def folder(name: str, fill: Callable[[Path], None]) -> Path:
        filled, begun = root / name, root / f"{name}-begun"
        with FileLock(root / f"{name}.lock"):
            if not filled.exists():
                begun.mkdir()
                fill(begun)
                begun.rename(filled)
        return filled

    return folder


# Without network there is nobody to ask for updates, and CI runs as root.
CHROMIUM = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)


@pytest.fixture(scope="session")
def driver() -> Iterator[Any]:
    """Headless Chromium."""
    from selenium import webdriver

    path = which("chromedriver")
    assert path, "there is no chromedriver: apt-get install chromium chromium-driver"
    options = webdriver.ChromeOptions()
    for flag in CHROMIUM.split():
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(path)) as driver:
        yield driver


@pytest.fixture(scope="session")
def show(driver: Any) -> Callable[[int, str], None]:
    """Return a function that sets width [px] and colour scheme of what Chromium shows."""

    def set_medium(width: int, scheme: str) -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    return set_medium


@pytest.fixture(scope="session")
def complaints(driver: Any) -> Callable[[], list[str]]:
    """Return a function that returns the browser's warnings and errors since its last call."""
    return lambda: [row["message"] for row in driver.get_log("browser") if row["level"] != "INFO"]


WITHOUT = """
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != sys.argv[2]:
            return self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
try:
    __import__(sys.argv[1])
except ImportError as error:
    print(error)
"""


@pytest.fixture
def error_without() -> Callable[[str, str], str]:
    """Return what a package says when it is imported where another one is missing."""

    def run(package: str, missing: str) -> str:
        command = [sys.executable, "-c", WITHOUT, package, missing]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    return run


@pytest.fixture
def g2rpo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs the command ``g2rpo``: exit code, stdout, stderr."""
    from g2rpo_cli.main import main

    monkeypatch.delenv("G2RPO_DEBUG", raising=False)

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["g2rpo", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    return command
