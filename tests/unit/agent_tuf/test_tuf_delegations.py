"""The search for a target: order, terminating delegations, patterns, hash prefixes, bins; and who may vouch for what."""

from __future__ import annotations

import hashlib
from typing import NamedTuple
from urllib.parse import quote

import pytest

from covey_contract.reasons import Reason
from tests.unit.agent_tuf.conftest import Client, Device, WebServer
from tests.unit.agent_tuf.repository import Repository, new_signer


class Edge(NamedTuple):
    delegator: str
    role: str
    paths: tuple[str, ...] = ("*",)
    terminating: bool = False


GRAPHS: dict[str, tuple[list[Edge], list[str]]] = {
    "one": ([Edge("targets", "A")], ["A"]),
    "in order": ([Edge("targets", "A"), Edge("targets", "B")], ["A", "B"]),
    "depth first": (
        [Edge("targets", "A"), Edge("targets", "B"), Edge("A", "C"), Edge("A", "D"), Edge("C", "E")],
        ["A", "C", "E", "D", "B"],
    ),
    "terminating ends the search beside it": (
        [Edge("targets", "A"), Edge("targets", "B"), Edge("A", "C", terminating=True), Edge("A", "D")],
        ["A", "C"],
    ),
    "terminating lets the search go deeper": (
        [Edge("targets", "A"), Edge("targets", "B"), Edge("A", "C", terminating=True), Edge("C", "D")],
        ["A", "C", "D"],
    ),
    "terminating where the path does not match ends nothing": (
        [Edge("targets", "A", ("*.py",), terminating=True), Edge("targets", "B")],
        ["B"],
    ),
    "only where the path matches": (
        [Edge("targets", "A", ("*.py",)), Edge("targets", "B"), Edge("A", "C")],
        ["B"],
    ),
    "every link of the chain must match": (
        [Edge("targets", "A"), Edge("targets", "B"), Edge("A", "C", ("*.py",)), Edge("C", "D")],
        ["A", "B"],
    ),
    "a cycle ends": (
        [Edge("targets", "A"), Edge("A", "B"), Edge("B", "C"), Edge("C", "A")],
        ["A", "B", "C"],
    ),
    "two that delegate to a third": (
        [Edge("targets", "A"), Edge("targets", "B"), Edge("B", "C"), Edge("A", "C")],
        ["A", "C", "B"],
    ),
    "two that delegate to a third, by other paths": (
        [Edge("targets", "A"), Edge("targets", "B"), Edge("B", "C"), Edge("A", "C", ("*.py",))],
        ["A", "B", "C"],
    ),
}


def _build(repository: Repository, edges: list[Edge]) -> None:
    for edge in edges:
        repository.delegate(edge.delegator, edge.role, edge.paths, terminating=edge.terminating)
    repository.publish_content(*dict.fromkeys(edge.role for edge in edges))


@pytest.mark.parametrize("case", GRAPHS)
def test_roles_are_asked_for_in_the_order_of_the_search(client: Client, web_server: WebServer, case: str) -> None:
    edges, order = GRAPHS[case]
    _build(web_server.repository, edges)
    assert client.download("missing") == 1
    assert web_server.asked[4:] == [f"metadata/1.{role}.json" for role in order]


TREE = [
    Edge("targets", "A", ("*.doc", "*.md")),
    Edge("targets", "B", ("releases/*/*",)),
    Edge("B", "C", ("releases/x/*",)),
    Edge("B", "D", ("releases/y/*.zip",)),
]


@pytest.mark.parametrize(
    ("role", "path", "order"),
    [
        ("targets", "file", []),
        ("A", "README.md", ["A"]),
        ("C", "releases/x/1", ["B", "C"]),
        ("D", "releases/y/1.zip", ["B", "D"]),
    ],
)
def test_a_target_is_found_through_its_delegations(
    client: Client, web_server: WebServer, role: str, path: str, order: list[str]
) -> None:
    _build(web_server.repository, TREE)
    web_server.repository.add_target(role, path, b"of " + role.encode())
    web_server.repository.publish_content("A", "B", "C", "D")
    assert client.download(path) == 0
    assert client.downloaded() == [b"of " + role.encode()]
    assert [name for name in web_server.asked if name.startswith("metadata/")][4:] == [
        f"metadata/2.{name}.json" for name in order
    ]


@pytest.mark.parametrize("path", ["releases/z/1.zip", "releases/y/1.tar", "releases/y/deep/1.zip", "x/README.md"])
def test_a_target_beyond_what_a_role_may_speak_for_is_not_found(device: Device, path: str) -> None:
    """A pattern's `*` never crosses a slash; a role's word counts only where every delegation on the way covers it."""
    repository = device.repository
    _build(repository, TREE)
    repository.add_target("D", path, b"bytes")
    repository.add_target("A", path, b"bytes")
    repository.publish_content("A", "B", "C", "D")
    assert device.refusal(target=path) is Reason.NOT_RELEASED


