"""Build jobs and what came of them: between the server, which queues them, and the workers, which lease them over the API.

A worker leaves a build as a folder: the files of the manifest, `manifest.json` (the exact bytes to be signed), `blocks.bin` (the
block table), `report.json` (a `BuildReport`) and `provenance.json` (an in-toto Statement, which no device downloads).
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from covey_contract.manifest import Batch, ModelName, Sha256, VersionName
from covey_contract.messages import Millis, ShortText
from covey_contract.strenum import StrEnum
from covey_contract.wire import Message

MANIFEST_FILE = "manifest.json"
TABLE_FILE = "blocks.bin"
REPORT_FILE = "report.json"
PROVENANCE_FILE = "provenance.json"
# The key of a version's metadata that names the metric its builds are judged by.
METRIC_KEY = "metric"
# The key of a version's metadata that says how many waiting requests its builds should compute at once.
MAX_BATCH_KEY = "max_batch"
PROVENANCE_MAX_BYTES = 256 * 1024


class Outcome(StrEnum):
    """BUILT: passed its gates. CHECKED: the graph is fit for this target, seen by building it; what was built could not be run
    here and is not released. REFUSED: was built, but is over a budget. UNSUPPORTED: this model cannot become this target.
    FAILED: the toolchain crashed, ran out of time or memory."""

    BUILT = "built"
    CHECKED = "checked"
    REFUSED = "refused"
    UNSUPPORTED = "unsupported"
    FAILED = "failed"


class OutputParity(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One output of the build against the source's, over the evaluation inputs."""

    max_error: float
    mean_error: float
    cosine: float
    top1_agreement: float | None = None
    decisions: float | None = None  # F1 of elements above one half, where each is a probability of its own
    column_error: float | None = None  # of the worst column, relative to the column's own range
    column: tuple[int, int] | None = None  # that column: axis of the output's shape, number on it


class Accuracy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The task's metric for source and build on the same held-out samples, higher being better. `drop` = source - build."""

    metric: str
    source: float
    build: float
    samples: int
    budget: float
    figures: dict[str, tuple[float, float]] = {}  # further figures by name: of the source, of the build

    @property
    def drop(self) -> float:
        return self.source - self.build


class Latency(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Measured on one machine with one thread; never to be compared with another machine's."""

    p50_ms: float
    p99_ms: float
    load_ms: float
    first_ms: float  # the first inference after loading
    cpu_ms: float | None = None  # processor time of an inference, the mean: neighbours hardly stretch it
    peak_rss_mb: float
    machine: str  # CPU model, cores; "simulated" never appears here, since this is measured
    profile: str | None = None  # the firmware profile of that machine, if it is known


class Try(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One recipe that was tried, in order."""

    recipe: str
    outcome: Outcome
    detail: str = ""
    seconds: float = 0.0
    figures: dict[str, float] = {}  # what was found out about it: bytes, drop of the metric, cosine, worst column


class BuildReport(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that was found out while building one target."""

    MAX_BYTES = 256 * 1024

    target: str
    outcome: Outcome
    reason: str = ""  # one sentence: why it was refused or failed, with the figure; or what a check found
    size: int = 0
    source_size: int = 0
    seconds: float = 0.0
    recipe: str = ""
    tries: tuple[Try, ...] = ()
    parity: dict[str, OutputParity] = {}
    accuracy: Accuracy | None = None
    latency: Latency | None = None
    source_latency: Latency | None = None  # the source in ONNX Runtime FP32, same machine, same run
    toolchain: dict[str, str] = {}  # package -> version
    notes: tuple[str, ...] = ()
    log_tail: str = ""


class SourceFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A file that the worker downloads from `GET /api/v1/blobs/SHA256`."""

    filename: str
    size: int
    sha256: Sha256


class BuildJob(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A leased job. The worker renews the lease while it works; when it expires, another worker may take the job."""

    id: int
    lease: ShortText
    lease_expires_ms: Millis
    model: ModelName
    version: VersionName
    target: str
    source: SourceFile
    calibration: SourceFile | None = None  # .npz: one array per input name, samples first
    evaluation: SourceFile | None = None  # .npz: as above, plus "labels" where there are
    labels: SourceFile | None = None  # .txt: one name per class
    budget: float = 0.01  # highest absolute drop of the metric
    metric: str = ""  # which one: a kind or a Python entry point; empty: what the evaluation says, or its labels
    max_batch: Batch = 1  # rows of several requests that the build should take at once
    metadata: dict[str, str] = {}


class LeaseRequest(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Body of `POST /api/v1/jobs/lease`: what this worker can build. Targets may end in `*`."""

    worker: ShortText
    targets: tuple[str, ...]
    seconds: Annotated[int, msgspec.Meta(ge=5, le=3600)] = 60
