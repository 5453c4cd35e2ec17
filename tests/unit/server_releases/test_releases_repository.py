"""What the server releases is what devices find: python-tuf's client and ours accept every edition."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, Targets

from covey_agent.tuf.errors import RepositoryError
from covey_contract.reasons import Reason
from covey_server.errors import NotFound
from covey_server.releases.errors import KeysMissing, RepositoryDamaged
from covey_server.releases.policy import Policy
from covey_server.releases.shelf import Shelf
from tests.unit.server_releases.conftest import Cut, Site, cut_at, open_site, release_of


def test_a_new_repository_is_accepted_by_both_clients(site: Site) -> None:
    site.theirs()
    trusted = site.ours().trusted
    assert trusted.root.roles["root"].threshold == 2
    assert len(trusted.root.roles["root"].keyids) == 3
    assert trusted.root.roles["targets"].threshold == 2
    assert trusted.root.consistent_snapshot


def test_a_released_build_is_found_with_its_bytes_and_fields(site: Site) -> None:
    build = site.release()
    target = site.check(build)
    assert target.custom == {"covey": {"runtime": "tflite", "release": 1}}
    assert target.length == len(build.manifest)


def test_every_version_of_a_family_has_a_higher_counter_and_its_builds_share_it(site: Site) -> None:
    first = [release_of("digits", "1.0", target) for target in ("tflite-int8", "openvino-int8")]
    assert set(site.releases.release(first).values()) == {1}
    second = [release_of("digits", "1.1", target) for target in ("tflite-int8", "openvino-int8")]
    assert set(site.releases.release(second).values()) == {2}
    late = release_of("digits", "1.0", "onnxruntime-fp32")
    assert site.releases.release([late]) == {late.path: 1}
    other = release_of("sounds", "9")
    assert site.releases.release([other]) == {other.path: 1}
    for build in (*first, *second, late, other):
        site.check(build)


def test_an_old_version_released_again_has_the_highest_counter(site: Site) -> None:
    builds = [site.release(version=version) for version in ("1.0", "1.1", "1.2")]
    assert [site.counter(build) for build in builds] == [1, 2, 3]
    assert site.releases.release_again("digits", "1.0") == 4
    assert [site.counter(build) for build in builds] == [4, 2, 3]
    assert site.releases.release_again("digits", "1.0") == 4  # it is the highest already
    assert site.release(version="1.3") is not None
    assert site.counter(release_of(version="1.3")) == 5
    site.check(builds[0])
    with pytest.raises(NotFound):
        site.releases.release_again("digits", "7")


def test_releasing_the_same_again_changes_nothing(site: Site) -> None:
    build = site.release()
    before = site.releases.shelf.metadata("timestamp.json")
    site.releases.release([build])
    assert site.releases.shelf.metadata("timestamp.json") == before


def test_a_withdrawn_version_is_not_found_any_more(site: Site) -> None:
    kept, gone = site.release(version="1.0"), site.release(version="1.1")
    assert site.releases.withdraw("digits", "1.1") == 1
    site.check(kept)
    assert site.theirs().get_targetinfo(gone.path) is None
    with pytest.raises(RepositoryError) as caught:
        site.ours().find(gone.path)
    assert caught.value.reason is Reason.NOT_RELEASED
    assert site.releases.withdraw("digits", "1.1") == 0


def test_a_publisher_speaks_for_its_family_alone(site: Site) -> None:
    site.release("digits")
    site.release("digits-large")
    targets = site.releases.edition().role("targets").signed
    assert targets.targets == {}
    assert targets.delegations is not None
    for model in ("digits", "digits-large"):
        entry = targets.delegations.roles[f"models~{model}"]  # type: ignore[index]
        assert entry.terminating
        assert entry.paths == [f"models/{model}/*/*"]
        assert not entry.is_delegated_path("models/digits/1.0/x/y")
        assert entry.is_delegated_path("models/digits/1.0/tflite-int8") == (model == "digits")


@pytest.mark.parametrize("model", ["targets", "root", "a.b_c-d", "x" * 64, "0"])
def test_any_name_of_a_model_will_do(site: Site, model: str) -> None:
    site.check(site.release(model))


def test_a_family_that_grows_is_spread_over_bins(tmp_path: Path) -> None:
    """Flat, then 16, then 256 bins; every build stays to be found, and no client loses its way (snapshots never forget)."""
    site = open_site(tmp_path, Policy(bins=((9, 256), (4, 16))))
    builds = []
    expected = {3: 0, 4: 16, 8: 16, 9: 256}
    for number in range(1, 11):
        builds.append(site.release(version=str(number)))
        if number in expected:
            family = site.releases.edition().family("digits")
            assert len(family) == max(1, expected[number])
            site.check(builds[0])
    ours = site.ours()
    assert [ours.find(build.path).length for build in builds] == [len(build.manifest) for build in builds]
    site.releases.withdraw("digits", "3")
    with pytest.raises(RepositoryError):
        site.ours().find(builds[2].path)
    assert len(site.releases.edition().family("digits")) == 256
    publisher = site.releases.edition().role("models~digits").signed
    assert publisher.targets == {}


def test_nothing_is_published_before_everything_is_there(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The power fails before each file in turn: readers have the old edition, whole, and the next release succeeds."""
    old = site.release(version="1.0")
    for limit in range(10):
        build = release_of(version=f"2.{limit}")
        try:
            with cut_at(limit, monkeypatch):
                site.again().releases.release([build])
        except Cut:
            site.check(old)
            assert site.theirs().get_targetinfo(build.path) is None
            continue
        site.check(build)
        assert limit == 4  # the manifest, the publisher, the snapshot, the timestamp
        return
    pytest.fail("the release never succeeded")


