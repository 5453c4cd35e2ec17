"""The demo's six devices. Two are this machine itself; four stand in for hardware that is not there: their facts come from a file,
and everything that shows them says that they are simulated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FACTS = Path(__file__).parent.parent / "facts"


@dataclass(frozen=True)
class DemoDevice:
    name: str
    groups: tuple[str, ...]
    facts: str | None = None  # file in `facts/`; None: this machine's own facts

    @property
    def facts_file(self) -> Path | None:
        return FACTS / self.facts if self.facts else None

    @property
    def simulated(self) -> bool:
        return self.facts is not None


DEVICES = (
    DemoDevice("press-1", ("canary",)),
    DemoDevice("sorter-1", ("canary",), "raspberry-pi-5.json"),
    DemoDevice("press-2", ("line-a",)),
    DemoDevice("sorter-2", ("line-a",), "raspberry-pi-5.json"),
    DemoDevice("gate-1", (), "jetson-orin-nano.json"),
    DemoDevice("scale-1", (), "intel-n100.json"),
)
