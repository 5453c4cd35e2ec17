"""One device, its broker and its small server for each test; one certificate authority for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from covey_hil.testing.agent_site import Site, opened
from covey_hil.testing.authority import Authority
from covey_hil.testing.made_builds import MadeBuild, make_build
from covey_hil.testing.waiting import until


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def site(tmp_path: Path, authority: Authority) -> Iterator[Site]:
    with opened(tmp_path, authority) as made:
        yield made


@pytest.fixture
def make() -> Callable[..., MadeBuild]:
    return make_build


@pytest.fixture(name="wait_for")
def wait_for_fixture() -> Callable[..., Any]:
    return until
