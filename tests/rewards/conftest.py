import sys
from pathlib import Path

import pytest


@pytest.fixture
def own_rewards(monkeypatch):
    """A custom module, importable in this process and in the processes that it starts."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    yield __import__("own_rewards")
    sys.modules.pop("own_rewards", None)
