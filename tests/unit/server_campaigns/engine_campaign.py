"""A campaign for tests of the engine's decisions, and what they read off them."""

from __future__ import annotations

from dataclasses import replace

from covey_server.core.engine import CampaignState, Decision, Observed, Progress, StageCounts, Wait
from covey_server.core.gates import Verdict
from covey_server.core.spec import parse_spec

FILE = """
name: c
model: m
version: "2"
stages:
  - {name: canary, group: canary, soak: 10s}
  - {name: rest, percent: 100}
min_reached: 0.5
on_breach: rollback
"""
SPEC = parse_spec(FILE)
RUNNING = Progress(SPEC, CampaignState.RUNNING, stage=0, stage_started=True)
PLANNED = replace(RUNNING, state=CampaignState.PLANNED, stage_started=False, author="ann")


def observed(canary: StageCounts, rest: StageCounts | None = None, *verdicts: Verdict, settled: int = 0) -> Observed:
    return Observed((canary, rest or StageCounts(planned=4)), verdicts, settled)


def waits(decisions: list[Decision]) -> str:
    assert isinstance(decisions[-1], Wait)
    return decisions[-1].why


def with_file(campaign: Progress, *changes: tuple[str, str]) -> Progress:
    """The same with another campaign file: `changes` are what is replaced by what, or lines to be added."""
    text = FILE
    for old, new in changes:
        text = text.replace(old, new) if old else f"{text}{new}\n"
    return replace(campaign, spec=parse_spec(text))
