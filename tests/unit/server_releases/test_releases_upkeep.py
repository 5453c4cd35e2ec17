"""Time passes: what the server can sign is signed anew in time, what it cannot raises the alarm, and devices notice nothing."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from covey_agent.tuf.errors import RepositoryError
from covey_contract.reasons import Reason
from covey_server.releases.ceremony import RootChange, Trustees
from covey_server.releases.policy import Policy
from covey_server.releases.upkeep import ReleasesCollector, Upkeep
from tests.unit.server_releases.conftest import Cut, Site, cut_at, open_site


def _version(site: Site, role: str) -> int:
    return int(site.releases.edition().metadata(role).signed.version)


def test_the_timestamp_is_signed_anew_at_half_of_its_life(site: Site) -> None:
    site.release()
    assert site.releases.renew() == []
    site.clock.pass_(hours=11)
    assert site.releases.renew() == []
    site.clock.pass_(hours=2)
    snapshot = _version(site, "snapshot")
    assert site.releases.renew() == ["timestamp"]
    assert _version(site, "snapshot") == snapshot
    site.theirs()
    site.ours()


def test_a_year_of_upkeep_keeps_every_role_alive(site: Site) -> None:
    """Over a year in steps of a day; both clients come by now and then, one of them with the root of the first day."""
    site.releases.policy = site.releases.policy.with_online(4 * 86_400, 7 * 86_400)
    build = site.release()
    first = site.first_root
    renewed: dict[str, int] = {}
    for day in range(400):
        site.clock.pass_(days=1)
        for role in site.releases.renew():
            renewed[role] = renewed.get(role, 0) + 1
        if day % 100 == 99:
            site.check(build)
            site.ours(f"new-{day}", root=first).find(build.path)
    assert renewed["root"] == 2
    assert renewed["targets"] == 4
    assert renewed["models~digits"] == 8
    assert not any(row.alarm for row in site.releases.status())


def test_what_is_not_renewed_raises_the_alarm_before_it_expires(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """The keys of root and targets are elsewhere, as they should be."""
    site.release()
    for role in ("root", "targets"):
        for number in (1, 2, 3):
            key = site.releases.keyring.named(f"{role}-{number}")
            assert key is not None
            site.releases.keyring.drop([key.keyid])
    upkeep = Upkeep(site.releases)
    site.clock.pass_(days=140)
    with caplog.at_level(logging.ERROR):
        upkeep.tick()
        assert [record.getMessage() for record in caplog.records] == []
        site.clock.pass_(days=20)
        upkeep.tick()
        upkeep.tick()
    assert [record.getMessage().split(" expires ")[0] for record in caplog.records] == [
        "ALARM: the metadata of targets"
    ]
    rows = {row.role: row for row in site.releases.status()}
    assert rows["targets"].alarm
    assert not rows["targets"].expired
    assert not rows["timestamp"].alarm
    site.theirs()
    site.clock.pass_(days=30)
    site.releases.renew()
    assert {row.role for row in site.releases.status() if row.expired} == {"targets"}
    with pytest.raises(RepositoryError) as caught:
        site.ours()
    assert caught.value.reason is Reason.METADATA_EXPIRED


def test_prometheus_hears_when_each_role_expires(site: Site) -> None:
    site.release()
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ReleasesCollector(site.releases))
    text = generate_latest(registry).decode()
    line = next(line for line in text.splitlines() if 'expires_timestamp_seconds{role="timestamp"}' in line)
    assert float(line.split()[1]) == site.clock.now_ms / 1000 + 86_400
    for role in ("root", "targets", "snapshot", "models~digits"):
        assert f'covey_release_metadata_alarm{{role="{role}"}} 0.0' in text


def test_other_lifetimes_for_sites_that_are_seldom_reached(site: Site) -> None:
    policy = Policy().with_online(30 * 86_400, 60 * 86_400)
    site.releases.policy = policy
    site.release()
    site.clock.pass_(days=29)
    site.ours()
    site.clock.pass_(days=2)
    with pytest.raises(RepositoryError):
        site.ours()


def test_bins_are_renewed_with_their_family(tmp_path: Path) -> None:
    site = open_site(tmp_path, Policy(bins=((9, 256), (2, 16))))
    builds = [site.release(version=str(number)) for number in range(3)]
    site.clock.pass_(days=46)
    renewed = site.releases.renew()
    assert sum(role.startswith("models~digits~") for role in renewed) == 16
    for build in builds:
        site.check(build)


def test_a_kill_between_a_new_root_and_its_timestamp_is_mended(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new root takes the online keys away that signed what is published: until the upkeep's next round nobody can refresh."""
    build = site.release()
    keys = {role: Trustees([site.releases.keyring.make(f"{role}-new")]) for role in ("timestamp", "snapshot")}
    site.clock.pass_(seconds=1)
    with pytest.raises(Cut), cut_at(2, monkeypatch):  # the snapshot and the root are written
        site.releases.change_root(RootChange(roles=keys))
    with pytest.raises(RepositoryError) as caught:
        site.ours()
    assert caught.value.reason is Reason.METADATA_UNSIGNED
    other = site.again()
    Upkeep(other.releases).tick()
    other.check(build)
