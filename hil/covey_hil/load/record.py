"""What a load run saw, one row a request, and the questions asked of it afterwards.

`status`: an HTTP status; 0 the connection broke, -1 no answer in time, -2 not sent since too many were waiting. Anything but 200
is a failed request.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from covey_hil.load.wire import Answer


class Recorder:
    """Collects rows in compact arrays."""

    def __init__(self) -> None:
        self._names: dict[str, dict[str, int]] = {"device": {}, "build": {}}
        self._targets: dict[str, str] = {}
        self._versions: dict[str, str] = {}
        self._due, self._latency = array("d"), array("d")
        self._device, self._build, self._image = array("h"), array("h"), array("h")
        self._label, self._answer, self._status = array("h"), array("h"), array("h")
        self._failed = 0

    def add(self, device: str, due: float, latency: float, image: int, label: int, answer: Answer) -> None:
        self._due.append(due)
        self._latency.append(latency)
        self._device.append(self._index("device", device))
        self._build.append(self._index("build", answer.build))
        self._image.append(image)
        self._label.append(label)
        good = answer.logits is not None and answer.logits.shape == (1, 10) and bool(np.isfinite(answer.logits).all())
        self._answer.append(int(answer.logits.argmax()) if good and answer.logits is not None else -1)
        self._status.append(answer.status if good or answer.status != 200 else 0)
        self._failed += self._status[-1] != 200
        if answer.build:
            self._targets[answer.build], self._versions[answer.build] = answer.target, answer.version

    def totals(self) -> dict[str, int]:
        return {"requests": len(self._due), "failed": self._failed}

    def save(self, path: Path) -> None:
        """Write the rows to an .npz file."""
        names = {kind: list(index) for kind, index in self._names.items()}
        known = json.dumps({**names, "targets": self._targets, "versions": self._versions})
        with path.open("wb") as file:
            np.savez(
                file,
                names=np.array(known),
                due=np.array(self._due),
                latency=np.array(self._latency),
                device=np.array(self._device),
                build=np.array(self._build),
                image=np.array(self._image),
                label=np.array(self._label),
                answer=np.array(self._answer),
                status=np.array(self._status),
            )

    def _index(self, kind: str, name: str) -> int:
        return self._names[kind].setdefault(name, len(self._names[kind]))


@dataclass(frozen=True)
class Quantiles:
    """Latency as callers saw it, in milliseconds; None where there was no request."""

    p50_ms: float | None
    p99_ms: float | None
    requests: int


class Record:
    """A finished run, loaded from the file `Recorder.save` wrote."""

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as stored:
            columns = {name: stored[name] for name in stored.files}
        names = json.loads(str(columns["names"]))
        self.devices: list[str] = names["device"]
        self.builds: list[str] = names["build"]
        self.targets: dict[str, str] = names["targets"]
        self.versions: dict[str, str] = names["versions"]
        self._columns = columns

    @property
    def requests(self) -> int:
        return len(self._columns["due"])

    @property
    def failed(self) -> int:
        return int((self._columns["status"] != 200).sum())

    def failures(self) -> dict[str, int]:
        """Failed requests by device and status."""
        bad = self._columns["status"] != 200
        pairs = zip(self._columns["device"][bad], self._columns["status"][bad], strict=True)
        counts: dict[str, int] = {}
        for device, status in pairs:
            key = f"{self.devices[device]}: {status}"
            counts[key] = counts.get(key, 0) + 1
        return counts

    def misread(self) -> int:
        """Answers that are not the image's label. A model of 98 % accuracy misreads 2 % of its images, always the same ones."""
        answered = self._columns["status"] == 200
        return int((answered & (self._columns["answer"] != self._columns["label"])).sum())

    def wrong(self, measured_errors: Mapping[str, int]) -> int:
        """Answers beyond what was measured when the build was made: `measured_errors` says, by build digest, how many of the
        evaluation images it misreads. A build that misreads more different images here than that has given wrong answers; so
        has one that answers the same image differently from one time to the next. An unknown build's misreadings all count."""
        wrong = 0
        for index, build in enumerate(self.builds):
            rows = (self._columns["build"] == index) & (self._columns["status"] == 200)
            images, answers, labels = (self._columns[name][rows] for name in ("image", "answer", "label"))
            errors = 0
            for image in np.unique(images):
                here = images == image
                given = answers[here]
                usual = np.bincount(given, minlength=10).argmax()
                wrong += int((given != usual).sum())
                errors += int(usual != labels[here][0])
            wrong += max(0, errors - measured_errors.get(build, 0))
        return wrong

    def quantiles(self, device: str, start: float, end: float) -> Quantiles:
        """Of the requests due at a device in [start, end), Unix time in seconds."""
        if device not in self.devices:
            return Quantiles(None, None, 0)
        rows = (self._columns["device"] == self.devices.index(device)) & (self._columns["status"] == 200)
        rows &= (self._columns["due"] >= start) & (self._columns["due"] < end)
        latency: NDArray[np.float64] = self._columns["latency"][rows]
        if not len(latency):
            return Quantiles(None, None, 0)
        p50, p99 = np.quantile(latency, [0.5, 0.99]) * 1000
        return Quantiles(round(float(p50), 3), round(float(p99), 3), len(latency))

    def switched_at(self, device: str, build: str) -> float | None:
        """When this build first answered a request of this device (Unix time, s): the swap as callers saw it."""
        if build not in self.builds or device not in self.devices:
            return None
        rows = (self._columns["device"] == self.devices.index(device)) & (
            self._columns["build"] == self.builds.index(build)
        )
        return float(self._columns["due"][rows].min()) if rows.any() else None
