"""Whether the repository of releases vouches for a build: asked of the update client in a process of its own, which ends with its answer.

This side knows nothing of TUF and imports none of it; `core.acceptance.check_release` compares the answer with the order.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from covey_agent.bundle import SCHEME as BUNDLE_SCHEME
from covey_agent.core.acceptance import Vouched
from covey_agent.errors import StepError
from covey_contract.reasons import Reason

_LONGEST_S = 300.0
_MOST_BYTES = 512_000
_MOST_ANSWERS = 8


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What `covey-agent tuf … find` prints. With a `reason` it is a refusal."""

    reason: Reason = Reason.NONE
    detail: str = ""
    length: int = 0
    sha256: str = ""
    fields: dict[str, str | int] = {}  # our part of the target's custom fields
    director: tuple[str, ...] = ()  # the raw keys for orders, in hex
    time_ms: int = 0  # the newest time that signed metadata has shown


@dataclass(slots=True)
class Vouching:
    """Where the repository is, and how to know it: the root that came at enrolment, the fleet's CA. `relay` gives its files over MQTT for a
    target and a version of root, where the address cannot be reached; `time_ms` the time where the system's clock is known to be wrong."""

    folder: Path  # of trusted metadata
    root: Path
    ca: Path
    url: str  # of the server, without /tuf
    relay: Callable[[str, int], dict[str, bytes] | None] | None = None
    time_ms: Callable[[], int | None] = lambda: None
    _by_relay: bool = False  # the way that worked last

    def ask(self, path: str, floor_ms: int, bundle: Path | None = None) -> Vouched:
        """What the repository says of a target, as of now, or as it was when the bundle was made. Blocks; raises `StepError` with the
        client's reason."""
        answer = self._find(path, floor_ms, bundle)
        if answer.reason is not Reason.NONE:
            raise StepError(answer.reason, answer.detail)
        return Vouched(
            length=answer.length,
            sha256=answer.sha256,
            fields=answer.fields,
            director=tuple(bytes.fromhex(key) for key in answer.director),
            time_ms=answer.time_ms,
        )

    def refresh(self, floor_ms: int, bundle: Path | None = None) -> None:
        """Follow the repository's newest root. Blocks; a repository that cannot be reached changes nothing."""
        with contextlib.suppress(StepError):
            self._find("none", floor_ms, bundle)

    def directors(self) -> tuple[bytes, ...]:
        """The keys for orders by the newest root that is trusted here; none where that cannot be read."""
        for path in (self.folder / "root.json", self.root):
            try:
                with path.open("rb") as file:
                    document = json.loads(file.read(_MOST_BYTES))
                keys = document["signed"]["x-covey-director"]["keys"].values()
                return tuple(bytes.fromhex(key["keyval"]["public"]) for key in keys)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
                continue
        return ()

    def _find(self, path: str, floor_ms: int, bundle: Path | None) -> Answer:
        """From the bundle, if there is one; else by the way that worked last, then by the other."""
        words = ["--target-name", path, "--floor-ms", str(floor_ms)]
        if (time_ms := self.time_ms()) is not None:
            words += ["--time-ms", str(time_ms)]
        if bundle is not None:
            return self._run(*words, *_instead(bundle), "find")
        answer = None
        for by_relay in (True, False) if self._by_relay else (False, True):
            other = self._relayed(path, words) if by_relay else self._run(*words, "find")
            if other is not None:
                answer = other
                if answer.reason is not Reason.METADATA_UNAVAILABLE:
                    self._by_relay = by_relay
                    break
        if answer is None:
            raise StepError(Reason.METADATA_UNAVAILABLE, "the repository of releases cannot be reached")
        return answer

    def _relayed(self, path: str, words: list[str]) -> Answer | None:
        """From files that come over MQTT; None if they do not."""
        answer = None
        for _ in range(_MOST_ANSWERS):
            version = self._root_version()
            files = self.relay(path, version) if self.relay is not None else None
            if not files:
                return answer
            folder = self.folder.with_name(f"{self.folder.name}.relayed")
            shutil.rmtree(folder, ignore_errors=True)
            try:
                folder.mkdir(parents=True)
                for name, data in files.items():
                    if Path(name).name == name:
                        (folder / name).write_bytes(data)
                answer = self._run(*words, "--metadata-url", f"file://{folder.absolute()}", "find")
            except OSError as error:
                raise StepError(Reason.STORAGE_ERROR, f"metadata cannot be kept: {error.strerror or error}") from error
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            # One answer holds so many roots; a device that is further behind needs another.
            if answer.reason is Reason.NONE or self._root_version() == version:
                return answer
        return answer

    def _root_version(self) -> int:
        for path in (self.folder / "root.json", self.root):
            try:
                with path.open("rb") as file:
                    return int(json.loads(file.read(_MOST_BYTES))["signed"]["version"])
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                continue
        return 1

    def _run(self, *words: str) -> Answer:
        command = [sys.executable, "-m", "covey_agent", "tuf", "--metadata-dir", str(self.folder)]
        command += ["--metadata-url", f"{self.url.rstrip('/')}/tuf/metadata", "--root", str(self.root)]
        if self.url.startswith("https:"):
            command += ["--ca", str(self.ca)]
        try:
            done = subprocess.run([*command, *words], capture_output=True, timeout=_LONGEST_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise StepError(Reason.METADATA_UNAVAILABLE, "the update client did not end in time") from error
        except OSError as error:
            raise StepError(Reason.INTERNAL, f"the update client cannot be started: {error}") from error
        try:
            return msgspec.json.decode(done.stdout[:_MOST_BYTES], type=Answer)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
            detail = f"the update client ended with {done.returncode}: {lines[-1] if lines else 'no word'}"
            raise StepError(Reason.INTERNAL, detail) from error


def _instead(bundle: Path | None) -> tuple[str, ...]:
    """The words that take the repository's place: of two the later one counts."""
    return () if bundle is None else ("--metadata-url", f"{BUNDLE_SCHEME}{bundle}")
