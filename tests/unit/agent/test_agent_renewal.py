"""When a certificate is renewed, and that no clock and no server makes it a loop or costs the identity."""

from __future__ import annotations

import statistics
from collections import deque
from pathlib import Path
from random import Random

import pytest

from covey_agent.core.renewal import Certificate, pause_s
from covey_agent.credentials import ASKING, NEXT, RENEWED, Credentials
from covey_agent.errors import EnrolmentError
from covey_agent.identity import save_identity
from covey_agent.keys import make_key_and_request
from covey_agent.renewal import Renewal, Standing, read_told
from covey_agent.renewing import Failed, Granted, Outcome, Refused, Undecided, check
from covey_contract.enrolment import Broker, EnrolResponse
from covey_contract.signing import Trust
from covey_hil.testing.authority import Authority

DAY_MS = 86_400_000
NOW_MS = 1_800_000_000_000  # in 2027
DEVICE = "press-7"


# --- the decisions ----------------------------------------------------------------------------------------------------


def test_a_fleet_that_enrolled_at_once_does_not_come_back_at_once() -> None:
    due = [Certificate(number, 0, 90 * DAY_MS).due_ms(f"device-{number}") / DAY_MS for number in range(20_000)]
    assert 55.4 < min(due) < 55.6
    assert 64.4 < max(due) < 64.6
    assert statistics.mean(due) == pytest.approx(60.0, abs=0.1)
    busiest = max(sum(day <= one < day + 1 / 24 for one in due) for day in (55.5 + hour / 24 for hour in range(216)))
    assert busiest < 2 * 20_000 / 216  # of the 216 hours none has twice its share


def test_a_restart_does_not_draw_again_and_a_new_certificate_does() -> None:
    one, other = Certificate(1, 0, 90 * DAY_MS), Certificate(2, 0, 90 * DAY_MS)
    assert one.due_ms(DEVICE) == Certificate(1, 0, 90 * DAY_MS).due_ms(DEVICE) != other.due_ms(DEVICE)


def test_its_end_is_warned_of_in_the_last_fortnight_or_sixth() -> None:
    long, short = Certificate(1, 0, 90 * DAY_MS), Certificate(1, 0, 6 * DAY_MS)
    assert [long.is_ending(day * DAY_MS) for day in (75, 77, 91)] == [False, True, True]
    assert [short.is_ending(day * DAY_MS) for day in (0, 4, 5.5)] == [False, False, True]  # type: ignore[arg-type]


def test_pauses_double_and_spread() -> None:
    assert [pause_s(number, 30.0, 900.0, 1.0) for number in (1, 2, 3, 10, 10_000)] == [30, 60, 120, 900, 900]
    assert pause_s(1, 30.0, 900.0, 0.0) == 15.0


# --- the loop ---------------------------------------------------------------------------------------------------------


class World:
    """A server that signs unless the test says otherwise, a broker that takes what it has signed, and two clocks."""

    def __init__(self, folder: Path, ca: Authority) -> None:
        self.folder, self.ca = folder, ca
        self.now, self.server_ms, self.offset_ms = 0.0, NOW_MS, 0
        self.answers: deque[Outcome] = deque()
        self.asked: list[bool] = []
        self.tried_out = 0
        key, request = make_key_and_request(None, DEVICE)
        response = EnrolResponse(
            device=DEVICE,
            certificate_pem=ca.device(request, DEVICE, self.server_ms, 90),
            ca_pem=ca.pem,
            broker=Broker(host="broker.example", port=8883),
            trust=Trust(release=(), director=()),
        )
        save_identity(folder / "identity", "https://fleet.example", key, response, None)
        self.credentials = Credentials(folder / "identity")
        self.begin()

    def begin(self) -> None:
        """A start of the agent."""
        self.renewal = Renewal(
            DEVICE,
            self.folder,
            self.credentials,
            self,
            clock=self.clock,
            draw=Random(7),
            try_out=self._count,
            first_s=30.0,
            most_s=900.0,
            begin=lambda work: work(),
        )
        self.renewal.start(self.now)

    def clock(self) -> int:
        return max(self.server_ms + self.offset_ms, 0)

    def _count(self) -> None:
        self.tried_out += 1

    def ask(self, now_ms: int, *, expired: bool) -> Outcome:
        self.asked.append(expired)
        if self.answers:
            return self.answers.popleft()
        kept = self.credentials.key_to_ask_with()
        key, request = make_key_and_request(kept, DEVICE)
        self.credentials.ask_with(key)
        certificate = self.ca.device(request, DEVICE, self.server_ms, 90).encode()
        try:
            check(certificate, key, self.ca.pem.encode(), DEVICE, now_ms)
        except EnrolmentError as error:
            return Failed(str(error))
        return Granted(key, certificate)

    def live(self, days: float, step_s: float = 3600.0, *, takes: bool = True) -> None:
        """The broker answers at once; `takes`: the new certificate too."""
        for _ in range(int(days * 86_400 / step_s)):
            self.now += step_s
            self.server_ms += int(step_s * 1000)
            self.renewal.tick(self.now)
            if self.credentials.on_trial is not None:
                self.renewal.connected(self.now, trial=takes, refused=not takes)

    @property
    def files(self) -> set[str]:
        return {path.name for path in (self.folder / "identity").glob("*.pem")}


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def world(tmp_path: Path, ca: Authority) -> World:
    return World(tmp_path, ca)


def test_it_renews_every_two_months_of_a_year_and_is_never_without(world: World) -> None:
    for _ in range(365):
        world.live(1.0)
        certificate = world.renewal.certificate
        assert certificate is not None
        assert not certificate.has_expired(world.server_ms)
    assert len(world.asked) in (5, 6)  # each is drawn between 55.5 and 64.5 days
    assert world.files == {"ca.pem", RENEWED}


