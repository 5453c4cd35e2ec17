"""The load generator as a process of its own, so that it shares no interpreter with what it measures."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path

from covey_hil.load.record import Record
from covey_hil.processes import Child, ProcessError, command


class LoadProcess:
    """Sends `rate` images a second to each of `ports` (device -> port on loopback) until `stop`."""

    def __init__(self, ports: Mapping[str, int], model: str, rate: float, record: Path, log: Path) -> None:
        devices = [word for name, port in ports.items() for word in ("--device", f"{name}=127.0.0.1:{port}")]
        words = [command("covey-hil"), "load", "--model", model, "--rate", str(rate), "--record", str(record), *devices]
        self._child = Child("load generator", words, log)
        self._record = record
        self.totals: dict[str, int] = {"requests": 0, "failed": 0}

    def start(self) -> None:
        self._child.start(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        threading.Thread(target=self._read, name="load totals", daemon=True).start()

    def _read(self) -> None:
        for line in self._child.process.stdout or ():
            self.totals = json.loads(line)

    def pause(self, device: str) -> None:
        self._tell(f"pause {device}")

    def resume(self, device: str) -> None:
        self._tell(f"resume {device}")

    def _tell(self, line: str) -> None:
        self._child.check()
        self._child.stdin.write(line.encode() + b"\n")
        self._child.stdin.flush()

    def stop(self) -> Record:
        """End the load; what it saw."""
        self._tell("stop")
        if code := self._child.process.wait(60):
            raise ProcessError(f"the load generator ended with {code}:\n{self._child.tail()}")
        return Record(self._record)

    def kill(self) -> None:
        self._child.kill()
