"""The fuzzer finds what it is for; and every decoder takes some hundred hostile inputs well."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from covey_contract import building, enrolment, facts, manifest, messages
from covey_contract.wire import Message
from covey_hil.fuzz.bench import Bench, BenchError, Record
from covey_hil.fuzz.decoder import Decoder, Form, Made, Share
from covey_hil.fuzz.decoders import DECODERS
from covey_hil.fuzz.mutate import Mutator
from covey_hil.fuzz.page import figures


def run(decoder: Decoder, folder: Path, inputs: int = 400) -> Record:
    return Bench([decoder], folder, lambda _: None, 0.3).run(inputs, seed=3)


def decoder(decode: Callable[[bytes], object], *, confined: bool = False) -> Decoder:
    return Decoder(
        "made.up",
        "a test",
        lambda _: Made(decode, (b"good",)),
        (ValueError,),
        (__name__,),
        Form.BYTES,
        confined=confined,
    )


def picky(data: bytes) -> object:
    if data.startswith(b"good"):
        return data
    raise ValueError("bad")


def spin() -> None:
    while True:
        pass


def test_refusals_are_no_findings(tmp_path: Path) -> None:
    record = run(decoder(picky), tmp_path)
    tally = record.decoders["made.up"]
    assert (record.inputs, record.findings) == (400, [])
    assert 0 < tally.accepted < 400
    assert tally.lines == (3, 3)


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        (lambda: dict[str, int]()["x"], "exception", "KeyError"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "ended", "signal 9"),
        (lambda: bytearray(8 << 30), "exception", "MemoryError"),
        (spin, "slow", "more than 0.3 s"),
    ],
    ids=["exception", "crash", "memory", "time"],
)
def test_what_is_found(tmp_path: Path, what: Callable[[], object], kind: str, words: str) -> None:
    bad = decoder(lambda data: what() if data == b"bad" else data)
    made = Made(bad.make(tmp_path).decode, (b"good", b"bad", b"good again"))
    record = run(Decoder(bad.name, "a test", lambda _: made, (ValueError,), (), Form.BYTES), tmp_path, 5)
    assert {(finding.kind, finding.input) for finding in record.findings} == {(kind, b"bad")}
    assert words in record.findings[0].detail
    assert (tmp_path / "findings" / "000-made.up").read_bytes() == b"bad"
    assert record.inputs == 5


def test_a_hang_that_takes_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("covey_hil.fuzz.bench._STILL_S", 1.0)
    [finding] = run(decoder(lambda _: time.sleep(600)), tmp_path, 1).findings
    assert finding.kind == "hang"


def test_the_end_of_a_confined_decoder_is_counted(tmp_path: Path) -> None:
    made = decoder(lambda _: os.kill(os.getpid(), signal.SIGABRT), confined=True)
    record = run(made, tmp_path, 3)
    assert record.findings == []
    assert record.decoders["made.up"].ended == record.inputs == 3


def test_a_decoder_that_cannot_be_made(tmp_path: Path) -> None:
    broken = Decoder("made.up", "a test", lambda _: Made(*()), (), ())  # type: ignore[call-arg]
    with pytest.raises(BenchError, match="made.up"):
        run(broken, tmp_path)


@pytest.mark.parametrize("form", Form)
def test_a_seed_gives_the_same_inputs(form: Form) -> None:
    corpus = [b'{"a":[1,{"b":"c"}]}', b"\x81\xa1a\x01"]
    first, second = ([Mutator(form, 100, Random(7)).next(corpus) for _ in range(1)] for _ in range(2))
    mutator, other = Mutator(form, 100, Random(8)), Mutator(form, 100, Random(8))
    many = [mutator.next(corpus) for _ in range(300)]
    assert first == second
    assert many == [other.next(corpus) for _ in range(300)]
    assert len(set(many)) > 150
    assert max(map(len, many)) <= 100


def test_every_message_is_in_the_list() -> None:
    kinds = {
        f"message.{kind.__name__}"
        for module in (messages, enrolment, building, facts, manifest)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Message) and kind is not Message
    }
    assert kinds <= DECODERS.keys()


@pytest.mark.parametrize("name", DECODERS)
def test_hostile_inputs(name: str, tmp_path: Path) -> None:
    chosen = DECODERS[name]
    record = run(chosen, tmp_path, 60 if chosen.share is Share.DEAR else 300)
    assert record.findings == []
    assert record.decoders[name].accepted > 0
    assert name in "\n".join(figures(record))
