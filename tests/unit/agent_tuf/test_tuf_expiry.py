"""Time: what is too old is refused, what was trusted stays; a clock that is wrong cannot make an old thing new."""

from __future__ import annotations

from datetime import timedelta

import pytest

from covey_agent.tuf.updater import ISSUED
from covey_contract.reasons import Reason
from tests.unit.agent_tuf.conftest import Client, Device
from tests.unit.agent_tuf.repository import Repository

DAY = timedelta(days=1)


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_what_has_expired_is_refused_and_not_kept(client: Client, repository: Repository, role: str) -> None:
    assert client.refresh() == 0
    repository.roles[role].signed.expires = repository.now - DAY
    repository.publish("targets", "snapshot", "timestamp")
    assert client.refresh() == 1
    assert client.version(role) == 1


def test_a_new_root_is_kept_even_if_it_has_expired_and_then_stops_the_update(
    client: Client, repository: Repository
) -> None:
    assert client.refresh() == 0
    repository.root.expires = repository.now - DAY
    repository.publish("root", "targets", "snapshot", "timestamp")
    assert client.refresh() == 1
    assert client.versions() == {"root": 2, "timestamp": 1, "snapshot": 1, "targets": 1}


def test_an_expired_root_on_the_way_to_a_good_one_is_no_obstacle(client: Client, repository: Repository) -> None:
    repository.root.expires = repository.now - DAY
    repository.publish("root")
    repository.root.expires = repository.now + DAY
    repository.publish("root")
    assert client.refresh() == 0
    assert client.version("root") == 3


def test_stored_metadata_that_has_expired_is_updated_and_still_is_the_floor(device: Device) -> None:
    repository = device.repository
    repository.timestamp.expires = repository.now + 7 * DAY
    repository.publish("timestamp")
    device.updater().refresh()
    later = repository.now + 18 * DAY
    assert device.refusal(later) is Reason.METADATA_EXPIRED
    repository.timestamp.expires = repository.now + 21 * DAY
    repository.timestamp.version = 0
    repository.publish("timestamp")
    assert device.refusal(later) is Reason.METADATA_ROLLBACK
    repository.timestamp.version = 2
    repository.publish("targets", "snapshot", "timestamp")
    trusted = device.updater(later).refresh()
    assert trusted.timestamp is not None
    assert (trusted.timestamp.version, trusted.snapshot.version) == (3, 2)  # type: ignore[union-attr]


def test_a_delegated_role_that_has_expired_is_refused(device: Device) -> None:
    repository = device.repository
    repository.delegate("targets", "a", ["a/*"])
    repository.delegated("a").expires = repository.now - DAY
    repository.add_target("a", "a/file", b"bytes")
    repository.publish_content("a")
    assert device.refusal(target="a/file") is Reason.METADATA_EXPIRED
    assert device.folder.read("a", 1 << 20) is None


def test_a_stored_delegated_role_that_has_expired_is_not_used_but_replaced(device: Device) -> None:
    repository = device.repository
    repository.delegate("targets", "a", ["a/*"])
    repository.delegated("a").expires = repository.now + 7 * DAY
    repository.add_target("a", "a/file", b"bytes")
    repository.publish_content("a")
    updater = device.updater()
    updater.refresh()
    assert updater.find("a/file").length == 5
    later = repository.now + 18 * DAY
    assert device.refusal(later, target="a/file") is Reason.METADATA_EXPIRED
    repository.delegated("a").expires = repository.now + 21 * DAY
    repository.publish_content("a")
    updater = device.updater(later)
    updater.refresh()
    assert updater.find("a/file").length == 5


def test_the_moment_of_expiry_is_too_late(device: Device) -> None:
    expires = device.repository.timestamp.expires
    device.updater(expires - timedelta(seconds=1)).refresh()
    assert device.refusal(expires) is Reason.METADATA_EXPIRED


def test_the_newest_signed_time_is_remembered_and_no_other(device: Device) -> None:
    repository = device.repository
    repository.timestamp.unrecognized_fields[ISSUED] = repository.now.strftime("%Y-%m-%dT%H:%M:%SZ")
    repository.publish("timestamp")
    device.updater(repository.now + 20 * DAY).refresh()  # a clock that is ahead proves nothing
    floor = int(repository.now.timestamp() * 1000)
    assert device.folder.time_floor_ms() == floor
    repository.timestamp.unrecognized_fields[ISSUED] = (repository.now - DAY).strftime("%Y-%m-%dT%H:%M:%SZ")
    repository.publish("timestamp")
    device.updater().refresh()
    assert device.folder.time_floor_ms() == floor


@pytest.mark.parametrize("issued", [7, "soon", None, ["2026-01-01T00:00:00Z"], "9999-99-99T00:00:00Z"])
def test_a_signed_time_that_is_none_tells_nothing(device: Device, issued: object) -> None:
    device.repository.timestamp.unrecognized_fields[ISSUED] = issued
    device.repository.publish("timestamp")
    device.updater().refresh()
    assert device.folder.time_floor_ms() == 0
