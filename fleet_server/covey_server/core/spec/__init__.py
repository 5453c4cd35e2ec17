"""The campaign file: its grammar as strict structs, and the reader that names line and field of what is wrong."""

from __future__ import annotations

from covey_server.core.spec.campaign import (
    MAX_STAGES,
    CampaignSpec,
    Objective,
    OnBreach,
    ProbationSpec,
    Stage,
    Target,
    parse_spec,
    read_spec,
    spec_from_json,
    spec_to_json,
)
from covey_server.core.spec.gates import ErrorGate, Gates, InstallGate, LatencyGate, Measure
from covey_server.core.spec.values import MAX_DURATION_MS, Duration, parse_duration

__all__ = [
    "MAX_DURATION_MS",
    "MAX_STAGES",
    "CampaignSpec",
    "Duration",
    "ErrorGate",
    "Gates",
    "InstallGate",
    "LatencyGate",
    "Measure",
    "Objective",
    "OnBreach",
    "ProbationSpec",
    "Stage",
    "Target",
    "parse_duration",
    "parse_spec",
    "read_spec",
    "spec_from_json",
    "spec_to_json",
]
