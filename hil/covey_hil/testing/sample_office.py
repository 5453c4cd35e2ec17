"""A server's desk for samples with its shelf, and devices that are the agent's own code on folders; what they say badly is set by the test."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import select, update

from covey_agent.samples import Samples
from covey_contract.messages import Reply
from covey_contract.samples import ReadSample, SampleQuestion
from covey_hil.testing.made_samples import keep
from covey_server.bus import Bus
from covey_server.db.engine import Database
from covey_server.db.tables import Device, Sample, SampleFetch
from covey_server.samples import fetches
from covey_server.samples.desk import SampleDesk
from covey_server.samples.shelf import SampleShelf

DEVICE, OTHER = "d0000", "d0001"
CAPTURE = {"capture": {"share": 1.0, "limit_mb": 200.0, "may_leave": True}}


@dataclass
class Devices:
    """What devices answer; `spoil` may change or lose a reply. Counts questions by kind."""

    folder: Path
    may_leave: bool = True
    spoil: Callable[[SampleQuestion, Reply], Reply | None] = lambda _question, reply: reply
    asked: list[SampleQuestion] = field(default_factory=list)

    def __call__(self, device: str, question: SampleQuestion) -> Reply | None:
        self.asked.append(question)
        answerer = Samples(self.folder / device, kept=True, may_leave=self.may_leave)
        return self.spoil(question, answerer.answer(Reply(id="q", time_ms=1), question))

    @property
    def read(self) -> list[ReadSample]:
        return [one for one in self.asked if isinstance(one, ReadSample)]


class Office:
    """A desk with its shelf, started."""

    def __init__(self, database: Database, folder: Path, now_ms: int, **limits: int) -> None:
        self.database = database
        self.now_ms = now_ms
        self.devices = Devices(folder / "devices")
        self.folder = folder / "samples"
        self.given_up = threading.Event()
        made = {"max_bytes": 1 << 30, "keep_days": 30, "fetch_bytes": 1 << 30, **limits}
        self.shelf = SampleShelf(
            database, self.folder, lambda: self.now_ms, max_bytes=made["max_bytes"], keep_days=made["keep_days"]
        )
        self.desk = SampleDesk(
            *(database, self.shelf, lambda: self.now_ms, Bus(), self.devices, self.given_up.set, made["fetch_bytes"])
        )
        with database.session() as session:
            session.execute(update(Device).values(resources=CAPTURE))

    def begin(self, device: str = DEVICE, model: str | None = None, most: int = 100) -> int:
        with self.database.session() as session:
            number = fetches.ask_device(session, device, model, most, "ann", self.now_ms).id
        self.desk.wake()
        return number

    def fetch(self, device: str = DEVICE, model: str | None = None, most: int = 100) -> SampleFetch:
        """As it has ended."""
        return self.ended(self.begin(device, model, most))

    def ended(self, number: int) -> SampleFetch:
        deadline = time.monotonic() + 30
        while (found := self.look(number)).ended_ms is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return found

    def look(self, number: int) -> SampleFetch:
        with self.database.reading() as session:
            return fetches.get_fetch(session, number)

    @property
    def rows(self) -> list[Sample]:
        with self.database.reading() as session:
            return list(session.scalars(select(Sample).order_by(Sample.device, Sample.name)))

    @property
    def files(self) -> set[str]:
        assert not list((self.folder / "incoming").iterdir()), "something half-written was left"
        return {path.name for path in self.folder.glob("??/*")}

    def kept(self, *numbers: int, device: str = DEVICE, model: str = "digits", count: int = 4) -> list[Path]:
        """Samples on a device."""
        return [keep(self.devices.folder / device, number, model, count=count) for number in numbers]
