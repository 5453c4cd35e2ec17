"""The plain course of an update, as the public conformance suite checks it: what is asked for, what is kept, what is said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.agent_tuf.conftest import Client, WebServer
from tests.unit.agent_tuf.repository import Repository

FIRST = ["metadata/2.root.json", "metadata/timestamp.json", "metadata/1.snapshot.json", "metadata/1.targets.json"]


def test_a_first_refresh_asks_for_each_file_once_and_keeps_it_byte_for_byte(
    client: Client, web_server: WebServer
) -> None:
    assert client.refresh() == 0
    assert web_server.asked == FIRST
    served = web_server.repository.metadata
    assert client.stored("root") == served["1.root.json"]
    assert client.stored("timestamp") == served["timestamp.json"]
    assert client.stored("snapshot") == served["1.snapshot.json"]
    assert client.stored("targets") == served["1.targets.json"]


def test_a_second_refresh_asks_only_for_what_may_have_changed(client: Client, web_server: WebServer) -> None:
    assert client.refresh() == 0
    web_server.asked.clear()
    assert client.refresh() == 0
    assert web_server.asked == ["metadata/2.root.json", "metadata/timestamp.json"]


def test_a_download_refreshes_first_even_if_there_is_no_such_target(client: Client, web_server: WebServer) -> None:
    assert client.download("not there") == 1
    assert web_server.asked == FIRST
    assert client.versions() == {"root": 1, "timestamp": 1, "snapshot": 1, "targets": 1}


def test_unversioned_names_where_the_repository_has_no_consistent_snapshots(
    web_server: WebServer, tmp_path: Path
) -> None:
    web_server.repository = Repository(consistent=False)
    web_server.asked.clear()
    web_server.repository.add_target("targets", "a/b.txt", b"content")
    web_server.repository.publish_content()
    client = Client(web_server, tmp_path)
    assert client.init() == 0
    assert client.download("a/b.txt") == 0
    assert web_server.asked == [
        *("metadata/2.root.json", "metadata/timestamp.json", "metadata/snapshot.json", "metadata/targets.json"),
        "targets/a/b.txt",
    ]
    assert client.downloaded() == [b"content"]


@pytest.mark.parametrize("damage", ["no version", "foreign signature", "not json", "empty", "list"])
def test_an_initial_root_that_is_none_is_refused_before_anything_is_asked(
    client: Client, web_server: WebServer, damage: str
) -> None:
    document = json.loads(web_server.repository.first_root)
    if damage == "no version":
        del document["signed"]["version"]
    elif damage == "foreign signature":
        document["signatures"][0]["sig"] = "00" * 64
    data = {"not json": b"{", "empty": b"", "list": b"[]"}.get(damage, json.dumps(document).encode())
    (client.metadata / "root.json").unlink()
    assert client.init(data) == 1
    assert client.refresh() == 1
    assert web_server.asked == []


def test_fields_that_nobody_knows_are_signed_and_kept(client: Client, repository: Repository) -> None:
    repository.root.unrecognized_fields["x-covey"] = {"a": [1, "ä"]}
    key = repository.root.roles["root"].keyids[0]
    repository.root.keys[key].unrecognized_fields["extra"] = {"b": True}
    repository.root.roles["root"].unrecognized_fields["another"] = "value"
    repository.timestamp.unrecognized_fields["y"] = None
    repository.publish("root", "timestamp")
    assert client.refresh() == 0
    assert client.stored("root") == repository.metadata["2.root.json"]


def test_bytes_are_kept_as_they_came_whatever_their_form(client: Client, repository: Repository) -> None:
    odd = json.dumps(json.loads(repository.metadata["timestamp.json"]), indent=7).encode() + b"\n\n"
    repository.metadata["timestamp.json"] = odd
    assert client.refresh() == 0
    assert client.stored("timestamp") == odd


def test_content_that_changes_without_a_new_version_is_not_taken(client: Client, repository: Repository) -> None:
    assert client.refresh() == 0
    before = client.stored("timestamp")
    repository.timestamp.snapshot_meta.version = 100
    repository.publish("timestamp", count=False)
    assert client.refresh() == 0
    assert client.stored("timestamp") == before


def test_a_server_that_does_not_answer_changes_nothing(client: Client, web_server: WebServer) -> None:
    assert client.refresh() == 0
    before = client.versions()
    web_server.repository.metadata.clear()
    assert client.refresh() == 1
    assert client.versions() == before


def test_the_command_is_a_command(client: Client, web_server: WebServer) -> None:
    """As an outsider starts it, in a process of its own."""
    url = f"{web_server.url}/metadata"
    command = [sys.executable, "-m", "covey_agent", "tuf", "--metadata-dir", str(client.metadata)]
    done = subprocess.run([*command, "--metadata-url", url, "refresh"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    web_server.repository.metadata["timestamp.json"] = b"{}"
    done = subprocess.run([*command, "--metadata-url", url, "refresh"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("covey-agent: timestamp is not metadata")
    assert "Traceback" not in done.stderr


def test_what_is_missing_of_the_options_is_one_line(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert client._run("refresh") == 2
    assert "--metadata-url is needed" in capsys.readouterr().err
