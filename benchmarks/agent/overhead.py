"""What a request costs over the bare runtime call: ours by TCP, Unix socket and shared memory, and peers with the same model and caller.

The model computes next to nothing on an input of 110,592 bytes, so that nearly all that is measured is on the way; `large` is the same with
4,915,200. One caller asks one request after the other; overhead is the quantile of its times less the same quantile of the runtime's own
call. The ways take turns in rounds, so that what the machine does besides falls on all of them. `cpu_us` is processor time a request, of
caller, gateway and runner: with `taskset -c 0` before the command it is the work alone, without the waking of idle cores.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.agent.builds import LARGE, MODEL, SHAPE, Shape, bare, inputs, light, make
from benchmarks.agent.load import Numbers
from benchmarks.agent.peers import PEERS, Unavailable
from benchmarks.agent.rig import rig
from benchmarks.agent.swap import measure_capacity
from covey_agent.client import Client
from covey_hil.processes import ProcessError

ROUNDS = 10
WARM_UP = 50
Ask = Callable[[], object]


def run(folder: Path, *, requests: int, say: Callable[[str], None]) -> dict[str, Any]:
    small, large = folder / "small", folder / "large"
    record = _measured(small, SHAPE, requests, say)
    return record | {"large": _measured(large, LARGE, requests // 10, say)}


def _measured(folder: Path, shape: Shape, requests: int, say: Callable[[str], None]) -> dict[str, Any]:
    build = make(folder, "light", 0, light, shape)
    image = inputs(1, shape)[0]
    call = bare(build.file)
    skipped: dict[str, str] = {}
    with rig() as gateway, ExitStack() as held:
        gateway.serve(build)
        tcp = held.enter_context(Client(f"127.0.0.1:{gateway.port}"))
        unix = held.enter_context(Client(gateway.socket))
        shared = held.enter_context(Client(gateway.socket, shared_memory=True))
        ways: dict[str, Ask] = {
            "bare": lambda: call(image),
            "http": lambda: tcp.infer(MODEL, {"image": image}),
            "uds": lambda: unix.infer(MODEL, {"image": image}),
            "shm": lambda: shared.infer(MODEL, {"image": image}),
        }
        for peer in PEERS:
            try:
                client = held.enter_context(peer.serving(build.file, folder, say))
                client(image)
            except (Unavailable, ProcessError, OSError) as error:  # the last two: it does not take so large a request
                say(f"{peer.name} is left out: {error}")
                skipped[peer.name] = str(error)
                continue
            ways[peer.name] = lambda client=client: client(image)  # type: ignore[misc]
        processes = {"client": [os.getpid()], "gateway": [gateway.child.pid], "runner": gateway.runner_pids()}
        times, spent = _take_turns(ways, requests, processes)
        throughput = {"uds_per_s": round(measure_capacity(gateway.socket, image), 1)}
    cpu_us = {way: {who: round(s * 1e6, 1) for who, s in spent[way].items()} for way in ("http", "uds", "shm")}
    return judge(times) | {"cpu_us": cpu_us, "throughput": throughput, "skipped": skipped}


def _take_turns(
    ways: dict[str, Ask], requests: int, processes: dict[str, list[int]]
) -> tuple[dict[str, Numbers], dict[str, dict[str, float]]]:
    """Seconds of each request, and of each of the processes for one, by way."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    spent = {name: dict.fromkeys(processes, 0.0) for name in ways}
    for ask in ways.values():
        for _ in range(WARM_UP):
            ask()
    for _ in range(ROUNDS):
        for name, ask in ways.items():
            before = {who: _processor_s(pids) for who, pids in processes.items()}
            for _ in range(requests // ROUNDS):
                began = time.perf_counter()
                ask()
                times[name].append(time.perf_counter() - began)
            for who, pids in processes.items():
                spent[name][who] += (_processor_s(pids) - before[who]) / (requests // ROUNDS * ROUNDS)
    return {name: np.array(taken) for name, taken in times.items()}, spent


def _processor_s(pids: list[int]) -> float:
    """Processor time of all threads so far, as the scheduler counts it (`/proc/…/schedstat`, its first number)."""
    threads = [path for pid in pids for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(path.read_text(encoding="ascii").split()[0]) for path in threads) / 1e9


def judge(times: dict[str, Numbers]) -> dict[str, Any]:
    p50 = {name: float(np.quantile(taken, 0.5)) * 1e6 for name, taken in times.items()}
    p99 = {name: float(np.quantile(taken, 0.99)) * 1e6 for name, taken in times.items()}
    over = {name: p50[name] - p50["bare"] for name in times if name != "bare"}
    return {
        "bare_us": round(p50["bare"], 1),
        **{f"{name}_us": round(value, 1) for name, value in over.items()},
        **{f"{name}_p99_us": round(p99[name] - p99["bare"], 1) for name in over},
        "mlserver_ratio": round(over["http"] / over["mlserver"], 3) if "mlserver" in over else None,
    }
