"""The build worker: leases a job, builds it in a process of its own, uploads what came out, says it is finished.

The server may restart and the network may go: the worker waits and goes on. A lease that was lost ends the build at once, because
another worker has the job. When told to stop it kills the build in hand and leaves the lease to run out.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from covey_contract.building import (
    MANIFEST_FILE,
    PROVENANCE_FILE,
    BuildJob,
    BuildReport,
    LeaseRequest,
    Outcome,
    SourceFile,
)
from covey_converters import metrics
from covey_converters.errors import ConvertError, ServerError, UnsupportedError
from covey_converters.folder import file_entry, read_manifest
from covey_converters.isolation import build_isolated
from covey_converters.jobs import Jobs, StoppedError
from covey_converters.spec import BuildSpec, Limits

LEASE_SECONDS = 30
_IDLE_S = 1.0
# Downloaded sources and cleaned-up graphs are kept for the next target of the same model, up to this much.
_CACHE_BYTES = 4 << 30

Say = Callable[[str], None]


@dataclass(frozen=True)
class Worker:
    """`name` tells workers apart in the server's views; `work` is a folder for downloads and scratch files."""

    jobs: Jobs
    name: str
    targets: tuple[str, ...]
    work: Path
    limits: Limits
    stop: threading.Event
    say: Say
    metrics: tuple[str, ...] = ()  # functions module:function of this machine that a job may be judged by

    def run(self, *, once: bool = False) -> int:
        """Work until stopped, or with `once` until one job is done or there is none. The number of jobs done."""
        done = 0
        request = LeaseRequest(worker=self.name, targets=self.targets, seconds=LEASE_SECONDS)
        while not self.stop.is_set():
            try:
                job = self.jobs.lease(request)
            except StoppedError:
                break
            if job is not None:
                self._do(job)
                done += 1
            if once:
                break
            if job is None:
                self.stop.wait(_IDLE_S)
        return done

    def _do(self, job: BuildJob) -> None:
        label = f"{job.model} {job.version} {job.target}"
        self.say(f"{label}: leased")
        lost = threading.Event()
        folder = self.work / f"job-{job.id}"
        try:
            with self._renewing(job, lost):
                report = self._build(job, folder, lost)
                if self.stop.is_set() or lost.is_set():
                    return
                manifest = self._upload(job, folder) if report.outcome is Outcome.BUILT else None
                self.jobs.finish(job, report, manifest)
            self.say(f"{label}: {report.outcome.value}{f' ({report.reason})' if report.reason else ''}")
        except StoppedError:
            return
        except ConvertError as error:
            self.say(f"{label}: given up: {error}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            self._trim()

    def _build(self, job: BuildJob, folder: Path, lost: threading.Event) -> BuildReport:
        try:
            spec = BuildSpec(
                model=job.model,
                version=job.version,
                target=job.target,
                source=str(self._local(job.source)),
                out=str(folder),
                work=str(self.work / "scratch"),
                calibration=self._optional(job.calibration),
                evaluation=self._optional(job.evaluation),
                labels=self._optional(job.labels),
                budget=job.budget,
                metric=self._metric(job.metric),
                max_batch=job.max_batch,
                metadata=job.metadata,
            )
            return build_isolated(
                spec,
                self.limits,
                lambda step: self.say(f"{job.target}: {step}"),
                lambda: self.stop.is_set() or lost.is_set(),
            )
        except ServerError:
            raise
        except UnsupportedError as error:
            return BuildReport(target=job.target, outcome=Outcome.UNSUPPORTED, reason=str(error))
        except (ConvertError, OSError) as error:
            # This machine's trouble, a full disk for one; the server decides whether the job is tried again.
            return BuildReport(target=job.target, outcome=Outcome.FAILED, reason=f"the worker: {error}")

    def _metric(self, text: str) -> str:
        """Who may push a version must not choose which code of this machine is run: its functions are named when it starts."""
        declared = metrics.parse(text) if text else None
        if declared is not None and declared.kind == metrics.CUSTOM and text.strip() not in self.metrics:
            raise UnsupportedError(f"metric {text} is not one of this builder's (covey-convert worker --metric {text})")
        return text

    def _optional(self, file: SourceFile | None) -> str | None:
        return None if file is None else str(self._local(file))

    def _local(self, file: SourceFile) -> Path:
        """Its name is kept, because the kind of a source is told by it; its folder is its digest."""
        name = Path(file.filename).name
        path = self.work / "blobs" / file.sha256 / (name if name not in {"", ".", ".."} else "file")
        self.jobs.download(file, path)
        return path

    def _upload(self, job: BuildJob, folder: Path) -> bytes:
        manifest = read_manifest(folder)
        for entry in manifest.wire_files():
            self.jobs.upload(job, entry, folder / entry.path)
        if manifest.provenance_sha256 is not None:
            # Not one of the build's files: it stays with the server, which serves it beside the build.
            self.jobs.upload(job, file_entry(folder, PROVENANCE_FILE), folder / PROVENANCE_FILE)
        return (folder / MANIFEST_FILE).read_bytes()

    @contextmanager
    def _renewing(self, job: BuildJob, lost: threading.Event) -> Iterator[None]:
        """Renew the lease in a thread for as long as the job is in hand; `lost` is set when the server says it is gone."""
        over = threading.Event()

        def renew() -> None:
            while not over.wait(LEASE_SECONDS / 3):
                try:
                    # A server that stays away for too long says so itself when it is back: the lease is lost then.
                    self.jobs.renew(job, LEASE_SECONDS)
                except ConvertError as error:
                    self.say(str(error))
                    lost.set()
                    return

        thread = threading.Thread(target=renew, name=f"renew-{job.id}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _trim(self) -> None:
        cached = sum(path.stat().st_size for path in self.work.rglob("*") if path.is_file())
        if cached > _CACHE_BYTES:
            for name in ("blobs", "scratch"):
                shutil.rmtree(self.work / name, ignore_errors=True)
