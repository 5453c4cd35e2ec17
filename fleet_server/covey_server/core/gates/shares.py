"""Gates on shares of devices: those that are bad in some way, by a limit or by the evidence that canaries are more often.

The evidence is from the draw alone (`covey_server.core.eprocess.labels`): it needs no idea of how often devices are bad anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from covey_server.core.eprocess import labels
from covey_server.core.gates.evidence import DeviceEvidence, StageEvidence
from covey_server.core.gates.verdict import Status, Verdict, rounded
from covey_server.core.gates.weighing import (
    WORST_SHOWN,
    Choice,
    Weighing,
    e_value_words,
    evidence_figures,
)
from covey_server.core.spec.gates import Evidence


def judge_share(
    gate: str,
    evidence: StageEvidence,
    bad: Callable[[DeviceEvidence], bool | None],
    what: str,
    max_share: float,
    choice: Choice,
    weighing: Weighing,
    *,
    least_requests: int = 0,
) -> Verdict:
    """Devices that are bad in some way, of which no build at all should have more than `max_share`. By threshold, that is the
    limit (in a small canary, any one is too many); by e-process, there must be evidence from the draw that they are more among
    canaries, and the limit is not needed."""
    judged = {device.device: is_bad for device in evidence.swapped if (is_bad := bad(device)) is not None}
    requests = sum(device.is_now.requests for device in evidence.swapped if device.after)
    count, share = sum(judged.values()), sum(judged.values()) / len(judged) if judged else 0.0
    figures: dict[str, Any] = {
        "devices": len(judged),
        "devices_bad": count,
        "share": rounded(share),
        "requests": requests,
        "threshold": {"max_share": max_share},
        "bad": sorted(name for name, is_bad in judged.items() if is_bad)[:WORST_SHOWN],
    }
    reasons = _missing(evidence, len(judged), requests, least_requests, weighing.settings)
    words = f"{count} of {len(judged)} devices {what}"
    if choice.kind == "threshold":
        figures["why"] = choice.why
        breached = count > math.floor(max_share * len(judged)) and count > 0
        status: Status = "breached" if breached else "no_evidence" if reasons else "passing"
        told = f"{words} (limit {max_share:.0%})" if status != "no_evidence" else f"{'; '.join(reasons)} ({words})"
        return Verdict(gate, status, told, figures)
    tables, control, control_bad = _tables(evidence, bad)
    log_e = labels.log_e_value(tables)
    if control < weighing.settings.min_controls:
        reasons.append(f"{control} of {weighing.settings.min_controls} control devices")
    figures |= {
        "controls": control,
        "controls_bad": control_bad,
        "evidence": evidence_figures(log_e, weighing.alpha, "the draw of the canaries within their kinds"),
        "missing": reasons,
    }
    breached = log_e >= weighing.boundary and share > 0
    status = "breached" if breached else "no_evidence" if reasons else "passing"
    told = f"{words}, {control_bad} of {control} of the control; evidence {e_value_words(log_e)} of {1 / weighing.alpha:.3g}"
    return Verdict(
        gate, status, told if status != "no_evidence" else f"{'; '.join(reasons)} ({told})", figures, "e_process"
    )


def _tables(
    evidence: StageEvidence, bad: Callable[[DeviceEvidence], bool | None]
) -> tuple[dict[str, labels.Table], int, int]:
    tables: dict[str, list[int]] = {}
    for column, devices in ((0, evidence.swapped), (2, evidence.controls)):
        for device in devices:
            is_bad = bad(device)
            if is_bad is not None:
                row = tables.setdefault(device.kind, [0, 0, 0, 0])
                row[column] += is_bad
                row[column + 1] += 1
    control = sum(row[3] for row in tables.values())
    bad_control = sum(row[2] for row in tables.values())
    return {kind: (row[0], row[1], row[2], row[3]) for kind, row in tables.items()}, control, bad_control


def _missing(evidence: StageEvidence, judged: int, requests: int, least_requests: int, settings: Evidence) -> list[str]:
    reasons = []
    if evidence.loading:
        reasons.append(f"the telemetry of {evidence.loading} devices still to be read")
    wanted = max(settings.min_devices, 1 if evidence.canaries else 0)
    if judged < wanted:
        reasons.append(f"{judged} of {wanted} devices to judge by")
    least = max(least_requests, settings.min_requests)
    if requests < least:
        reasons.append(f"{requests} of {least} requests")
    return reasons