def test_hash_prefixes_choose_the_role(device: Device) -> None:
    repository = device.repository
    prefixes = [f"{number:x}" for number in range(16)]
    for prefix in prefixes:
        repository.delegate("targets", f"bin-{prefix}", hash_prefixes=[prefix])
    paths = [f"models/m/{number}/t" for number in range(20)]
    for path in paths:
        repository.add_target(f"bin-{hashlib.sha256(path.encode()).hexdigest()[0]}", path, path.encode())
    misplaced = "models/m/misplaced/t"
    right = hashlib.sha256(misplaced.encode()).hexdigest()[0]
    repository.add_target("bin-0" if right != "0" else "bin-1", misplaced, b"bytes")
    repository.publish_content(*(f"bin-{prefix}" for prefix in prefixes))
    updater = device.updater()
    updater.refresh()
    assert [updater.find(path).length for path in paths] == [len(path) for path in paths]
    assert device.refusal(target=misplaced) is Reason.NOT_RELEASED


def test_succinct_bins(device: Device) -> None:
    """TAP 15, which python-tuf knows and the specification does not yet."""
    repository = device.repository
    bins = repository.delegate_bins("targets", 4, "bin")
    path = "a/b"
    role = f"bin-{hashlib.sha256(path.encode()).hexdigest()[0]}"
    repository.add_target(role, path, b"bytes")
    repository.publish_content(*bins)
    updater = device.updater()
    updater.refresh()
    assert updater.find(path).length == 5


@pytest.mark.parametrize("role", ["?", "#", "/role", "../role", "a b", "ä", "x" * 250, ".", "%2e"])
def test_a_role_may_have_any_name_and_leaves_the_folder_by_none(
    client: Client, web_server: WebServer, role: str
) -> None:
    web_server.repository.delegate("targets", role)
    web_server.repository.publish_content(role)
    assert client.download("missing") == 1
    assert web_server.asked[-1] == f"metadata/1.{quote(role, safe='')}.json"
    assert len(client.versions()) == 5
    assert {path.name for path in client.folder.iterdir()} <= {"metadata", "targets", "trusted.json"}


@pytest.mark.parametrize("role", ["root", "targets", "timestamp", ""])
def test_a_delegated_role_with_a_name_of_the_top_is_refused(device: Device, role: str) -> None:
    device.repository.delegate("targets", "harmless")
    device.repository.publish("harmless")
    text = device.repository.roles["targets"].signed.delegations.roles
    text["harmless"].name = role
    device.repository.publish("targets", "snapshot", "timestamp")
    assert device.refusal(target="missing") is Reason.METADATA_INVALID


def test_a_stored_role_is_verified_against_its_delegator_of_today(device: Device) -> None:
    """The delegator takes the key away and nothing else changes: what is stored no longer counts."""
    repository = device.repository
    old = repository.delegate("targets", "A", ["a/*"])
    repository.add_target("A", "a/file", b"bytes")
    repository.publish_content("A")
    updater = device.updater()
    updater.refresh()
    updater.find("a/file")
    repository.targets.revoke_key(old.public_key.keyid, "A")
    repository.targets.add_key(new_signer().public_key, "A")
    repository.publish("targets", "snapshot", "timestamp")
    assert device.refusal(target="a/file") is Reason.METADATA_UNSIGNED


def test_a_role_that_the_snapshot_does_not_know_is_refused(device: Device) -> None:
    device.repository.delegate("targets", "A")
    device.repository.publish_content()
    assert device.refusal(target="missing") is Reason.METADATA_MISMATCH


def test_a_search_visits_no_more_roles_than_its_limit(device: Device) -> None:
    roles = [f"r{number}" for number in range(80)]
    _build(device.repository, [Edge("targets", role) for role in roles])
    device.repository.add_target("r79", "file", b"bytes")
    device.repository.publish_content("r79")
    assert device.refusal(target="file") is Reason.NOT_RELEASED
    assert len(list(device.folder.path.glob("r[0-9]*.json"))) == 63  # and targets


def test_a_target_without_a_strong_hash_is_not_released(device: Device) -> None:
    device.repository.add_target("targets", "file", b"bytes")
    device.repository.targets.targets["file"].hashes = {"md5": hashlib.md5(b"bytes", usedforsecurity=False).hexdigest()}
    device.repository.publish_content()
    assert device.refusal(target="file") is Reason.NOT_RELEASED
