"""One device, its broker and its small server for each test; one certificate authority for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from covey_hil.testing.agent_site import Device, FleetServer, Mosquitto, Site, wait_for
from covey_hil.testing.authority import Authority
from covey_hil.testing.made_builds import MadeBuild, make_build


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def site(tmp_path: Path, authority: Authority) -> Iterator[Site]:
    broker = Mosquitto(tmp_path, authority)
    broker.start()
    server = FleetServer(broker)
    server.start()
    device = Device(tmp_path / "state", broker, server.trust, authority)
    try:
        yield Site(server, device, broker, authority)
    finally:
        device.end()
        server.stop()
        broker.stop()


@pytest.fixture
def make() -> Callable[..., MadeBuild]:
    return make_build


@pytest.fixture(name="wait_for")
def wait_for_fixture() -> Callable[..., Any]:
    return wait_for
