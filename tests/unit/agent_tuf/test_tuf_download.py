"""Targets' files: what arrives is what was signed, or nothing."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from covey_agent.tuf.errors import Refused, RepositoryError
from covey_agent.tuf.source import HeldSource
from covey_agent.tuf.updater import target_place
from covey_contract.reasons import Reason
from tests.unit.agent_tuf.conftest import Client, Device, WebServer
from tests.unit.agent_tuf.repository import Repository


@pytest.mark.parametrize("path", ["file.txt", "path/to/a/file.txt", "a b/ü?#.txt", "..", "../up", "x" * 300])
def test_a_file_is_downloaded_once(client: Client, web_server: WebServer, path: str) -> None:
    web_server.repository.add_target("targets", path, b"content")
    web_server.repository.publish_content()
    assert client.download(path) == 0
    assert client.downloaded() == [b"content"]
    asked = [name for name in web_server.asked if name.startswith("targets/")]
    assert len(asked) == 1
    assert client.download(path) == 0
    assert [name for name in web_server.asked if name.startswith("targets/")] == asked
    assert {place.name for place in client.folder.iterdir()} <= {"metadata", "targets", "trusted.json"}


@pytest.mark.parametrize("substitute", [b"malicious", b"malicious data, longer than the real one", b"short", b""])
def test_other_bytes_are_not_accepted_and_leave_no_trace(
    client: Client, repository: Repository, substitute: bytes
) -> None:
    repository.add_target("targets", "one", b"bytes one")
    repository.add_target("targets", "two", b"bytes two")
    repository.publish_content()
    assert client.download("one") == 0
    for name in repository.files:
        repository.files[name] = substitute
    assert client.download("two") == 1
    assert client.downloaded() == [b"bytes one"]
    assert len(list(client.downloads.iterdir())) == 1
    (client.downloads / "one").write_bytes(b"tampered")
    assert client.download("one") == 1
    assert client.downloaded() == [b"tampered"]  # a file that was not replaced is not touched either


def test_a_new_content_replaces_the_old_under_the_same_name(client: Client, repository: Repository) -> None:
    for number in range(3):
        repository.add_target("targets", "file", b"content %d" % number)
        repository.publish_content()
        assert client.download("file") == 0
        assert client.downloaded() == [b"content %d" % number]


def test_no_byte_beyond_the_signed_length_is_accepted(device: Device) -> None:
    device.repository.add_target("targets", "file", b"12345")
    device.repository.publish_content()
    updater = device.updater()
    updater.refresh()
    target = updater.find("file")
    place = target_place(device.folder.path.parent, "file")
    name = quote(target.get_prefixed_paths()[0])
    for more in (b"123456", b"12345" * 1000):
        with pytest.raises(Refused) as caught:
            updater.download(target, HeldSource({name: more}), place)
        assert caught.value.reason is Reason.METADATA_TOO_LARGE
        assert not place.exists()
    with pytest.raises(Refused) as caught:
        updater.download(target, HeldSource({name: b"54321"}), place)
    assert caught.value.reason is Reason.DIGEST_MISMATCH
    assert updater.download(target, HeldSource({name: b"12345"}), place)
    assert not updater.download(target, HeldSource({}), place)


def test_a_full_disk_is_said_and_leaves_what_was_there(device: Device) -> None:
    device.repository.add_target("targets", "file", b"12345")
    device.repository.publish_content()
    updater = device.updater()
    updater.refresh()
    blocked = device.folder.path / "root.json" / "file"  # a file where a folder should be
    name = quote(updater.find("file").get_prefixed_paths()[0])
    with pytest.raises(RepositoryError) as caught:
        updater.download(updater.find("file"), HeldSource({name: b"12345"}), blocked)
    assert caught.value.reason is Reason.STORAGE_ERROR
