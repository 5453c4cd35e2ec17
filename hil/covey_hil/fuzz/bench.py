"""Runs every decoder in turn, each in a child process that is forked for it; survives whatever happens there.

Inputs are dealt out in rounds, so that a run that is ended early has tried every decoder. What a round has kept, the next goes on from.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from covey_hil.fuzz.decoder import Decoder
from covey_hil.fuzz.worker import Board, Finding, Plan, Result, confine, cover, fuzz

LIMIT_S = 1.0
_STILL_S = 60.0  # without a new input: it hangs
_POLL_S = 0.05
_MOST_ENDS = 200  # of one decoder in one round
_COVERED = 600
# Inputs that are files need no disk.
_SCRATCH = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
_ROUND_INPUTS = 1_000_000

Say = Callable[[str], None]


class BenchError(Exception):
    """A decoder cannot be tried."""


class Tally(msgspec.Struct, kw_only=True):
    """One decoder, so far."""

    sender: str
    inputs: int = 0
    accepted: int = 0
    ended: int = 0
    findings: int = 0
    slowest_ms: float = 0.0
    seconds: float = 0.0
    lines: tuple[int, int] = (0, 0)  # reached, there


class Record(msgspec.Struct, kw_only=True):
    """What a run did."""

    seed: int
    asked: int
    limit_s: float
    rounds: int = 0
    inputs: int = 0
    seconds: float = 0.0
    decoders: dict[str, Tally] = {}
    findings: list[Finding] = []


class Bench:
    """`folder`: for boards, and inputs that were findings."""

    def __init__(self, decoders: Sequence[Decoder], folder: Path, say: Say, limit_s: float = LIMIT_S) -> None:
        self._decoders = decoders
        self._folder = folder
        self._say = say
        self._limit_s = limit_s
        self._context = multiprocessing.get_context("fork")
        self._kept: dict[str, list[bytes]] = {one.name: [] for one in decoders}

    def run(self, inputs: int, seed: int, after_round: Callable[[Record], None] = lambda _: None) -> Record:
        """So many inputs in all, at least one of each decoder; `after_round` is given what was done so far. Raises `BenchError`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        record = Record(seed=seed, asked=inputs, limit_s=self._limit_s)
        record.decoders = {one.name: Tally(sender=one.sender) for one in self._decoders}
        rounds = max(1, min(10, inputs // _ROUND_INPUTS))
        shares = sum(one.share for one in self._decoders)
        began = time.monotonic()
        for number in range(rounds):
            for place, one in enumerate(self._decoders):
                count = max(1, round(inputs * one.share / shares / rounds))
                self._try(record, one, Plan(count, seed + 1000 * number + place, self._limit_s, self._kept[one.name]))
            record.rounds = number + 1
            record.seconds = round(time.monotonic() - began, 1)
            self._say(f"round {record.rounds} of {rounds}: {record.inputs:,} inputs, {len(record.findings)} findings")
            after_round(record)
        for one in self._decoders:
            record.decoders[one.name].lines = self._covered(one)
        after_round(record)
        return record

    def _try(self, record: Record, decoder: Decoder, plan: Plan) -> None:
        began, tally = time.monotonic(), record.decoders[decoder.name]
        result = self._survived(decoder, plan)
        record.inputs += result.inputs
        tally.inputs += result.inputs
        tally.accepted += result.accepted
        tally.ended += result.ended
        tally.findings += len(result.findings)
        tally.slowest_ms = round(max(tally.slowest_ms, result.slowest_ms), 1)
        tally.seconds = round(tally.seconds + time.monotonic() - began, 1)
        self._kept[decoder.name] = result.kept
        for finding in result.findings:
            self._say(f"{finding.decoder}: {finding.kind}: {finding.detail}")
            self._save(finding, len(record.findings))
            record.findings.append(finding)

    def _save(self, finding: Finding, number: int) -> None:
        folder = self._folder / "findings"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:03d}-{finding.decoder}").write_bytes(finding.input)

    def _survived(self, decoder: Decoder, plan: Plan) -> Result:
        """A child that ends is followed by another one, for the inputs that are left."""
        whole, left, seed = Result(kept=list(plan.corpus)), plan.inputs, plan.seed
        for number in range(_MOST_ENDS):
            board = Board(self._folder / f"{decoder.name}.board")
            board.begin()
            answer = self._child(decoder, Plan(left, seed, plan.limit_s, whole.kept, number > 0), board)
            if isinstance(answer, Result):
                return _added(whole, answer)
            tried, accepted, data = board.read()
            if tried is None:
                raise BenchError(f"{decoder.name} cannot be made ready: {answer}")
            whole.inputs += tried + 1
            whole.accepted += accepted
            if decoder.confined and answer.startswith("signal"):
                whole.ended += 1
            else:
                kind = "hang" if answer == "hang" else "ended"
                whole.findings.append(Finding(decoder=decoder.name, kind=kind, detail=answer, input=data))
            left, seed = left - tried - 1, seed + 1_000_003
            if left <= 0:
                return whole
        self._say(f"{decoder.name}: given up after {_MOST_ENDS} ends, {left} inputs are not tried")
        return whole

    def _child(self, decoder: Decoder, plan: Plan, board: Board) -> Result | str:
        """What it found, or how it ended."""
        with self._forked(_fuzzing, decoder, plan, board) as (child, receive):
            moved, last = time.monotonic(), None
            while not receive.poll(_POLL_S):
                tried = board.read()[0]
                if tried != last:
                    moved, last = time.monotonic(), tried
                elif time.monotonic() - moved > _STILL_S:
                    child.kill()
                    return "hang"
            try:
                return msgspec.msgpack.decode(receive.recv_bytes(), type=Result)
            except EOFError:
                child.join()
        code = child.exitcode or 0
        return f"signal {-code}" if code < 0 else f"exit status {code}"

    def _covered(self, decoder: Decoder) -> tuple[int, int]:
        with self._forked(_covering, decoder, self._kept[decoder.name][:_COVERED]) as (child, receive):
            try:
                if receive.poll(_STILL_S):
                    return msgspec.msgpack.decode(receive.recv_bytes(), type=tuple[int, int])
            except EOFError:
                pass  # an input that ends the process
            child.kill()
        return 0, 0

    @contextlib.contextmanager
    def _forked(self, target: Callable[..., None], *arguments: Any) -> Iterator[tuple[Any, Any]]:
        """The child, and the end of a pipe that it answers on, which is readable too when it has ended."""
        receive, send = self._context.Pipe(duplex=False)
        with tempfile.TemporaryDirectory(prefix="covey-fuzz-", dir=_SCRATCH) as scratch:
            child = self._context.Process(target=target, args=(*arguments, Path(scratch), send))
            child.start()
            send.close()
            try:
                yield child, receive
            finally:
                child.join(_STILL_S)
                child.kill()
                child.join()
                receive.close()


def _fuzzing(decoder: Decoder, plan: Plan, board: Board, scratch: Path, send: Any) -> None:
    made = decoder.make(scratch)
    confine()
    send.send_bytes(msgspec.msgpack.encode(fuzz(decoder, made, plan, board)))
    send.close()
    os._exit(0)  # what a library does at the end of its process says nothing of the decoder


def _covering(decoder: Decoder, inputs: Sequence[bytes], scratch: Path, send: Any) -> None:
    made = decoder.make(scratch)
    confine()
    send.send_bytes(msgspec.msgpack.encode(cover(decoder, made, [*made.seeds, *inputs])))
    send.close()
    os._exit(0)


def _added(whole: Result, last: Result) -> Result:
    whole.inputs += last.inputs
    whole.accepted += last.accepted
    whole.slowest_ms = max(whole.slowest_ms, last.slowest_ms)
    whole.findings = [*whole.findings, *last.findings]
    whole.kept = last.kept
    return whole
