"""Every condition of an order: what holds passes, and each that does not is refused with its own reason."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from covey_agent.core.acceptance import Machine, Refusal, Room, authenticate, examine, version_key
from covey_contract.envelope import Envelope
from covey_contract.facts import Accelerator, Facts, RuntimeFact
from covey_contract.manifest import MANIFEST_TYPE, FileEntry, Manifest, Runtime, build_digest
from covey_contract.messages import ASSIGNMENT_TYPE, COMMAND_TYPE, Assignment
from covey_contract.reasons import Reason
from covey_contract.signing import Trust, public_key, seal, seal_bytes
from covey_contract.wire import encode
from covey_hil.testing.manifests import made_manifest

RELEASE, DIRECTOR, STRANGER = (Ed25519PrivateKey.generate() for _ in range(3))
TRUST = Trust(release=(public_key(RELEASE),), director=(public_key(DIRECTOR),))
NOW = 1_700_000_000_000
MANIFEST = made_manifest(
    version="1.0",
    files=(FileEntry(path="model.onnx", size=10_000_000, sha256=hashlib.sha256(b"").hexdigest()),),
    table=FileEntry(path="blocks.bin", size=153 * 32, sha256=hashlib.sha256(b"").hexdigest()),
)
MACHINE = Machine(
    Facts(architecture="x86_64", memory_mb=1000, runtimes=(RuntimeFact(name="onnxruntime", version="1.20.1"),)),
    {"onnxruntime": "1.20.1", "openvino": "2025.2"},
)
ROOM = Room(free=1_000_000_000, margin=1_000_000, quota=None, used=0)


def order_for(manifest: Manifest = MANIFEST, **changes: Any) -> Assignment:
    order = Assignment(
        id="a1",
        device="d1",
        counter=5,
        issued_ms=NOW - 1000,
        expires_ms=NOW + 1000,
        model="m",
        version="1.0",
        build=build_digest(encode(manifest)),
    )
    return msgspec.structs.replace(order, **changes)


def sealed(order: Assignment, key: Ed25519PrivateKey = DIRECTOR, kind: str = ASSIGNMENT_TYPE) -> Envelope:
    return seal(order, kind, [key])


def refusal_of(envelope: Envelope, *, counter: int = 4, now_ms: int = NOW) -> Reason:
    with pytest.raises(Refusal) as refused:
        authenticate(envelope, trust=TRUST, device="d1", counter=counter, now_ms=now_ms)
    assert refused.value.detail
    return refused.value.reason


def test_a_true_order() -> None:
    order = order_for()
    assert authenticate(sealed(order), trust=TRUST, device="d1", counter=4, now_ms=NOW) == order


@pytest.mark.parametrize(
    ("envelope", "reason"),
    [
        (sealed(order_for(), STRANGER), Reason.BAD_SIGNATURE),
        (sealed(order_for(), RELEASE), Reason.BAD_SIGNATURE),
        (sealed(order_for(), kind=COMMAND_TYPE), Reason.BAD_SIGNATURE),
        (seal_bytes(b"not json", ASSIGNMENT_TYPE, [DIRECTOR]), Reason.BAD_MESSAGE),
        (sealed(order_for(device="d2")), Reason.WRONG_DEVICE),
        (sealed(order_for(counter=4)), Reason.OLD_COUNTER),
        (sealed(order_for(counter=3)), Reason.OLD_COUNTER),
        (sealed(order_for(expires_ms=NOW)), Reason.EXPIRED),
    ],
)
def test_what_is_not_an_order_for_this_device_now(envelope: Envelope, reason: Reason) -> None:
    assert refusal_of(envelope) is reason


@given(st.binary(max_size=200), st.integers(0, 10_000))
def test_a_changed_payload_is_never_believed(tail: bytes, at: int) -> None:
    good = sealed(order_for())
    changed = bytearray(good.payload)
    changed[at % len(changed)] ^= 1
    assert refusal_of(msgspec.structs.replace(good, payload=bytes(changed))) is Reason.BAD_SIGNATURE
    if tail:
        assert refusal_of(msgspec.structs.replace(good, payload=good.payload + tail)) is Reason.BAD_SIGNATURE


def fit(
    manifest: Manifest = MANIFEST,
    *,
    order: Assignment | None = None,
    machine: Machine = MACHINE,
    room: Room = ROOM,
    key: Ed25519PrivateKey = RELEASE,
) -> tuple[str, ...]:
    envelope = seal_bytes(encode(manifest), MANIFEST_TYPE, [key])
    checked = examine(order or order_for(manifest), envelope, trust=TRUST, machine=machine, room=room, now_ms=NOW)
    assert checked.manifest == manifest
    return checked.notes


def changed(**changes: Any) -> Manifest:
    return msgspec.structs.replace(MANIFEST, **changes)


def test_a_build_that_fits() -> None:
    assert fit() == ()
    assert fit(changed(architecture="x86_64", runtime_min="1.18", memory_mb=900.0)) == ()
    assert fit(changed(runtime_exact="1.20.1")) == ()


def with_gpu(capability: str | None) -> Machine:
    gpu = Accelerator(kind="gpu", vendor="nvidia", compute_capability=capability)
    return Machine(msgspec.structs.replace(MACHINE.facts, accelerators=(gpu,)), MACHINE.runtimes)


@pytest.mark.parametrize(
    ("manifest", "more", "reason"),
    [
        (MANIFEST, {"key": DIRECTOR}, Reason.BAD_SIGNATURE),
        (MANIFEST, {"order": order_for(build="0" * 64)}, Reason.WRONG_MANIFEST),
        (MANIFEST, {"order": order_for(version="1.1")}, Reason.WRONG_MANIFEST),
        (MANIFEST, {"order": order_for(model="other")}, Reason.WRONG_MANIFEST),
        (MANIFEST, {"order": order_for(expires_ms=NOW)}, Reason.EXPIRED),
        (changed(architecture="aarch64"), {}, Reason.WRONG_HARDWARE),
        (changed(compute_capability="8.7"), {}, Reason.WRONG_HARDWARE),
        (changed(compute_capability="8.7"), {"machine": with_gpu("9.0")}, Reason.WRONG_HARDWARE),
        (changed(runtime=Runtime.TENSORRT), {}, Reason.NO_RUNTIME),
        # Installed here, but the (simulated) device does not have it.
        (changed(runtime=Runtime.OPENVINO), {}, Reason.NO_RUNTIME),
        # The (simulated) device has it, but it cannot be imported here.
        (MANIFEST, {"machine": Machine(MACHINE.facts, {})}, Reason.NO_RUNTIME),
        (changed(runtime_min="1.21"), {}, Reason.NO_RUNTIME),
        (changed(runtime_exact="1.20.0"), {}, Reason.NO_RUNTIME),
        (changed(memory_mb=1001.0), {}, Reason.NO_MEMORY),
        (MANIFEST, {"room": Room(free=10_500_000, margin=1_000_000, quota=None, used=0)}, Reason.NO_SPACE),
        (MANIFEST, {"room": Room(free=10**9, margin=0, quota=10_000_000, used=1_000_000)}, Reason.NO_SPACE),
    ],
)
def test_a_build_that_does_not_fit(manifest: Manifest, more: dict[str, Any], reason: Reason) -> None:
    with pytest.raises(Refusal) as refused:
        fit(manifest, **more)
    assert refused.value.reason is reason
    assert refused.value.detail


def test_a_gpu_that_does_not_tell_its_capability_is_noted_not_refused() -> None:
    assert fit(changed(compute_capability="8.7"), machine=with_gpu("8.7")) == ()
    (note,) = fit(changed(compute_capability="8.7"), machine=with_gpu(None))
    assert "not checked" in note


def test_what_is_already_here_needs_no_room() -> None:
    tight = Room(free=2_000_000, margin=1_000_000, quota=None, used=0, have=9_500_000)
    assert fit(room=tight) == ()
    here = Room(free=0, margin=1_000_000, quota=None, used=0, have=20_000_000)
    assert fit(room=here) == ()


def test_versions_are_ordered_by_their_numbers() -> None:
    assert version_key("1.9") < version_key("1.10")
    assert version_key("2025.2.0") == version_key("2025.2")
    assert version_key("1.18.0+cu12") == version_key("1.18")
    assert version_key("nonsense") == ()