def test_two_processes_do_not_lose_each_others_releases(site: Site) -> None:
    here, there = site, site.again()
    first = here.release(version="1.0")
    second = there.release(version="1.1")
    third = here.release(version="1.2")
    for build in (first, second, third):
        site.check(build)
    assert [site.counter(build) for build in (first, second, third)] == [1, 2, 3]


def test_without_the_keys_nothing_happens_and_the_line_says_which(site: Site) -> None:
    before = site.releases.shelf.metadata("timestamp.json")
    other = site.again()
    (other.releases.keyring.folder / "snapshot.pem").unlink()
    with pytest.raises(KeysMissing, match="snapshot needs 1 signatures and got 0"):
        other.release()
    assert site.releases.shelf.metadata("timestamp.json") == before


def test_old_metadata_is_forgotten_after_a_day_and_roots_never(site: Site) -> None:
    for version in ("1.0", "1.1", "1.2"):
        site.release(version=version)
    folder = site.shelf / "metadata"
    now_s = site.clock.now_ms / 1000
    for path in folder.iterdir():
        os.utime(path, (now_s, now_s))
    assert site.releases.prune() == 0
    site.clock.pass_(days=2)
    assert site.releases.prune() > 0
    assert {path.name for path in folder.iterdir()} == site.releases.edition().files()
    site.clock.pass_(days=-2)
    site.check(release_of(version="1.2"))


def test_a_damaged_repository_is_said(site: Site) -> None:
    build = site.release()
    name = f"{site.releases.edition().snapshot.signed.version}.snapshot.json"
    (site.shelf / "metadata" / name).write_bytes(b"{")
    with pytest.raises(RepositoryDamaged):
        site.again().releases.edition()
    del build


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../keys/x.pem",
        "root.json",
        "0.root.json",
        "1.root.json.tmp",
        "timestamp.json/..",
        "1.%2e.json",
        "a" * 300,
    ],
)
def test_only_names_of_metadata_are_served(site: Site, name: str) -> None:
    with pytest.raises(NotFound):
        site.releases.shelf.metadata(name)


@pytest.mark.parametrize(
    "name", ["models/../../keys/keyring.json", "models/a/b/c", "", "/etc/passwd", f"models/../a/{'0' * 64}.x"]
)
def test_only_names_of_targets_are_served(site: Site, name: str) -> None:
    with pytest.raises(NotFound):
        site.releases.shelf.target(name)


def test_sizes_stay_what_they_were_designed_for(site: Site) -> None:
    build = site.release()
    shelf: Shelf = site.releases.shelf
    assert len(shelf.metadata("timestamp.json")) < 1000
    assert len(site.first_root) < 6000
    targets: Metadata[Targets] = site.releases.edition().role("models~digits")
    assert len(targets.to_bytes()) < 1000
    del build
