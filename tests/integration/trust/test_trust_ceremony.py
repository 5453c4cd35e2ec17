"""The ceremonies, rehearsed from the first key to a root that rotated three times, with old devices that catch up."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from covey_server.errors import StartError
from covey_server.registry.keys import SigningKeys
from covey_server.releases.bootstrap import open_releases
from covey_server.releases.release import Release
from covey_server.releases.releases import Releases
from covey_server.settings import Settings
from tests.integration.trust.conftest import Site


def _now() -> int:
    return time.time_ns() // 1_000_000


def start(site: Site, *, production: bool = True) -> Releases:
    """What the server does with its keys and repository when it starts."""
    keys = SigningKeys.load_or_create(site.data / "keys")
    return open_releases(Settings(data=site.data, production=production), _now, keys)


def build(version: str = "1.0", model: str = "digits") -> Release:
    return Release(model, version, "tflite-int8", f"{model} {version}".encode(), {"runtime": "tflite"})


def test_a_ceremony_makes_a_repository_that_production_starts_on(production: Site) -> None:
    releases = start(production)
    assert releases.release([build()]) == {build().path: 1}
    assert production.device("first").init().refresh() == 0
    told = production.keys("status")
    assert "root" in told
    assert "2 of" in told
    assert "elsewhere" in told
    document = json.loads(production.keys("status", "--json"))
    assert {row["role"] for row in document["roles"]} == {"root", "targets", "models~digits", "snapshot", "timestamp"}
    assert [row["threshold"] for row in document["roles"]] == [2, 2, 1, 1, 1]
    held = sorted(path.name for path in (production.data / "keys").iterdir())
    assert held == ["director-1.pem", "director.pem", "keyring.json", "release.pem", "snapshot.pem", "timestamp.pem"]
    for path in (production.data / "keys").iterdir():
        assert path.stat().st_mode & 0o077 == 0


def test_production_refuses_development_keys_and_an_empty_folder(site: Site) -> None:
    with pytest.raises(StartError, match="make its keys first"):
        start(site)
    start(site, production=False)
    with pytest.raises(StartError, match="development keys are trusted"):
        start(site)


def test_too_few_signatures_publish_nothing(site: Site) -> None:
    roots = [word for name in ("alice", "bob", "carol") for word in ("--root", str(site.public(name)))]
    site.keys("ceremony", *roots, "--out", site.folder)
    document = site.folder / "root.json"
    assert "0 signatures" in site.keys("ceremony", *roots, "--out", site.folder)
    site.sign(document, "alice")
    assert "1/2" in site.keys("publish", document, code=1)
    site.sign(document, "alice")  # twice the same is once
    assert "1/2" in site.keys("publish", document, code=1)
    stranger = site.offline_key("mallory")
    site.keys("sign", document, "--key", stranger)
    assert "1/2" in site.keys("publish", document, code=1)
    assert not (site.metadata / "1.root.json").exists()


def test_root_rotates_over_three_versions_and_old_devices_catch_up(production: Site) -> None:
    """Carol leaves, dave comes; then the threshold rises; then all are new. Devices of each day go on, and so do new ones."""
    site = production
    releases = start(site)
    releases.release([build()])
    devices = {1: site.device("of-1").init(1)}
    assert devices[1].refresh() == 0
    steps = [
        (("alice", "bob", "dave"), "2", ("alice", "bob")),
        (("alice", "bob", "dave"), "3", ("alice", "bob", "dave")),
        (("erin", "frank", "grace"), "2", ("alice", "bob", "dave", "erin", "grace")),
    ]
    for version, (trusted, threshold, signers) in enumerate(steps, start=2):
        keys = [word for name in trusted for word in ("--key", str(site.public(name)))]
        site.keys("rotate", "root", *keys, "--threshold", threshold, "--out", site.folder)
        site.sign(site.folder / "root.json", *signers)
        site.keys("publish", site.folder / "root.json")
        devices[version] = site.device(f"of-{version}").init(version)
        assert devices[version].refresh() == 0
    releases.release([build("1.1")])
    late = site.device("never-seen-since-1").init(1)
    for device in (*devices.values(), late):
        assert device.refresh() == 0
        assert device.root_version() == 4
    site.keys("rotate", "root", "--key", site.public("alice"), "--threshold", "1", "--out", site.folder)
    site.sign(site.folder / "root.json", "alice", "bob", "dave")  # they have no say any more
    assert "root was signed by 0/2" in site.keys("publish", site.folder / "root.json", code=1)


@pytest.mark.parametrize("role", ["snapshot", "timestamp"])
def test_an_online_key_is_replaced_beside_the_running_server(production: Site, role: str) -> None:
    site = production
    releases = start(site)
    releases.release([build()])
    device = site.device("one").init()
    assert device.refresh() == 0
    old = releases.edition().root.signed.roles[role].keyids
    site.keys("rotate", role, "--out", site.folder)
    site.sign(site.folder / "root.json", "bob", "carol")
    site.keys("publish", site.folder / "root.json")
    assert device.refresh() == 0
    releases.release([build("1.1")])  # the server that was running all the time
    assert device.refresh() == 0
    assert set(releases.edition().root.signed.roles[role].keyids).isdisjoint(old)
    assert site.device("two").init(1).refresh() == 0


def test_the_key_for_orders_is_replaced(production: Site) -> None:
    site = production
    before = start(site).director_keys()
    site.keys("rotate", "director", "--out", site.folder)
    site.sign(site.folder / "root.json", "alice", "bob")
    assert "restart the server" in site.keys("publish", site.folder / "root.json")
    after = start(site).director_keys()
    assert set(after).isdisjoint(before)
    assert SigningKeys.load_or_create(site.data / "keys").trust.director == tuple(after)
    (site.data / "keys" / "director.pem").write_bytes((site.data / "keys" / "director-1.pem").read_bytes())
    with pytest.raises(StartError, match="not one that the repository's root names"):
        start(site)


def test_keys_of_targets_and_a_new_publisher(production: Site) -> None:
    """A thief has the publisher's key: another is delegated to, and what the thief signs is worth nothing."""
    site = production
    releases = start(site)
    releases.release([build()])
    key = site.folder / "second-desk.pem"
    site.keys("new", key, "--no-passphrase")
    site.keys("delegate", "digits", "--key", key.with_suffix(".pub"), "--out", site.folder)
    site.sign(site.folder / "targets.json", "alice", "bob")
    site.keys("publish", site.folder / "targets.json")
    releases.release([build("1.1")])
    device = site.device("one").init()
    assert device.refresh() == 0
    names = [word for name in ("dave", "erin", "frank") for word in ("--key", str(site.public(name)))]
    site.keys("rotate", "targets", *names, "--out", site.folder)
    site.sign(site.folder / "root.json", "alice", "bob")
    assert "targets needs 2 signatures" in site.keys("publish", site.folder / "root.json", code=1)
    site.keys("renew", "targets", "--out", site.folder)
    site.sign(site.folder / "targets.json", "dave", "frank")
    site.keys("publish", site.folder / "root.json", site.folder / "targets.json")
    assert device.refresh() == 0
    with pytest.raises(Exception, match="has no publisher"):
        releases.release([build(model="sounds")])


