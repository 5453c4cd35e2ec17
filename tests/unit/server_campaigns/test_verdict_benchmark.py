"""The benchmark's own parts: its arrays are the contract's histograms, its counting is exact, and its seeds give the same again."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.verdicts import document, installs, plots, simulate
from benchmarks.verdicts.figures import summary, wilson
from benchmarks.verdicts.fleet import Fleet, Minute, Model
from benchmarks.verdicts.recording import Recording
from benchmarks.verdicts.rules import RULES
from benchmarks.verdicts.scenarios import Outcome
from covey_contract.histogram import Histogram, Recorder, merge

SMALL = dataclasses.replace(Model(), devices=40, site_size=8)


def test_the_same_seed_gives_the_same_minutes() -> None:
    first, again, other = (next(Fleet(seed, SMALL).minutes()) for seed in (3, 3, 4))
    assert np.array_equal(first.log2_latency, again.log2_latency)
    assert np.array_equal(first.failed, again.failed)
    assert not np.array_equal(first.requests, other.requests)


def test_recorded_figures_are_those_of_the_contracts_histograms() -> None:
    fleet = Fleet(5, SMALL)
    minutes = fleet.minutes()
    recording, kept = Recording(fleet.cut, np.arange(40)), [next(minutes) for _ in range(3)]
    for minute in kept:
        recording.add(minute)
    span = recording.span(1, 3)
    quantiles, bound = span.log_quantile(0.99), fleet.cut + 0.7
    above = span.above(bound)
    for device in range(40):
        histogram = _histogram(fleet, kept[1:], device)
        assert histogram.count == span.requests[device]
        # The contract also knows the largest value, and stays below it.
        assert math.exp(quantiles[device]) == pytest.approx(histogram.quantile(0.99), rel=0.03)
        assert above[device] == pytest.approx(histogram.count_above(math.exp(bound[device])), abs=1e-6)
    varied = recording.span(np.full(40, 1), np.full(40, 3))
    assert np.array_equal(varied.counts, span.counts)


def _histogram(fleet: Fleet, minutes: list[Minute], device: int) -> Histogram:
    found = []
    for minute in minutes:
        recorder = Recorder()
        latencies = minute.log2_latency[minute.device == device]
        for latency in latencies:
            recorder.record(float(2**latency))
        for _ in range(int(minute.requests[device]) - len(latencies)):
            recorder.record(math.exp(fleet.cut[device]) * 0.5)
        found.append(recorder.snapshot())
    return merge(found)


def test_the_shares_of_halted_installs_are_exact() -> None:
    """As the study found them; the rule that counts the whole group is the stricter."""
    found = installs.table()
    assert found["covey_e_process_whole_stage"]["0.01"] == pytest.approx(0.00017, abs=0.00005)
    assert found["covey_e_process"]["0.01"] == pytest.approx(0.0024, abs=0.0002)
    assert found["covey_e_process"]["0.05"] == pytest.approx(0.19, abs=0.01)
    assert found["covey_e_process"]["0.2"] == pytest.approx(0.989, abs=0.002)
    assert found["hawkbit_5pct_of_group"]["0.05"] == pytest.approx(0.46, abs=0.01)
    assert found["azure_5pct_and_10_failed"]["0.2"] == pytest.approx(0.56, abs=0.01)


def test_intervals_are_wilsons() -> None:
    assert wilson(0, 100) == pytest.approx((0.0, 0.037), abs=0.001)
    assert wilson(50, 100) == pytest.approx((0.404, 0.596), abs=0.001)
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_summary_counts_what_halted_in_time(tmp_path: Path) -> None:
    def outcome(name: str, canaries: int, minutes: int | None) -> Outcome:
        return Outcome(name, canaries, dict.fromkeys(RULES, minutes))

    outcomes = [
        *(outcome("unchanged", 50, None) for _ in range(9)),
        outcome("unchanged", 10, 70),
        outcome("whole_10pct", 50, 2),
        outcome("tail_10pct", 50, 11),
        outcome("one_kind_20pct", 50, 14),
        outcome("whole_20pct", 10, 15),
        outcome("errors_x10", 50, 6),
        outcome("crash_10pct", 50, 7),
    ]
    found = summary(outcomes, outcomes)
    assert found["false_halt_rate"]["rate"] == 0.1
    assert found["detected_10pct_whole"]["rate"] == 1.0
    assert found["detected_10pct_p99"]["rate"] == 0.0  # the tail was found too late
    assert found["detected_20pct_one_kind"]["rate"] == 1.0
    assert found["detected_errors_x10"]["rate"] == 0.0
    assert found["median_minutes_to_detect"] == 11
    assert found["beyond_the_study"]["crash_10pct"]["median_minutes"] == 7
    assert set(found["rules"]) == set(RULES) - {"covey_e_process"}
    written = document.page(f"before {document.BEGIN} old {document.END} after", {**found, "fleets": 3, "seconds": 1})
    assert written.startswith("before ")
    assert written.endswith(" after")
    assert " old " not in written
    assert "| **Covey, e-process** | 10.0 % (1.8–40.4) |" in written
    chart = plots.halted(found, "unchanged", "x & y", 120)
    chart.save(tmp_path / "chart.svg")
    assert ElementTree.parse(tmp_path / "chart.svg").getroot().tag.endswith("svg")  # noqa: S314 - our own file


def test_a_run_that_was_interrupted_goes_on_where_it_was(tmp_path: Path) -> None:
    """What is kept is not simulated again, and a line that was cut off is."""
    kept = tmp_path / "kept.jsonl"
    tasks = [simulate.Task(simulate.SEED, False, True), simulate.Task(simulate.HARSH_SEED, True, False)]
    for task in tasks:
        simulate._append(kept, simulate.Done(task, [Outcome("unchanged", 50, {"covey_e_process": None})]))
    done = simulate.simulate(1, 1, kept)
    assert [each.task for each in done] == tasks
    assert done[0].outcomes == [Outcome("unchanged", 50, {"covey_e_process": None})]
    kept.write_bytes(kept.read_bytes()[:-5])
    assert [each.task for each in simulate._read(kept)] == tasks[:1]
