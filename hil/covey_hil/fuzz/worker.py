"""One decoder and many inputs, in a process of its own that may end at any of them.

The board is a file that parent and child both map: the input that is being tried, and how many were before. So the parent knows what
ended the child, and whether it still moves.
"""

from __future__ import annotations

import faulthandler
import logging
import mmap
import os
import resource
import signal
import struct
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import CodeType, FrameType
from typing import Any

import msgspec

from covey_hil.fuzz.decoder import Decoder, Made
from covey_hil.fuzz.mutate import Mutator

MOST_KEPT = 400
_MOST_WAYS = 4000
_MOST_FINDINGS = 20
_MEMORY = 2 << 30  # bytes that decoding may take beyond what the process has
_HEAD = struct.Struct("<QQI")  # inputs tried, of them accepted, bytes of the one that is being tried
_WATCHED_S = 1.0  # an input whose lines are counted
_NOT_YET = (1 << 64) - 1
_BOARD_BYTES = 1 << 20
_DIGITS = str.maketrans("", "", "0123456789")


class TooSlow(BaseException):  # noqa: N818  # nothing that is tried may catch it
    """One input took more processor time than it may."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """An input that a decoder did not take well. `kind`: what happened instead of an answer or a refusal."""

    decoder: str
    kind: str  # "exception", "slow", "hang" or "ended"
    detail: str
    input: bytes


class Result(msgspec.Struct, kw_only=True):
    """What came of one run. `kept`: inputs that showed something new, to go on from."""

    inputs: int = 0
    accepted: int = 0
    ended: int = 0  # of a confined decoder: ends of the process
    slowest_ms: float = 0.0
    findings: list[Finding] = []
    kept: list[bytes] = []


@dataclass(frozen=True)
class Plan:
    inputs: int
    seed: int
    limit_s: float  # processor time of one input
    corpus: Sequence[bytes] = ()
    again: bool = False  # a child before has ended: what it began with is not tried again, as it may be why


class Board:
    """`path` is made if it is not there."""

    def __init__(self, path: Path) -> None:
        with path.open("a+b") as file:
            file.truncate(_BOARD_BYTES)
            self._map = mmap.mmap(file.fileno(), _BOARD_BYTES)

    def begin(self) -> None:
        _HEAD.pack_into(self._map, 0, _NOT_YET, 0, 0)

    def note(self, tried: int, accepted: int, data: bytes) -> None:
        """`data` is tried next."""
        _HEAD.pack_into(self._map, 0, tried, accepted, len(data))
        self._map[_HEAD.size : _HEAD.size + len(data)] = data

    def read(self) -> tuple[int | None, int, bytes]:
        """How many were tried before this one (None: not even the first is), how many of them were accepted, and the input itself."""
        tried, accepted, size = _HEAD.unpack_from(self._map)
        return None if tried == _NOT_YET else tried, accepted, bytes(self._map[_HEAD.size : _HEAD.size + size])


def fuzz(decoder: Decoder, made: Made, plan: Plan, board: Board) -> Result:
    """Try so many inputs. What the decoder raises beside its refusals is a finding, once for each place that it comes from."""
    random = Random(plan.seed)  # noqa: S311  # the same inputs for the same seed
    mutator = Mutator(decoder.form, decoder.longest, random)
    corpus = list(dict.fromkeys((*made.seeds, *plan.corpus)))
    result, ways, found = Result(), set[Any](), set[Any]()
    decode, refuses = made.decode, decoder.refuses
    signal.signal(signal.SIGPROF, _too_slow)
    for tried in range(plan.inputs):
        data = corpus[tried] if tried < len(corpus) and not plan.again else mutator.next(corpus)
        board.note(tried, result.accepted, data)
        signal.setitimer(signal.ITIMER_PROF, plan.limit_s)
        began = time.process_time()
        try:
            answer = decode(data)
            way: Any = (type(answer), len(data).bit_length())
            result.accepted += 1
        except refuses as error:
            way = _way(error)
        except TooSlow:
            way = "slow"
            _note(
                result,
                found,
                way,
                Finding(decoder=decoder.name, kind="slow", detail=f"more than {plan.limit_s} s", input=data),
            )
        except Exception as error:  # noqa: BLE001  # these are what is sought
            way = _way(error)
            _note(
                result, found, way[:3], Finding(decoder=decoder.name, kind="exception", detail=_told(error), input=data)
            )
        result.slowest_ms = max(result.slowest_ms, (time.process_time() - began) * 1000)
        if way not in ways and len(ways) < _MOST_WAYS:
            ways.add(way)
            _keep(corpus, data, random)
    signal.setitimer(signal.ITIMER_PROF, 0)
    result.inputs = plan.inputs
    result.kept = corpus[len(made.seeds) :]
    return result


def cover(decoder: Decoder, made: Made, inputs: Sequence[bytes]) -> tuple[int, int]:
    """Lines that these inputs reach in the decoder's modules, and how many there are in the functions that they enter."""
    files = {getattr(sys.modules[name], "__file__", None) for name in decoder.code if name in sys.modules}
    reached: dict[CodeType, set[int]] = {}

    def watch(frame: FrameType, event: str, _: object) -> Any:
        code = frame.f_code
        if code.co_filename not in files:
            return None
        lines = reached.setdefault(code, set())
        if event == "line":
            lines.add(frame.f_lineno)
        return watch

    signal.signal(signal.SIGPROF, _too_slow)
    for data in inputs:
        signal.setitimer(signal.ITIMER_PROF, _WATCHED_S)
        sys.settrace(watch)
        try:
            made.decode(data)
        except (Exception, TooSlow):  # noqa: BLE001, S110  # told by `fuzz`
            pass
        finally:
            sys.settrace(None)
            signal.setitimer(signal.ITIMER_PROF, 0)
    there = {code: {line for _, _, line in code.co_lines() if line} - {code.co_firstlineno} for code in reached}
    return sum(len(reached[code] & lines) for code, lines in there.items()), sum(map(len, there.values()))


def confine() -> None:
    """Nothing that a decoder says or takes may disturb the others."""
    logging.disable(logging.CRITICAL)
    faulthandler.disable()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    there = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (there + _MEMORY, there + _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _keep(corpus: list[bytes], data: bytes, random: Random) -> None:
    if len(corpus) < MOST_KEPT:
        corpus.append(data)
    else:
        corpus[random.randrange(len(corpus) // 4, len(corpus))] = data  # the good ones stand first and stay


def _note(result: Result, found: set[Any], place: Any, finding: Finding) -> None:
    if place not in found and len(result.findings) < _MOST_FINDINGS:
        found.add(place)
        result.findings.append(finding)


def _way(error: BaseException) -> tuple[Any, ...]:
    """Where the error comes from and what it says, without numbers and what it quotes."""
    lines, trace = [], error.__traceback__
    while trace is not None:
        lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return type(error), type(error.__cause__), tuple(lines), str(error).translate(_DIGITS).partition("'")[0][:60]


def _told(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error)[:200]} ({Path(last.filename).name}:{last.lineno})"


def _too_slow(_: int, __: object) -> None:
    raise TooSlow
