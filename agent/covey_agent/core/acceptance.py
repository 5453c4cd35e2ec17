"""Whether a device follows an order: all conditions of signing.md that concern it, as pure functions over plain values.

In two steps. `authenticate` says whether the order is one at all: signed, for this device, new, in time; what fails here changes
nothing on the device. `examine` says whether the build fits the device. A refusal is a `Refusal` with its reason and a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from covey_contract.envelope import Envelope
from covey_contract.errors import ContractError, SignatureError
from covey_contract.facts import Facts
from covey_contract.manifest import MANIFEST_TYPE, Manifest, build_digest
from covey_contract.messages import ASSIGNMENT_TYPE, Assignment
from covey_contract.reasons import Reason
from covey_contract.signing import Trust, open_envelope, verify
from covey_contract.wire import decode


class Refusal(Exception):
    """The order is not followed. `order` is the verified assignment, if it came that far."""

    def __init__(self, reason: Reason, detail: str, order: Assignment | None = None) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.order = order


@dataclass(frozen=True, slots=True)
class Room:
    """What the device can hold. Bytes."""

    free: int  # on the disk
    margin: int  # of it, never to be used
    quota: int | None  # for all builds; None: no limit but the disk's
    used: int  # of the quota
    have: int = 0  # of this build's bytes, what is already here


@dataclass(frozen=True, slots=True)
class Machine:
    """What a build is checked against. `facts` may be simulated; `runtimes` (name -> version) are truly installed here."""

    facts: Facts
    runtimes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Vouched:
    """What the repository of releases says of a build, by way of its delegations."""

    length: int
    sha256: str
    fields: Mapping[str, str | int]  # `release`: the counter; the rest as in the manifest
    director: tuple[bytes, ...] = ()  # the keys that may sign orders, by the newest root
    time_ms: int = 0  # it is not earlier than this

    @property
    def release(self) -> int:
        value = self.fields.get("release", 0)
        return value if isinstance(value, int) else 0


@dataclass(frozen=True, slots=True)
class Fit:
    """The build fits. `notes` say what could not be checked, and why."""

    manifest: Manifest
    manifest_bytes: bytes
    notes: tuple[str, ...] = ()


def authenticate(envelope: Envelope, *, trust: Trust, device: str, counter: int, now_ms: int) -> Assignment:
    """The assignment, if it is the director's, for this device, newer than `counter` and not expired; else raises `Refusal`."""
    try:
        order = open_envelope(Assignment, envelope, ASSIGNMENT_TYPE, trust.director)
    except SignatureError as error:
        raise Refusal(Reason.BAD_SIGNATURE, str(error)) from error
    except ContractError as error:
        raise Refusal(Reason.BAD_MESSAGE, str(error)) from error
    if order.device != device:
        raise Refusal(Reason.WRONG_DEVICE, f"the order is for {order.device!r}; this is {device!r}", order)
    if order.counter <= counter:
        raise Refusal(
            Reason.OLD_COUNTER, f"the order has counter {order.counter}; this device has followed {counter}", order
        )
    check_expiry(order, now_ms)
    return order


def check_expiry(order: Assignment, now_ms: int) -> None:
    if now_ms >= order.expires_ms:
        raise Refusal(Reason.EXPIRED, f"the order expired {(now_ms - order.expires_ms) / 1000:.0f} s ago", order)


def open_manifest(order: Assignment, envelope: Envelope, trust: Trust) -> tuple[Manifest, bytes]:
    """The build's manifest, if a release key signed it and it is the one that the order names; else raises `Refusal`."""
    try:
        payload = verify(envelope, MANIFEST_TYPE, trust.release)
    except SignatureError as error:
        raise Refusal(Reason.BAD_SIGNATURE, f"manifest: {error}", order) from error
    if (digest := build_digest(payload)) != order.build:
        raise Refusal(
            Reason.WRONG_MANIFEST, f"the order names build {order.build[:12]}; the manifest is {digest[:12]}", order
        )
    try:
        manifest = decode(Manifest, payload)
    except ContractError as error:
        raise Refusal(Reason.BAD_MESSAGE, str(error), order) from error
    if (manifest.model, manifest.version) != (order.model, order.version):
        raise Refusal(
            Reason.WRONG_MANIFEST,
            f"the order is for {order.model} {order.version}; the manifest for {manifest.model} {manifest.version}",
            order,
        )
    return manifest, payload


def examine(order: Assignment, envelope: Envelope, *, trust: Trust, machine: Machine, room: Room, now_ms: int) -> Fit:
    """Whether the build may and can run here; raises `Refusal` with the first condition that does not hold."""
    check_expiry(order, now_ms)
    manifest, payload = open_manifest(order, envelope, trust)
    notes = check_hardware(manifest, machine.facts)
    check_runtime(manifest, machine)
    check_memory(manifest, machine.facts)
    check_room(manifest, room)
    return Fit(manifest, payload, notes)


