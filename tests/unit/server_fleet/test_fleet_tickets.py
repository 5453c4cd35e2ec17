"""Tickets to files by HTTPS: for one build, for a while, by this server."""

from __future__ import annotations

from pathlib import Path

import pytest

from covey_server.errors import Unauthorized
from covey_server.fleet.tickets import Tickets


def test_a_ticket_names_its_build_until_it_expires(tmp_path: Path) -> None:
    now = [1_000_000]
    tickets = Tickets.load_or_create(tmp_path / "keys" / "delivery.key", lambda: now[0], 60)
    ticket = tickets.issue("ab" * 32)
    again = Tickets.load_or_create(tmp_path / "keys" / "delivery.key", lambda: now[0], 60)
    assert again.build_of(ticket) == "ab" * 32
    now[0] += 60_000
    with pytest.raises(Unauthorized, match="expired"):
        again.build_of(ticket)


@pytest.mark.parametrize("other", ["", "x", "1.2.3", "é.é.é", "99999999999." + "ab" * 32 + "." + "0" * 64])
def test_what_is_no_ticket(tmp_path: Path, other: str) -> None:
    tickets = Tickets.load_or_create(tmp_path / "key", lambda: 0, 60)
    with pytest.raises(Unauthorized):
        tickets.build_of(other)


def test_a_changed_ticket_is_none(tmp_path: Path) -> None:
    tickets = Tickets.load_or_create(tmp_path / "key", lambda: 0, 60)
    expires, build, mac = tickets.issue("ab" * 32).split(".")
    for changed in (f"{int(expires) + 1}.{build}.{mac}", f"{expires}.{'cd' * 32}.{mac}"):
        with pytest.raises(Unauthorized):
            tickets.build_of(changed)
    assert (tmp_path / "key").stat().st_mode & 0o077 == 0
