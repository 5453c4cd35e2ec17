"""A build as a folder: the manifest's files, `manifest.json` with the exact bytes to be signed, `blocks.bin`, `report.json`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from covey_contract.building import MANIFEST_FILE, PROVENANCE_FILE, REPORT_FILE, TABLE_FILE, BuildReport
from covey_contract.drift import Reference
from covey_contract.errors import DecodeError
from covey_contract.manifest import BLOCK_BYTES, FileEntry, Manifest, Tolerance, build_digest, check_target
from covey_contract.wire import Message, decode, encode
from covey_converters.backend import Built
from covey_converters.errors import BadInputError
from covey_converters.golden import GOLDEN_FILE
from covey_converters.spec import BuildSpec

LABELS_FILE = "labels.txt"

M = TypeVar("M", bound=Message)


def block_table(paths: list[Path], block_size: int = BLOCK_BYTES) -> bytes:
    """The digests of all blocks, 32 bytes each, in the order of the files."""
    digests: list[bytes] = []
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(block_size):
                digests.append(hashlib.sha256(block).digest())
    return b"".join(digests)


def file_entry(folder: Path, name: str) -> FileEntry:
    path = folder / name
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(path=name, size=path.stat().st_size, sha256=digest)


def write_manifest(
    folder: Path,
    spec: BuildSpec,
    built: Built,
    tolerances: dict[str, Tolerance],
    memory_mb: float | None,
    provenance: Callable[[tuple[FileEntry, ...]], str] | None = None,
    reference: Reference | None = None,
) -> Manifest:
    """Write block table and manifest beside the files that lie in `folder` already. `provenance` writes the statement about them, and
    gives its SHA-256."""
    runtime, precision = check_target(spec.target)
    names = [*built.files, GOLDEN_FILE, *([LABELS_FILE] if (folder / LABELS_FILE).exists() else [])]
    (folder / TABLE_FILE).write_bytes(block_table([folder / name for name in names]))
    files = tuple(file_entry(folder, name) for name in names)
    manifest = Manifest(
        model=spec.model,
        version=spec.version,
        target=spec.target,
        runtime=runtime,
        precision=precision,
        entry=built.entry,
        files=files,
        table=file_entry(folder, TABLE_FILE),
        inputs=built.inputs,
        outputs=built.outputs,
        runtime_min=built.runtime_min,
        runtime_exact=built.runtime_exact,
        architecture=built.architecture,
        compute_capability=built.compute_capability,
        options=built.options,
        golden=GOLDEN_FILE,
        tolerance=tolerances,
        labels=LABELS_FILE if LABELS_FILE in names else None,
        metadata=spec.metadata,
        max_batch=built.max_batch,
        memory_mb=memory_mb,
        provenance_sha256=provenance(files) if provenance else None,
        reference=reference,
    )
    (folder / MANIFEST_FILE).write_bytes(encode(manifest))
    return manifest


def write_report(folder: Path, report: BuildReport) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REPORT_FILE).write_bytes(encode(report))


def read_report(folder: Path) -> BuildReport:
    """Raises `BadInputError` if there is none, or it is broken."""
    return decode_file(BuildReport, folder / REPORT_FILE)


def read_manifest(folder: Path) -> Manifest:
    return decode_file(Manifest, folder / MANIFEST_FILE)


def decode_file(kind: type[M], path: Path) -> M:
    """A message in a file; raises `BadInputError` with the file's name."""
    try:
        with path.open("rb") as file:
            return decode(kind, file.read(kind.MAX_BYTES + 1))
    except FileNotFoundError as error:
        raise BadInputError(f"{path}: no such file") from error
    except DecodeError as error:
        raise BadInputError(f"{path}: {error}") from error


def built_from(folder: Path, manifest: Manifest) -> Built:
    """A finished build, to be loaded again."""
    return Built(
        folder=folder,
        files=tuple(file.path for file in manifest.files),
        entry=manifest.entry,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        options=dict(manifest.options),
        max_batch=manifest.max_batch,
    )


def problems(folder: Path) -> list[str]:
    """What is wrong with the files of a build, compared with its manifest; empty if nothing is."""
    manifest = read_manifest(folder)
    found: list[str] = []
    for entry in manifest.wire_files():
        path = folder / entry.path
        if not path.is_file():
            found.append(f"{entry.path} is missing")
        elif path.stat().st_size != entry.size:
            found.append(f"{entry.path} has {path.stat().st_size} bytes; the manifest says {entry.size}")
        elif file_entry(folder, entry.path).sha256 != entry.sha256:
            found.append(f"{entry.path} does not have the digest that the manifest says")
    if manifest.provenance_sha256 is not None:
        statement = folder / PROVENANCE_FILE
        if not statement.is_file():
            found.append(f"{PROVENANCE_FILE} is missing")
        elif file_entry(folder, PROVENANCE_FILE).sha256 != manifest.provenance_sha256:
            found.append(f"{PROVENANCE_FILE} does not have the digest that the manifest says")
    if not found:
        paths = [folder / entry.path for entry in manifest.files]
        if block_table(paths, manifest.block_size) != (folder / manifest.table.path).read_bytes():
            found.append("the block table is not that of the files")
    return found


def digest_of(folder: Path) -> str:
    """The name of the build."""
    return build_digest((folder / MANIFEST_FILE).read_bytes())
