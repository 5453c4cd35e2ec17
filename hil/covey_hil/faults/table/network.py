"""Brokers that are gone, and what the network loses."""

from __future__ import annotations

from covey_hil.faults.table.case import AGENT, DEPLOY, Case

CASES: tuple[Case, ...] = (
    Case(
        "broker late, then gone",
        "no broker",
        "at a start",
        "the agent waits and goes on",
        f"{AGENT}test_a_broker_that_comes_late_and_goes_away",
    ),
    Case(
        "blocks cut short, changed, lost",
        "the network",
        "while a build is fetched",
        "dropped and asked for again",
        f"{AGENT}test_truncated_and_corrupt_blocks",
    ),
    Case(
        "records are not acknowledged",
        "the server is silent",
        "reports and telemetry come",
        "they are spooled and sent again; the server counts each once",
        f"{DEPLOY}test_reports_are_spooled_until_they_are_acknowledged",
    ),
)