def test_renewal_away_from_the_server(production: Site) -> None:
    site = production
    for role in ("root", "targets"):
        site.keys("renew", role, "--out", site.folder)
        site.sign(site.folder / f"{role}.json", "bob", "carol")
        site.keys("publish", site.folder / f"{role}.json")
        assert "does not follow" in site.keys("publish", site.folder / f"{role}.json", code=1)
    assert site.device("one").init().refresh() == 0


def test_development_rotates_by_one_command(site: Site) -> None:
    start(site, production=False)
    device = site.device("one").init()
    assert "published root version 2" in site.keys("rotate", "timestamp")
    assert "published root version 3" in site.keys("renew", "root")
    assert device.refresh() == 0
    assert device.root_version() == 3


def test_a_withdrawn_version_stays_withdrawn(production: Site) -> None:
    releases = start(production)
    releases.release([build("1.0"), build("1.1")])
    assert "1 builds of digits 1.1" in production.keys("withdraw", "digits", "1.1")
    assert "is not released" in production.keys("withdraw", "digits", "1.1", code=1)
    assert [path for path, _ in releases.edition().targets("digits")] == [build("1.0").path]
    assert releases.shelf.withdrawn() == {build("1.1").path}


def test_roots_are_exported_for_devices(production: Site) -> None:
    production.keys("export", production.folder / "roots")
    exported = production.folder / "roots" / "1.root.json"
    assert exported.read_bytes() == (production.metadata / "1.root.json").read_bytes()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("rotate", "root"), "name all keys"),
        (("publish", "nowhere.json"), "nowhere.json: No such file"),
        (("delegate", "digits", "--key", "nowhere.pub"), "nowhere.pub cannot be read"),
    ],
)
def test_mistakes_are_one_line(production: Site, words: tuple[str, ...], line: str) -> None:
    told = production.keys(*words, code=1)
    assert line in told
    assert told.count("\n") == 1


def test_what_is_no_document_is_refused(production: Site) -> None:
    path = production.folder / "odd.json"
    for data in (b"", b"{}", b"[1]", b"\xff", (production.metadata / "timestamp.json").read_bytes()):
        path.write_bytes(data)
        assert "Traceback" not in production.keys("publish", path, code=1)


def test_a_passphrase_that_is_wrong(production: Site, tmp_path: Path) -> None:
    del tmp_path
    production.keys("renew", "root", "--out", production.folder)
    production.secret.write_text("another passphrase\n")
    told = production.keys(
        "sign", production.folder / "root.json", "--key", production.folder / "bag" / "alice.pem", code=1
    )
    assert "does not sign" in told