def release_path(manifest: Manifest) -> str:
    """Where a build stands in the repository of releases."""
    return f"models/{manifest.model}/{manifest.version}/{manifest.target}"


def check_release(fit: Fit, vouched: Vouched, *, floor: int, retained: bool) -> None:
    """Whether the repository has released this very build, with these fields, and none that is older than what ran here.

    `retained`: it is the build before, still here and good: going back to it is no downgrade that needs a new release."""
    digest = build_digest(fit.manifest_bytes)
    if (vouched.sha256, vouched.length) != (digest, len(fit.manifest_bytes)):
        raise Refusal(
            Reason.NOT_RELEASED,
            f"{release_path(fit.manifest)} is released as build {vouched.sha256[:12]}; the order names {digest[:12]}",
        )
    manifest = fit.manifest
    named = {
        "runtime": str(manifest.runtime),
        "precision": manifest.precision,
        "architecture": manifest.architecture,
        "compute_capability": manifest.compute_capability,
    }
    for name, value in named.items():
        if vouched.fields.get(name) != value:
            raise Refusal(
                Reason.NOT_RELEASED,
                f"{name} is {value!r} in the manifest and {vouched.fields.get(name)!r} in the release",
            )
    if vouched.release < 1:
        raise Refusal(Reason.NOT_RELEASED, "the release has no counter")
    if vouched.release < floor and not retained:
        raise Refusal(Reason.OLD_RELEASE, f"the release has counter {vouched.release}; {floor} has run on this device")


def check_hardware(manifest: Manifest, facts: Facts) -> tuple[str, ...]:
    """Architecture and compute capability. Returns what could not be checked."""
    if manifest.architecture not in (None, facts.architecture):
        raise Refusal(
            Reason.WRONG_HARDWARE, f"the build is for {manifest.architecture}; this device is {facts.architecture}"
        )
    if manifest.compute_capability is None:
        return ()
    gpus = [accelerator for accelerator in facts.accelerators if accelerator.vendor == "nvidia"]
    known = sorted({gpu.compute_capability for gpu in gpus if gpu.compute_capability})
    if manifest.compute_capability in known:
        return ()
    if gpus and not known:
        # The engine's own loader refuses a wrong GPU, so that a device that cannot name its own is not shut out.
        return ("compute capability not checked: this device's GPU does not tell it",)
    raise Refusal(
        Reason.WRONG_HARDWARE,
        f"the build is for compute capability {manifest.compute_capability}; this device has {', '.join(known) or 'no NVIDIA GPU'}",
    )


def check_runtime(manifest: Manifest, machine: Machine) -> None:
    name = str(manifest.runtime)
    reported = {runtime.name for runtime in machine.facts.runtimes}
    version = machine.runtimes.get(name)
    if version is None or name not in reported:
        have = ", ".join(sorted(reported & set(machine.runtimes))) or "none"
        raise Refusal(Reason.NO_RUNTIME, f"the build needs {name}, which is not installed (there is: {have})")
    if manifest.runtime_exact is not None and version != manifest.runtime_exact:
        raise Refusal(Reason.NO_RUNTIME, f"the build needs {name} {manifest.runtime_exact} exactly; this is {version}")
    if manifest.runtime_min is not None and version_key(version) < version_key(manifest.runtime_min):
        raise Refusal(Reason.NO_RUNTIME, f"the build needs {name} {manifest.runtime_min} or newer; this is {version}")


def check_memory(manifest: Manifest, facts: Facts) -> None:
    if manifest.memory_mb and facts.memory_mb and manifest.memory_mb > facts.memory_mb:
        raise Refusal(
            Reason.NO_MEMORY,
            f"the build needs {manifest.memory_mb:.0f} MB; this device has {facts.memory_mb} MB in all",
        )


def check_room(manifest: Manifest, room: Room) -> None:
    """Raises `Refusal` if quota or disk cannot take what is missing of the build and still leave the margin."""
    needed = max(0, manifest.size + manifest.table.size - room.have)
    if room.quota is not None and room.used + needed > room.quota:
        raise Refusal(
            Reason.NO_SPACE,
            f"needs {needed / 1e6:.1f} MB more; {room.used / 1e6:.1f} of the quota's {room.quota / 1e6:.1f} MB are used",
        )
    if needed and room.free < needed + room.margin:
        raise Refusal(
            Reason.NO_SPACE,
            f"needs {needed / 1e6:.1f} MB and a margin of {room.margin / 1e6:.1f} MB; {room.free / 1e6:.1f} MB are free",
        )


def version_key(version: str) -> tuple[int, ...]:
    """Enough of a version to order releases by: its leading numbers.

    >>> version_key("1.18.0+cu12") < version_key("1.20")
    True
    """
    numbers = re.match(r"\d+(?:\.\d+)*", version)
    key = [int(part) for part in numbers[0].split(".")] if numbers else [0]
    while key and key[-1] == 0:
        key.pop()
    return tuple(key)
