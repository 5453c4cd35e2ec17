"""Keys: rotation of root through several versions, thresholds, and the kinds of keys that a repository may use."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.metadata import Root

from covey_agent.tuf.updater import Limits
from covey_contract.reasons import Reason
from tests.unit.agent_tuf.conftest import Client, Device
from tests.unit.agent_tuf.repository import Repository, new_signer


class Step(NamedTuple):
    """One version of root: its keys and threshold, and who signed it."""

    keys: str
    threshold: int
    signed_by: str


ACCEPTED = {
    "one key for another": [Step("a", 1, "a"), Step("b", 1, "ab"), Step("b", 1, "b")],
    "signatures of strangers are ignored": [Step("a", 1, "xay"), Step("b", 1, "xbay"), Step("b", 1, "xby")],
    "any three of five": [Step("abcde", 3, "ace"), Step("abcde", 3, "aeb"), Step("abcde", 3, "abd")],
    "one of five replaced": [Step("abcde", 3, "ace"), Step("abdef", 3, "aeb")],
    "one replaced, signed by old and new": [Step("abcde", 3, "ace"), Step("abdef", 3, "acef"), Step("abdef", 3, "aef")],
    "all replaced": [Step("abcde", 3, "ace"), Step("fghij", 3, "acefgh"), Step("fghij", 3, "fgh")],
    "threshold up": [Step("abc", 1, "a"), Step("abc", 2, "ab")],
    "threshold down": [Step("abc", 2, "ab"), Step("abc", 1, "ab"), Step("abc", 1, "a")],
    "a second key": [Step("a", 1, "a"), Step("ab", 2, "ab")],
}
REFUSED = {
    "not signed by the old key": [Step("a", 1, "a"), Step("b", 1, "bxy")],
    "not signed by the new key": [Step("a", 1, "a"), Step("b", 1, "axy")],
    "too few of the new keys": [Step("abcde", 3, "ace"), Step("abdef", 3, "ace")],
    "too few of the old keys": [Step("abcde", 3, "ace"), Step("abdef", 3, "aef")],
    "the new threshold is not reached": [Step("abc", 1, "a"), Step("abc", 2, "b")],
    "the old threshold is not reached": [Step("abc", 2, "ab"), Step("abc", 1, "a")],
}


def _publish_roots(repository: Repository, steps: list[Step]) -> None:
    signers: dict[str, CryptoSigner] = {}
    repository.root.version = 0
    for step in steps:
        for key in list(repository.root.roles["root"].keyids):
            repository.root.revoke_key(key, "root")
        repository.root.roles["root"].threshold = step.threshold
        for name in step.keys:
            repository.root.add_key(signers.setdefault(name, new_signer()).public_key, "root")
        repository.signers["root"] = [signers.setdefault(name, new_signer()) for name in step.signed_by]
        repository.publish("root")


@pytest.mark.parametrize("case", ACCEPTED)
def test_roots_are_followed_one_by_one(device: Device, case: str) -> None:
    _publish_roots(device.repository, ACCEPTED[case])
    device.embedded = device.repository.first_root
    for name in ("root.json", "root_history/1.root.json"):
        (device.folder.path / name).unlink()
    device.updater().refresh()
    assert device.folder.read("root", 1 << 20) == device.repository.metadata[f"{len(ACCEPTED[case])}.root.json"]


@pytest.mark.parametrize("case", REFUSED)
def test_a_root_that_is_not_vouched_for_is_refused_and_the_one_before_stays(device: Device, case: str) -> None:
    _publish_roots(device.repository, REFUSED[case])
    device.embedded = device.repository.first_root
    for name in ("root.json", "root_history/1.root.json"):
        (device.folder.path / name).unlink()
    assert device.refusal() is Reason.METADATA_UNSIGNED
    assert device.folder.read("root", 1 << 20) == device.repository.metadata[f"{len(REFUSED[case]) - 1}.root.json"]


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
@pytest.mark.parametrize(
    ("keys", "threshold", "signed_by", "accepted"),
    [
        ("b", 1, "b", True),
        ("a", 1, "xay", True),
        ("b", 1, "axy", False),
        ("abcde", 3, "ace", True),
        ("abcde", 3, "cde", True),
        ("abdef", 3, "ace", False),
        ("abdef", 3, "ae", False),
    ],
)
def test_keys_of_the_other_roles(  # noqa: PLR0913 - a table
    device: Device, role: str, keys: str, threshold: int, signed_by: str, *, accepted: bool
) -> None:
    repository = device.repository
    signers: dict[str, CryptoSigner] = {}
    for key in list(repository.root.roles[role].keyids):
        repository.root.revoke_key(key, role)
    repository.root.roles[role].threshold = threshold
    for name in keys:
        repository.root.add_key(signers.setdefault(name, new_signer()).public_key, role)
    repository.signers[role] = [signers.setdefault(name, new_signer()) for name in signed_by]
    repository.publish("root", "targets", "snapshot", "timestamp")
    if accepted:
        device.updater().refresh()
    else:
        assert device.refusal() is Reason.METADATA_UNSIGNED


def test_too_few_signatures_leave_the_trusted_snapshot_in_place(client: Client, repository: Repository) -> None:
    assert client.refresh() == 0
    repository.root.roles["snapshot"].threshold = 3
    repository.publish("root")
    assert client.refresh() == 1
    assert client.versions() == {"root": 2, "timestamp": 1, "snapshot": 1, "targets": 1}
    repository.add_key("snapshot")
    repository.add_key("snapshot")
    repository.publish("root", "snapshot", "timestamp")
    assert client.refresh() == 0
    assert client.versions() == {"root": 3, "timestamp": 2, "snapshot": 2, "targets": 1}


def test_a_key_that_is_named_and_not_given_does_not_count(client: Client, repository: Repository) -> None:
    repository.root.roles["snapshot"].keyids.append("ab" * 32)
    repository.root.roles["snapshot"].threshold = 2
    repository.publish("root")
    assert client.refresh() == 1


def test_one_key_under_many_ids_counts_once(device: Device) -> None:
    """Key ids are opaque: a threshold is of keys, whatever they are called."""
    repository = device.repository
    signer = repository.signers["snapshot"][0]
    assert isinstance(signer, CryptoSigner)
    public = signer.public_key
    for number in range(3):
        alias = SSlibKey(f"alias-{number}", public.keytype, public.scheme, dict(public.keyval))
        repository.root.add_key(alias, "snapshot")
        repository.signers["snapshot"].append(CryptoSigner(signer._private_key, alias))
    repository.root.roles["snapshot"].threshold = 2
    repository.publish("root", "snapshot", "timestamp")
    assert device.refusal() is Reason.METADATA_UNSIGNED


def test_a_key_id_need_not_be_the_digest_of_its_key(device: Device) -> None:
    repository = device.repository
    signer = CryptoSigner.generate_ed25519(keyid="a name")
    repository.add_key("timestamp", signer)
    repository.signers["timestamp"] = [signer]
    repository.publish("root", "timestamp")
    device.updater().refresh()


@pytest.mark.parametrize(
    "generate",
    [
        pytest.param(CryptoSigner.generate_ed25519, id="ed25519"),
        pytest.param(CryptoSigner.generate_ecdsa, id="ecdsa-sha2-nistp256"),
        pytest.param(lambda: CryptoSigner.generate_rsa(size=2048), id="rsassa-pss-sha256"),
        pytest.param(
            lambda: CryptoSigner.generate_rsa(scheme="rsa-pkcs1v15-sha256", size=2048), id="rsa-pkcs1v15-sha256"
        ),
    ],
)
def test_kinds_of_keys(device: Device, generate: Callable[[], CryptoSigner]) -> None:
    repository = device.repository
    first = repository.signers["root"][0]
    for role in ("root", "targets", "snapshot", "timestamp"):
        for key in list(repository.root.roles[role].keyids):
            repository.root.revoke_key(key, role)
        repository.root.roles[role].threshold = 2
        repository.signers[role] = []
        signers = [generate(), generate()] if role == "root" else repository.signers["root"][:2]
        for signer in signers:
            assert isinstance(signer, CryptoSigner)
            repository.add_key(role, signer)
    repository.signers["root"].append(first)
    repository.publish("root", "targets", "snapshot", "timestamp")
    trusted = device.updater().refresh()
    assert trusted.root.version == 2


def test_an_unknown_kind_of_key_makes_the_metadata_invalid(device: Device) -> None:
    repository = device.repository
    key = repository.root.roles["timestamp"].keyids[0]
    repository.root.keys[key].scheme = "rot13"
    repository.publish("root")
    assert device.refusal() is Reason.METADATA_INVALID


def test_not_more_roots_than_the_limit_are_followed_at_once(device: Device) -> None:
    """A repository that goes on for ever costs a bounded time; what is missing comes with the next refresh."""
    device.limits = Limits(rotations=4)
    for _ in range(6):
        device.repository.publish("root")
    assert device.updater().refresh().root.version == 5
    assert device.updater().refresh().root.version == 7


def test_a_root_may_not_skip_a_version(device: Device) -> None:
    device.repository.root.version = 2
    device.repository.sign("root")
    device.repository.metadata["2.root.json"] = device.repository.roles["root"].to_bytes()
    device.repository.root.version = 3
    device.repository.sign("root")
    device.repository.metadata["2.root.json"] = device.repository.roles["root"].to_bytes()
    assert device.refusal() is Reason.METADATA_ROLLBACK


def test_a_stored_root_is_never_exchanged_for_an_older_one(device: Device) -> None:
    """With the embedded root at every start: what is lost of the history is fetched again, what is withheld is noticed."""
    device.embedded = device.repository.first_root
    device.repository.publish("root", "root")
    assert device.updater().refresh().root.version == 3
    second = device.repository.metadata.pop("2.root.json")
    (device.folder.path / "root_history" / "2.root.json").unlink()
    assert device.refusal() is Reason.METADATA_ROLLBACK
    device.repository.metadata["2.root.json"] = second
    assert device.updater().refresh().root.version == 3
    assert device.folder.read_root(2, 1 << 20) == second
    assert device.folder.read("root", 1 << 20) == device.repository.metadata["3.root.json"]


def test_the_embedded_root_heals_a_damaged_folder(device: Device) -> None:
    device.embedded = device.repository.first_root
    device.repository.publish("root")
    device.updater().refresh()
    (device.folder.path / "root.json").write_bytes(b"damaged")
    (device.folder.path / "root_history" / "2.root.json").write_bytes(b"")
    assert device.updater().refresh().root.version == 2
    assert device.folder.read("root", 1 << 20) == device.repository.metadata["2.root.json"]


def test_roles_must_be_the_top_level_ones(device: Device) -> None:
    assert isinstance(device.repository.root, Root)
    del device.repository.root.roles["timestamp"]
    device.repository.publish("root")
    assert device.refusal() is Reason.METADATA_INVALID
