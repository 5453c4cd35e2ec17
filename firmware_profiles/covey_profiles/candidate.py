"""What the selection needs to know of a build: one target of one version, finished or not."""

from __future__ import annotations

from dataclasses import dataclass

from covey_contract.building import Accuracy, BuildReport, Latency
from covey_contract.manifest import Manifest


@dataclass(frozen=True)
class Candidate:
    """A build. `state` is that of the server's queue: "queued", "building", or how it ended (`Outcome`)."""

    id: int
    target: str
    state: str
    detail: str = ""  # why it is not built, a sentence
    waiting_for: str = ""  # set while nobody can build it
    size: int = 0  # bytes of all files
    accuracy: Accuracy | None = None
    latency: Latency | None = None  # names the machine it was measured on
    runtime_min: str | None = None
    runtime_exact: str | None = None
    architecture: str | None = None
    compute_capability: str | None = None
    memory_mb: float | None = None

    @classmethod
    def of(
        cls,
        build_id: int,
        target: str,
        state: str,
        *,
        report: BuildReport | None = None,
        manifest: Manifest | None = None,
        waiting_for: str = "",
    ) -> Candidate:
        """From what the server keeps of a build; `report` and `manifest` are there once it is finished."""
        return cls(
            id=build_id,
            target=target,
            state=state,
            detail=report.reason if report is not None else "",
            waiting_for=waiting_for,
            size=manifest.size if manifest is not None else report.size if report is not None else 0,
            accuracy=report.accuracy if report is not None else None,
            latency=report.latency if report is not None else None,
            runtime_min=manifest.runtime_min if manifest is not None else None,
            runtime_exact=manifest.runtime_exact if manifest is not None else None,
            architecture=manifest.architecture if manifest is not None else None,
            compute_capability=manifest.compute_capability if manifest is not None else None,
            memory_mb=manifest.memory_mb if manifest is not None else None,
        )
