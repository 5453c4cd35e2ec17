"""What the agent's benchmark counts as failed, as wrong and as within a swap."""

from __future__ import annotations

import numpy as np

from benchmarks.agent.load import FAILED, NOT_KNOWN, Record
from benchmarks.agent.overhead import judge as judge_overhead
from benchmarks.agent.swap import Timeline, judge

EVERY_S = 0.01


def record(until_s: float, *, build: int = 0) -> Record:
    """One request every 10 ms, each answered after 2 ms."""
    due = np.arange(0, until_s, EVERY_S)
    return Record(
        due=due, sent=due.copy(), done=due + 0.002, build=np.full(len(due), build), wrong=np.zeros(len(due), bool)
    )


def timeline() -> Timeline:
    memory = {10: {"gateway": 20.0, "runners": 50.0}, 20: {"gateway": 21.0, "runners": 52.5}}
    return Timeline(windows=[(2.0, 3.0)], serving=[(3.0, 4.0, 0)], steady=[(0.0, 1.5)], memory=memory)


def test_latency_counts_by_when_a_request_was_due() -> None:
    load = record(5.0)
    inside = (load.due >= 1.9) & (load.due <= 3.2)
    load.done[inside] += 0.004
    load.done[(load.due > 1.6) & (load.due < 1.8)] += 9.0  # neither steady nor in a window
    told = judge(load, timeline())
    assert told["p99_ratio"] == 3.0
    assert told["steady_p99_ms"] == 2.0
    assert (told["failed"], told["wrong"], told["swaps"]) == (0, 0, 1)


def test_memory_is_that_of_all_processes() -> None:
    assert judge(record(5.0), timeline())["rss_growth_mb"] == 3.5


def test_failed_unknown_and_foreign_answers_are_told_apart() -> None:
    load = record(5.0)
    load.build[10] = FAILED
    load.build[20], load.wrong[20] = NOT_KNOWN, True
    load.build[350] = 1  # at 3.5 s, where only build 0 may answer
    load.build[250] = 1  # at 2.5 s either may
    told = judge(load, timeline())
    assert (told["failed"], told["wrong"]) == (1, 2)


def test_overhead_is_what_is_over_the_bare_call() -> None:
    bare = np.full(100, 20e-6)
    told = judge_overhead({"bare": bare, "http": bare + 300e-6, "mlserver": bare + 3000e-6})
    assert (told["bare_us"], told["http_us"], told["mlserver_us"], told["mlserver_ratio"]) == (20.0, 300.0, 3000.0, 0.1)
    assert judge_overhead({"bare": bare, "http": bare})["mlserver_ratio"] is None
