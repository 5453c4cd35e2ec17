"""What must hold on a device's disk, whatever happened to it. Each function gives what does not, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from covey_agent.durable import TEMPORARY
from covey_agent.store import CorruptError, digest_of
from covey_contract.lifecycle import State
from covey_contract.manifest import build_digest
from covey_contract.messages import Hello, Report
from covey_contract.topics import Up
from covey_contract.wire import decode
from covey_hil.faults.device import MODEL, SPOOL_LIMIT, Device
from covey_hil.faults.journal import Added, Adding, Entry, Lost, Sent, Served, Settled, Trouble, Written
from covey_hil.faults.operations import Operation


def at_start(device: Device, operation: Operation, least: Written) -> Iterator[str]:
    """Just started again: what is active is old or new, and whole; nothing that was written is forgotten."""
    state = device.book.state
    if state.generation < least.generation or state.counter < least.counter:
        yield f"the book went back: {state.generation}, counter {state.counter} after {least}"
    if device.record.active not in operation.active:
        yield f"active is {_short(device.record.active)}"
    for build in (device.record.active, device.record.previous):
        if build is not None:
            yield from _whole(device, build)
    yield from operation.holds(device)


def at_end(device: Device, operation: Operation) -> Iterator[str]:
    """All is done: the disk holds what it should, and nothing else."""
    record, expected = device.record, operation.end.digest if operation.end is not None else None
    if record.active != expected:
        yield f"active is {_short(record.active)}"
    if device.serving_build != expected:
        yield f"{_short(device.serving_build)} serves"
    deployment = record.deployment
    if deployment is not None and (deployment.state, deployment.reason) != (operation.state, operation.reason):
        yield f"it ended {deployment.state} ({deployment.reason} {deployment.detail})"
    if record.broken:
        yield f"wrongly counted as broken: {record.broken}"
    yield from operation.ends(device)
    yield from _tidy(device)


def _tidy(device: Device) -> Iterator[str]:
    """Blobs have the digests of their names; no half-made file, no build and no blob that nobody needs."""
    record = device.record
    kept = {build for build in (record.active, record.previous) if build is not None}
    for build in kept:
        yield from _whole(device, build)
    found = {path.name for path in (device.folder / "builds").iterdir()}
    if not kept <= found:
        yield f"builds on disk: {sorted(map(_short, found))}"
    manifests = [device.store.manifest(build) for build in kept]
    needed = {entry.sha256 for manifest in manifests if manifest is not None for entry in manifest.files}
    for blob in (device.folder / "blobs").iterdir():
        if blob.name in needed and digest_of(blob) != blob.name:
            yield f"blob {_short(blob.name)} is damaged"
    yield from (f"left behind: {path.relative_to(device.folder)}" for path in _halves(device.folder))


def nothing_left(device: Device) -> Iterator[str]:
    """After a further install, and the collection that comes with it."""
    record = device.record
    kept = {build for build in (record.active, record.previous) if build is not None}
    found = {path.name for path in (device.folder / "builds").iterdir()}
    if found != kept:
        yield f"builds on disk: {sorted(map(_short, found))}, not {sorted(map(_short, kept))}"
    manifests = [device.store.manifest(build) for build in kept]
    needed = {entry.sha256 for manifest in manifests if manifest is not None for entry in manifest.files}
    if (blobs := {path.name for path in (device.folder / "blobs").iterdir()}) != needed:
        yield f"{len(blobs - needed)} blobs too many, {len(needed - blobs)} missing"
    for folder in ("fetch", "asks"):
        left = [path.name for path in (device.folder / folder).iterdir() if not path.name.endswith(".answer")]
        yield from (f"left in {folder}: {name}" for name in left)
    orders = {path.name for path in (device.folder / "orders").iterdir()}
    if len(orders) != 1:
        yield f"orders on disk: {sorted(orders)}"


def of_journal(entries: Sequence[Entry], operation: Operation) -> Iterator[str]:
    """What the server and the gateway saw, until the device was where it should be; records also of what came after that."""
    end = max((at for at, entry in enumerate(entries) if isinstance(entry, Settled)), default=len(entries))
    yield from _served(entries[:end], operation)
    yield from _believed(entries[:end], operation)
    yield from _counted(entries)


def _served(entries: Iterable[Entry], operation: Operation) -> Iterator[str]:
    """A build that may serve did, from the first to the last; but while a gateway that is new loads it."""
    before = False
    for entry in entries:
        if isinstance(entry, Lost):
            before = False
        elif isinstance(entry, Served):
            active = entry.models[MODEL].active if MODEL in entry.models else None
            if active not in operation.may_serve and (before or active is not None):
                yield f"{_short(active)} served"
            before = before or active is not None


def _believed(entries: Iterable[Entry], operation: Operation) -> Iterator[str]:
    """What the server holds for the model's state: by the newest hello, and the reports since."""
    state: State | None = None
    for entry in entries:
        if isinstance(entry, Sent) and entry.kind is Up.HELLO:
            state = next((model.state for model in decode(Hello, bytes(entry.body)).models), state)
        elif isinstance(entry, Sent) and entry.kind is Up.REPORT:
            state = decode(Report, bytes(entry.body)).state
    if state is not operation.state:
        yield f"the server believes that it is {state}"


def _counted(entries: Iterable[Entry]) -> Iterator[str]:
    """No record is lost that the disk had, none is counted twice, no number names two."""
    adding, added, sent, bodies = Counter[str](), Counter[str](), Counter[str](), dict[int, bytes]()
    kinds: dict[str, Up] = {}
    for entry in entries:
        if isinstance(entry, Trouble):
            yield entry.what
        elif isinstance(entry, Adding):
            adding[entry.key] += 1
            kinds[entry.key] = entry.kind
        elif isinstance(entry, Added):
            added[entry.key] += 1
        elif isinstance(entry, Sent) and entry.kind in (Up.REPORT, Up.TELEMETRY):
            body = bytes(entry.body)
            if entry.seq not in bodies:
                sent[entry.key] += 1
            elif bodies[entry.seq] != body:
                yield f"number {entry.seq} was used twice"
            bodies[entry.seq] = body
    yield from (f"record {key} was counted {times} times" for key, times in sent.items() if times > adding[key])
    lost = [key for key, times in added.items() if times > sent[key]]
    # A spool that was given more telemetry than it takes gives up the oldest.
    may_go = [key for key, kind in kinds.items() if kind is Up.TELEMETRY][:-SPOOL_LIMIT]
    if set(lost) - set(may_go):
        yield f"{len(lost)} records are lost"


def _whole(device: Device, build: str) -> Iterator[str]:
    """The build can be read, each byte of it."""
    folder = device.store.build(build)
    try:
        manifest_bytes = (folder / "manifest.json").read_bytes()
        manifest = device.store.verify(build)
    except (CorruptError, OSError) as error:
        yield f"build {_short(build)} is not whole: {error}"
        return
    if build_digest(manifest_bytes) != build:
        yield f"build {_short(build)} has another manifest"
    for entry in manifest.files:
        if digest_of(folder / entry.path) != entry.sha256:
            yield f"{entry.path} of build {_short(build)} is damaged"


def _halves(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(f".*{TEMPORARY}")]


def _short(digest: str | None) -> str:
    return (digest or "none")[:12]
