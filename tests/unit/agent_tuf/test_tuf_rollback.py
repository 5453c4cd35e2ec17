"""Versions never go back, unless the owner takes the thief's keys away (fast-forward recovery)."""

from __future__ import annotations

from datetime import timedelta

import pytest

from covey_contract.reasons import Reason
from tests.unit.agent_tuf.conftest import Client, Device
from tests.unit.agent_tuf.repository import Repository


def test_an_older_timestamp_is_refused(device: Device) -> None:
    device.repository.publish("timestamp")
    device.updater().refresh()
    device.repository.timestamp.version = 1
    device.repository.publish("timestamp", count=False)
    assert device.refusal() is Reason.METADATA_ROLLBACK


@pytest.mark.parametrize("pinned", [False, True])
def test_a_timestamp_that_names_an_older_snapshot_is_refused(client: Client, *, pinned: bool) -> None:
    repository = client.server.repository
    repository.pin_metadata = pinned
    repository.publish("snapshot", "timestamp")
    assert client.refresh() == 0
    repository.snapshot.version = 1
    repository.publish("snapshot", count=False)
    repository.publish("timestamp")
    assert client.refresh() == 1
    assert (client.version("timestamp"), client.version("snapshot")) == (2, 2)


@pytest.mark.parametrize("pinned", [False, True])
def test_a_snapshot_that_names_older_targets_is_refused(device: Device, *, pinned: bool) -> None:
    """The stored snapshot is the floor even if the timestamp's hash is of another by now."""
    repository = device.repository
    repository.pin_metadata = pinned
    repository.publish("targets", "targets", "snapshot", "timestamp")
    device.updater().refresh()
    repository.targets.version = 1
    repository.publish("targets", count=False)
    repository.publish("snapshot", "timestamp")
    assert device.refusal() is Reason.METADATA_ROLLBACK


def test_a_snapshot_that_forgets_a_role_is_refused(device: Device) -> None:
    repository = device.repository
    repository.delegate("targets", "a")
    repository.publish_content("a")
    device.updater().refresh()
    del repository.snapshot.meta["a.json"]
    repository.publish("snapshot", "timestamp")
    assert device.refusal() is Reason.METADATA_ROLLBACK


def test_an_older_snapshot_is_refused_even_where_the_timestamp_was_lost(device: Device) -> None:
    repository = device.repository
    old = dict(repository.metadata)
    repository.publish("targets", "snapshot", "timestamp")
    device.updater().refresh()
    device.folder.remove("timestamp")
    repository.metadata = old
    assert device.refusal() is Reason.METADATA_ROLLBACK


def test_an_older_snapshot_with_the_same_targets_is_refused(device: Device) -> None:
    repository = device.repository
    old = dict(repository.metadata)
    repository.publish("snapshot", "timestamp")
    device.updater().refresh()
    device.folder.remove("timestamp")
    repository.metadata = old
    assert device.refusal() is Reason.METADATA_ROLLBACK


def test_a_snapshot_of_another_version_than_the_timestamp_names_is_refused(device: Device) -> None:
    device.repository.snapshot.version = 2
    device.repository.sign("snapshot")
    device.repository.metadata["1.snapshot.json"] = device.repository.roles["snapshot"].to_bytes()
    assert device.refusal() is Reason.METADATA_MISMATCH
    assert device.folder.read("snapshot", 1 << 20) is None


def test_targets_of_another_version_than_the_snapshot_names_are_refused(device: Device) -> None:
    device.repository.targets.version = 2
    device.repository.sign("targets")
    device.repository.metadata["1.targets.json"] = device.repository.roles["targets"].to_bytes()
    assert device.refusal() is Reason.METADATA_MISMATCH


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_other_bytes_than_those_that_are_pinned_are_refused(device: Device, role: str) -> None:
    """A second file of the same version and length, rightly signed: the hash tells them apart (mix and match)."""
    repository = device.repository
    repository.pin_metadata = True
    repository.publish("targets", "snapshot", "timestamp")
    repository.roles[role].signed.expires += timedelta(days=1)
    repository.sign(role)
    other = repository.roles[role].to_bytes()
    assert len(other) == len(repository.metadata[f"2.{role}.json"])
    repository.metadata[f"2.{role}.json"] = other
    assert device.refusal() is Reason.METADATA_MISMATCH
    assert device.folder.read(role, 1 << 20) is None
    device.folder.write(role, other)  # nor does it help to have been stored
    assert device.refusal() is Reason.METADATA_MISMATCH


def test_bytes_that_are_not_the_pinned_ones_are_not_even_parsed(device: Device) -> None:
    repository = device.repository
    repository.pin_metadata = True
    repository.publish("targets", "snapshot", "timestamp")
    repository.metadata["2.snapshot.json"] = b"[" * len(repository.metadata["2.snapshot.json"])
    assert device.refusal() is Reason.METADATA_MISMATCH


def _drive_up(repository: Repository, role: str) -> None:
    """What a thief of the online keys does: version numbers so high that the owner's next ones look old."""
    repository.roles[role].signed.version = 99_999
    after = {"targets": ["snapshot", "timestamp"], "snapshot": ["timestamp"], "timestamp": []}[role]
    repository.publish(role, *after)


def test_a_driven_up_timestamp_is_recovered_from_by_its_new_key(client: Client, repository: Repository) -> None:
    _drive_up(repository, "timestamp")
    assert client.refresh() == 0
    repository.replace_keys("timestamp")
    repository.publish("root")
    repository.timestamp.version = 1
    repository.publish("timestamp", count=False)
    assert client.refresh() == 0
    assert client.version("timestamp") == 1


def test_a_driven_up_snapshot_is_recovered_from_by_new_keys(client: Client, repository: Repository) -> None:
    _drive_up(repository, "snapshot")
    assert client.refresh() == 0
    assert client.version("snapshot") == 100_000
    repository.replace_keys("snapshot")
    repository.replace_keys("timestamp")
    repository.publish("root")
    repository.snapshot.version = 1
    repository.publish("snapshot", count=False)
    repository.publish("timestamp")
    assert client.refresh() == 0
    assert client.version("snapshot") == 1


def test_driven_up_targets_are_recovered_from_by_a_new_snapshot_key(client: Client, repository: Repository) -> None:
    _drive_up(repository, "targets")
    assert client.refresh() == 0
    repository.replace_keys("snapshot")
    repository.publish("root")
    repository.targets.version = 1
    repository.publish("targets", "snapshot", "timestamp")
    assert client.refresh() == 0
    assert client.version("targets") == 2


def test_one_of_several_keys_taken_away_is_a_recovery_too(device: Device) -> None:
    """The old timestamp would still verify by the keys that stay; it must be forgotten all the same."""
    repository = device.repository
    repository.add_key("timestamp")
    repository.publish("root")
    _drive_up(repository, "timestamp")
    device.updater().refresh()
    repository.root.revoke_key(repository.root.roles["timestamp"].keyids[0], "timestamp")
    repository.publish("root")
    repository.timestamp.version = 1
    repository.publish("timestamp", count=False)
    assert device.updater().refresh().timestamp.version == 1  # type: ignore[union-attr]


def test_a_key_that_is_only_added_forgets_nothing(device: Device) -> None:
    device.repository.publish("timestamp")
    device.updater().refresh()
    device.repository.add_key("timestamp")
    device.repository.publish("root")
    device.repository.timestamp.version = 1
    device.repository.publish("timestamp", count=False)
    assert device.refusal() is Reason.METADATA_ROLLBACK
