"""What is on disk: any power cut leaves a trusted state, two processes do not mix, a disk that refuses is said."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from covey_agent import durable
from covey_agent.tuf.errors import RepositoryError
from covey_agent.tuf.folder import MetadataFolder, file_name
from covey_contract.reasons import Reason
from tests.unit.agent_tuf.conftest import Device


class Cut(BaseException):
    """The power is gone."""


def test_a_power_cut_between_any_two_writes_leaves_a_state_that_goes_on(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rotation of all online keys and new content, cut before each write in turn: the next refresh brings the newest."""
    repository = device.repository
    repository.delegate("targets", "A", ["a/*"])
    repository.publish_content("A")
    device.updater().refresh()
    repository.replace_keys("timestamp")
    repository.replace_keys("snapshot")
    repository.publish("root")
    repository.add_target("A", "a/file", b"bytes")
    repository.publish_content("A")
    start = {path: path.read_bytes() for path in device.folder.path.rglob("*") if path.is_file()}
    newest = {"root": 2, "timestamp": 3, "snapshot": 3, "targets": 3}
    real = durable.write
    for limit in range(20):
        for path in device.folder.path.rglob("*.json"):
            path.unlink()
        for path, data in start.items():
            path.write_bytes(data)
        done = 0

        def cut(path: Path, data: bytes, mode: int = 0o644) -> None:
            nonlocal done
            if done == limit:  # noqa: B023 - it is called within this round
                raise Cut
            done += 1
            real(path, data, mode)

        monkeypatch.setattr(durable, "write", cut)
        ended = True
        try:
            updater = device.updater()
            updater.refresh()
            updater.find("a/file")
        except Cut:
            ended = False
        monkeypatch.setattr(durable, "write", real)
        trusted = device.updater().refresh()
        assert trusted.root.version == newest["root"]
        assert trusted.timestamp is not None
        assert trusted.timestamp.version == newest["timestamp"]
        if ended:
            assert limit == 6  # two files for the root, timestamp, snapshot, targets, A
            return
    pytest.fail("the update never ended")


def test_the_forgotten_timestamp_does_not_come_back_after_a_power_cut(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes before the root that forgets it is stored: a cut between the two must not leave it as a floor."""
    repository = device.repository
    repository.add_key("timestamp")
    repository.publish("root")
    repository.timestamp.version = 5000
    repository.publish("timestamp")
    device.updater().refresh()
    repository.root.revoke_key(repository.root.roles["timestamp"].keyids[0], "timestamp")
    repository.publish("root")
    repository.timestamp.version = 1
    repository.publish("timestamp", count=False)
    real, order = durable.write, []

    def cut(path: Path, data: bytes, mode: int = 0o644) -> None:
        order.append(path.name)
        if path.name == "timestamp.json":
            raise Cut
        real(path, data, mode)

    monkeypatch.setattr(durable, "write", cut)
    with pytest.raises(Cut):
        device.updater().refresh()
    monkeypatch.setattr(durable, "write", real)
    assert device.folder.read("timestamp", 1 << 20) is None
    trusted = device.updater().refresh()
    assert trusted.timestamp is not None
    assert trusted.timestamp.version == 1


def test_a_disk_that_refuses_is_said(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(28, os.strerror(28), "timestamp.json")

    monkeypatch.setattr(durable, "write", refuse)
    assert device.refusal() is Reason.STORAGE_ERROR


def test_files_that_are_damaged_are_fetched_again(device: Device) -> None:
    device.updater().refresh()
    for name in ("timestamp", "snapshot", "targets"):
        (device.folder.path / f"{name}.json").write_bytes(b"\x00" * 100)
    trusted = device.updater().refresh()
    assert trusted.snapshot is not None
    assert device.folder.read("targets", 1 << 20) == device.repository.metadata["1.targets.json"]


def test_a_stored_file_that_is_too_large_is_as_if_it_were_not_there(device: Device) -> None:
    device.folder.write("targets", b"x" * 101)
    assert device.folder.read("targets", 101) == b"x" * 101
    assert device.folder.read("targets", 100) is None


def test_a_folder_without_a_root_says_what_comes_first(device: Device) -> None:
    (device.folder.path / "root.json").unlink()
    with pytest.raises(RepositoryError, match="`init` comes first"):
        device.updater().refresh()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    folder = MetadataFolder(tmp_path)
    entered = threading.Event()

    def other() -> None:
        with MetadataFolder(tmp_path).locked():
            entered.set()

    thread = threading.Thread(target=other)
    with folder.locked():
        thread.start()
        assert not entered.wait(0.1)
    assert entered.wait(10)
    thread.join()


def test_names_stay_in_the_folder() -> None:
    assert file_name("targets") == "targets.json"
    assert file_name("../../etc/passwd") == "..%2F..%2Fetc%2Fpasswd.json"
    long = file_name("ü" * 500)
    assert len(long) < 255
    assert long != file_name("ü" * 501)


def test_the_command_line_does_not_import_the_library_before_it_is_used() -> None:
    """The control process stays light: python-tuf is imported by the process that needs it, for the time that it does."""
    words = "import covey_agent.cli, covey_agent.daemon, sys; print('tuf' in sys.modules, 'securesystemslib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
