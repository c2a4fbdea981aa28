import sys
from pathlib import Path

import pytest


@pytest.fixture
def own_rewards(monkeypatch):
    """A user's module, found by this process and by those that it starts."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    yield __import__("own_rewards")
    sys.modules.pop("own_rewards", None)
