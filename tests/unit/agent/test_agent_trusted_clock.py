"""The signed time counts where the system's clock is wrong, and nothing else that looks like one does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from covey_agent.trusted_clock import TrustedClock
from covey_contract.envelope import encode_envelope
from covey_contract.messages import COMMAND_TYPE, TIME_TYPE, TimeReply
from covey_contract.signing import public_key, seal

NOW = 1_900_000_000_000
DIRECTOR = Ed25519PrivateKey.generate()


@dataclass
class Board:
    """A device whose clock and signed past are set by the test."""

    system_ms: int = NOW
    seconds: float = 0.0
    floor_ms: int = 0

    def __post_init__(self) -> None:
        self.clock = TrustedClock("press-7", lambda: self.system_ms, lambda: self.seconds, lambda: self.floor_ms)

    def hear(self, nonce: str, kind: str = TIME_TYPE, key: Ed25519PrivateKey = DIRECTOR, **changes: Any) -> bool:
        fields = {"device": "press-7", "nonce": nonce, "time_ms": NOW, **changes}
        envelope = encode_envelope(seal(TimeReply(**fields), kind, [key]))
        return self.clock.heard(envelope, [public_key(DIRECTOR)])


@pytest.mark.parametrize("year_ms", [31_536_000_000, 2_208_988_800_000])  # 1971, 2040
def test_a_clock_that_is_wrong_is_put_right_and_goes_on(year_ms: int) -> None:
    board = Board(system_ms=year_ms)
    assert board.clock() == year_ms
    assert board.hear(board.clock.ask().nonce)
    board.seconds += 90
    board.system_ms = 5  # whatever it does now
    assert board.clock() == NOW + 90_000


def test_a_clock_that_is_right_is_left_alone() -> None:
    board = Board(system_ms=NOW + 200_000)
    assert board.hear(board.clock.ask().nonce)
    assert board.clock.corrected() is None


def test_a_clock_that_somebody_has_set_is_believed_again() -> None:
    board = Board(system_ms=5)
    board.hear(board.clock.ask().nonce)
    board.system_ms = NOW
    assert board.hear(board.clock.ask().nonce)
    assert board.clock.corrected() is None


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": "0" * 64},
        {"device": "press-8"},
        {"time_ms": NOW - 2_000_000},
        {"key": Ed25519PrivateKey.generate()},
        {"kind": COMMAND_TYPE},
    ],
    ids=["another question's", "another device's", "before the floor", "another key", "another kind"],
)
def test_what_is_no_answer_to_the_newest_question_counts_for_nothing(changes: dict[str, Any]) -> None:
    board = Board(system_ms=5, floor_ms=NOW - 1_000_000)
    nonce = board.clock.ask().nonce
    assert not board.hear(**{"nonce": nonce, **changes})
    assert board.clock() == 5


def test_an_answer_counts_once_and_only_if_it_comes_soon() -> None:
    board = Board(system_ms=5)
    first = board.clock.ask().nonce
    board.seconds += 61
    assert not board.hear(first)
    second = board.clock.ask().nonce
    assert not board.hear(first)
    assert board.hear(second)
    assert not board.hear(second, time_ms=NOW + 9_000_000)
    assert board.clock() == NOW


def test_rubbish_is_ignored() -> None:
    board = Board()
    board.clock.ask()
    assert not board.clock.heard(b"\xff{", [public_key(DIRECTOR)])
