"""Settings and fixtures of all tests."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from shutil import which

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
