"""Candidates that crash under load: each is switched to, dies in the midst of its probation by a signal that a real fault would raise,
and the build before must have answered every request."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.agent.builds import make
from benchmarks.agent.load import Load
from benchmarks.agent.rig import SOON_S, rig
from benchmarks.agent.swap import LOAD_SHARE, measure_capacity
from covey_contract.messages import Probation
from covey_contract.reasons import Reason
from covey_hil.processes import wait_for

# A runtime's bug, its abort, the out-of-memory killer.
SIGNALS = (signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL)
LATEST_S = 0.15


def run(folder: Path, *, crashes: int, say: Callable[[str], None]) -> dict[str, Any]:
    good, bad = make(folder, "1.0", 1), make(folder, "2.0", 2)
    chance = random.Random(5)  # noqa: S311  # when in its probation the candidate dies
    reasons: list[str] = []
    with rig() as gateway:
        gateway.serve(good)
        load = Load(gateway.socket, LOAD_SHARE * measure_capacity(gateway.socket), [good, bad], folder / "crash.npz")
        time.sleep(1.0)
        try:
            for number in range(crashes):
                gateway.load(bad)
                victim = gateway.runner_pid(bad)
                gateway.switch(bad, Probation())
                time.sleep(chance.uniform(0, LATEST_S))
                os.kill(victim, SIGNALS[number % len(SIGNALS)])
                wait_for("the way back", lambda: gateway.slots().active == good.digest, 30, every_s=SOON_S)
                told = gateway.slots().reverted
                reasons.append(told.reason if told is not None else "")
                load.check()
                if (number + 1) % 50 == 0:
                    say(f"{number + 1} crashes")
        finally:
            record = load.stop()
    return {
        "crashes": len(reasons),
        "requests": len(record.due),
        "answered_by_candidate": int((record.build == 1).sum()),
        "failed": record.failed,
        "wrong": int(record.wrong.sum()),
        "reported": sum(reason == Reason.RUNNER_CRASHED for reason in reasons),
        "p99_ms": round(float(np.quantile(record.latency, 0.99)) * 1e3, 2),
    }
