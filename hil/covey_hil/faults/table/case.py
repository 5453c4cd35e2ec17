"""What a named case says of itself."""

from __future__ import annotations

from typing import NamedTuple


class Case(NamedTuple):
    """`test`: its node in pytest; without a parameter all of them."""

    name: str
    broken: str
    when: str
    holds: str
    test: str


# Where the tests of more than one kind lie.
AGENT = "tests/integration/agent/test_agent_faults.py::"
CRASH = "tests/unit/agent/test_agent_crash.py::"
DEPLOY = "tests/integration/agent/test_agent_deploy.py::"
DISKS = "tests/faults/test_disks.py::"
FETCH = "tests/unit/agent/test_agent_fetch.py::"
SPOOL = "tests/unit/agent/test_agent_outbox.py::"
TUF = "tests/unit/agent_tuf/test_tuf_folder.py::"
