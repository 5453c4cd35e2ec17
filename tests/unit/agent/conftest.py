"""A store in a fresh folder, and builds to put into it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from covey_agent.store import Store
from covey_hil.testing.random_builds import RandomBuild


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path)
    made.prepare()
    return made


@pytest.fixture
def random_build() -> Callable[..., RandomBuild]:
    return RandomBuild