def test_a_server_that_is_away_is_asked_again_with_the_same_key(world: World) -> None:
    world.answers.extend(Failed("the network") for _ in range(8))
    world.live(66.0)
    assert len(world.asked) == 9
    assert read_told(world.folder).standing is Standing.GOOD


def test_a_key_that_waits_for_an_operator_outlives_restarts(world: World) -> None:
    world.ask(NOW_MS, expired=False)
    world.asked.clear()
    key = world.credentials.key_to_ask_with()
    world.answers.extend(Undecided("an operator is to approve") for _ in range(10_000))
    world.live(91.0)
    assert read_told(world.folder).standing is Standing.UNDECIDED
    assert world.asked[-1]  # expired by now: signed, not by EST
    world.begin()
    world.answers.clear()
    world.live(5.0)
    assert world.renewal.certificate is not None
    assert (world.folder / "identity" / RENEWED).read_bytes().startswith(key or b"none")


def test_a_refusal_is_not_answered_by_a_storm(world: World) -> None:
    world.answers.extend(Refused("revoked") for _ in range(10_000))
    world.live(61.0, 3600.0)
    world.asked.clear()
    world.live(4.0, 10.0)
    assert len(world.asked) <= 4 * 24


def test_what_the_broker_refuses_is_given_up_and_asked_for_again(world: World) -> None:
    before = world.credentials.in_use.certificate.read_bytes()
    world.live(65.0, takes=False)
    if read_told(world.folder).standing is Standing.ASKING:
        world.live(1 / 24, takes=False)
    assert 2 <= len(world.asked) <= 4 * 10 + 2  # not a trial an hour: each cuts the session
    assert world.credentials.in_use.certificate.read_bytes() == before
    assert read_told(world.folder).standing is Standing.FAILED
    assert NEXT not in world.files
    world.live(1.0)
    assert RENEWED in world.files


@pytest.mark.parametrize("year", [1971, 2040])
def test_a_clock_in_another_year_neither_loops_nor_costs_the_identity(world: World, year: int) -> None:
    world.offset_ms = (year - 2027) * 365 * DAY_MS
    before = world.credentials.in_use.certificate.read_bytes()
    world.live(2.0, 60.0)
    # In 2040 it believes that it has expired: it asks, and cannot believe the answer, which is of 2027. It goes on with what it has.
    assert world.credentials.in_use.certificate.read_bytes() == before
    assert len(world.asked) <= (0 if year == 1971 else 2 * 86_400 / 450 + 10)
    world.offset_ms = 0  # the signed time has come
    world.live(64.0)
    assert RENEWED in world.files
    assert not world.renewal.certificate.has_expired(world.server_ms)  # type: ignore[union-attr]


def test_a_clock_that_is_months_ahead_costs_no_more_than_a_few(world: World) -> None:
    """As far as both can be believed it is always due: what is fresh is left alone for a good part of its life all the same."""
    world.offset_ms = 80 * DAY_MS
    world.live(90.0, 600.0)
    assert 2 <= len(world.asked) <= 4


def test_what_a_kill_has_left_is_taken_up(world: World) -> None:
    _ = world.ask(NOW_MS, expired=False)
    assert ASKING in world.files
    world.live(66.0)
    first = world.renewal.certificate
    # Killed between the two steps of taking it over.
    (world.folder / "identity" / "key.pem").write_bytes(b"old")
    (world.folder / "identity" / f".{NEXT}.7.tmp").write_bytes(b"half")
    world.begin()
    assert world.renewal.certificate == first
    assert world.files == {"ca.pem", RENEWED}
    assert not list((world.folder / "identity").glob(".*.tmp"))


def test_a_certificate_on_trial_that_expired_in_a_drawer_is_given_up(world: World) -> None:
    key, request = make_key_and_request(None, DEVICE)
    certificate = world.ca.device(request, DEVICE, world.server_ms, 90).encode()
    world.credentials.try_out(key, certificate)
    world.server_ms += 400 * DAY_MS
    world.begin()
    world.live(1.0)
    assert world.asked[0]
    assert RENEWED in world.files


# --- what is believed -------------------------------------------------------------------------------------------------


def test_only_a_certificate_of_the_fleet_for_this_key_and_device_and_time_is_believed(
    ca: Authority, tmp_path: Path
) -> None:
    key, request = make_key_and_request(None, DEVICE)
    other_key, _ = make_key_and_request(None, DEVICE)
    good = ca.device(request, DEVICE, NOW_MS, 90).encode()
    root = ca.pem.encode()
    check(good, key, root, DEVICE, NOW_MS)
    strange = Authority(tmp_path)
    for certificate, its_key, device, now_ms, words in (
        (good, other_key, DEVICE, NOW_MS, "another key"),
        (good, key, "press-8", NOW_MS, "not for press-8"),
        (good, key, DEVICE, NOW_MS + 90 * DAY_MS, "not good now"),
        (good, key, DEVICE, NOW_MS - 3 * DAY_MS, "not good now"),
        (strange.device(request, DEVICE, NOW_MS, 90).encode(), key, DEVICE, NOW_MS, "no certificate of"),
        (ca.issue("localhost")[1].encode(), key, DEVICE, NOW_MS, "no certificate of"),
        (b"rubbish", key, DEVICE, NOW_MS, "no certificate of"),
    ):
        with pytest.raises(EnrolmentError, match=words):
            check(certificate, its_key, root, device, now_ms)
