"""Devices that were lost after their swap: silent, crashed, or gone back by themselves."""

from __future__ import annotations

from covey_server.core.gates.evidence import StageEvidence
from covey_server.core.gates.shares import judge_share
from covey_server.core.gates.verdict import Verdict
from covey_server.core.gates.weighing import Weighing, choose
from covey_server.core.spec.gates import SilenceGate


def judge_silence(gate: SilenceGate, evidence: StageEvidence, weighing: Weighing | None = None) -> Verdict:
    weighing = weighing or Weighing()
    choice = choose(gate.method, evidence, weighing.settings)
    return judge_share(
        "silence", evidence, lambda device: device.lost is not None, "were lost", gate.max_share, choice, weighing
    )
