"""`covey-agent otlp`: hears each window from the agent, and pushes the sums to a collector. The composition root.

A collector that is away is asked again after a pause that grows; the agent may be started anew meanwhile, and so may the collector.
"""

from __future__ import annotations

import functools
import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path

from covey_agent import __version__
from covey_agent.errors import AgentError
from covey_agent.gateway_process import run_folder
from covey_agent.identity import FACTS, load_identity
from covey_agent.otlp.collector import Away, Collector, Refused
from covey_agent.otlp.messages import Value, export_request
from covey_agent.otlp.series import Series
from covey_agent.store import Store
from covey_agent.tap import SOCKET, listening, received
from covey_contract.errors import ContractError
from covey_contract.messages import Telemetry
from covey_contract.wire import decode

log = logging.getLogger(__name__)

_LOOK_S = 0.5
_LONGEST_PAUSE_S = 300.0


class Pusher:
    """When to push, and what came of it. `clock`: monotonic seconds."""

    def __init__(self, push: Callable[[], str], interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._push = push
        self._interval_s = interval_s
        self._clock = clock
        self._pause_s = interval_s
        self._trouble = ""
        self.due = clock() + interval_s

    def look(self) -> None:
        if self._clock() >= self.due:
            self.push()

    def push(self) -> None:
        """Never raises; says when things turn bad, and when they turn good."""
        wait_s = 0.0
        try:
            words = self._push()
            trouble = ""
            if words:
                log.warning("the collector: %s", words)
        except (Away, Refused) as error:
            trouble = str(error)
            wait_s = error.wait_s if isinstance(error, Away) else _LONGEST_PAUSE_S
        if trouble and not self._trouble:
            log.warning("%s; its figures are kept, and told when it takes them", trouble)
        elif self._trouble and not trouble:
            log.info("the collector takes figures again")
        self._trouble = trouble
        self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S) if trouble else self._interval_s
        self.due = self._clock() + max(self._pause_s, wait_s)


def run(state: Path, collector: Collector, interval_s: float) -> None:
    """Until SIGTERM or SIGINT; then once more. Raises `AgentError`."""
    device = load_identity(state / "identity").device
    store, series = Store(state), Series()
    about: dict[str, Value] = {
        "service.name": "covey-agent",
        "service.version": __version__,
        "service.instance.id": device,
        "covey.device": device,
        "covey.simulated": (state / "identity" / FACTS).exists(),
    }

    @functools.cache
    def known_target(build: str) -> str:
        manifest = store.manifest(build)
        if manifest is None:
            raise KeyError(build)
        return manifest.target

    def target_of(build: str) -> str:
        try:
            return known_target(build)
        except KeyError:
            return ""  # it is gone from the disk; asked again next time

    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    folder = run_folder(state)
    if not folder.is_dir():
        raise AgentError(f"{folder} is not there: no agent has run on {state} yet")
    pusher = Pusher(lambda: collector.push(export_request(series, about, target_of)), interval_s)
    with listening(folder / SOCKET) as sock:
        log.info("figures of %s go to %s every %.0f s", device, collector.address.geturl(), interval_s)
        while not stopped:
            if (data := received(sock, _LOOK_S)) is not None:
                try:
                    series.add(decode(Telemetry, data))
                except ContractError as error:
                    log.warning("a window cannot be read: %s", error)
            pusher.look()
    pusher.push()
