"""Processes that are killed, and power that is cut."""

from __future__ import annotations

from covey_hil.faults.table.case import AGENT, CRASH, TUF, Case

_FLEET = "tests/faults/test_kill_any_process.py::test_the_fleet_ends_in_the_right_state"
_RESTART = "tests/faults/test_gateway_restart.py::"
_POWER = "tests/faults/test_sweep.py::test_a_power_cut_as_soon_as_a_state_is_stored"
_REPORTED = ("assigned", "verifying", "staged", "warming", "probation", "active")
_STORED = ("assigned", "fetching", "verifying", "staged", "warming", "probation", "active")
_STEPS = {"first": "the first install", "swap": "a swap", "back": "an order to go back", "remove": "a removal"}

CASES: tuple[Case, ...] = (
    # --- processes of a real fleet
    *(
        Case(
            f"{what} killed in a deployment",
            f"SIGKILL of the {what}",
            "an order is being followed",
            "the server's record says active; the counter has grown; the audit log is whole",
            f"{_FLEET}[kill_{what}]",
        )
        for what in ("server", "broker", "control", "gateway", "runner")
    ),
    Case(
        "device loses its power in a deployment",
        "SIGKILL of every process of the device",
        "an order is being followed",
        "the server's record says active; the counter has grown",
        f"{_FLEET}[power_cut]",
    ),
    Case(
        "runner killed at rest",
        "SIGKILL of the runner",
        "nothing is under way",
        "the gateway starts another, and stays",
        "tests/faults/test_kill_any_process.py::test_a_dead_runner_is_replaced",
    ),
    # --- kills of a real agent
    *(
        Case(
            f"control killed when it reports {state}",
            "SIGKILL of control",
            f"the server has just heard {state}",
            "the old or the new build answers meanwhile; the new one is active in the end",
            f"{AGENT}test_killed_as_soon_as_it_reports_a_state[{state}]",
        )
        for state in _REPORTED
    ),
    Case(
        "control killed in mid-download",
        "SIGKILL of control",
        "half of a build is here",
        "no verified block is fetched again but those in flight",
        f"{AGENT}test_killed_in_mid_download_it_fetches_only_what_is_missing",
    ),
    Case(
        "all killed in probation",
        "SIGKILL of control, gateway and runners",
        "in probation",
        "the new build is active in the end",
        f"{AGENT}test_everything_killed_at_once_as_by_a_power_cut",
    ),
    Case(
        "control killed, gateway lives",
        "SIGKILL of control",
        "at rest",
        "control finds the same gateway and runner again",
        f"{AGENT}test_control_finds_the_living_gateway_again",
    ),
    Case(
        "control dead, requests go on",
        "SIGKILL of control",
        "under requests",
        "250 of 250 requests are answered right",
        f"{_RESTART}test_while_control_is_dead_every_request_is_answered",
    ),
    Case(
        "gateway killed: back within a second",
        "SIGKILL of the gateway and its runners",
        "at rest",
        "a right answer within 1 s",
        f"{_RESTART}test_a_killed_gateway_answers_again_within_a_second",
    ),
    Case(
        "gateway killed: the active build again",
        "SIGKILL of the gateway and its runners",
        "at rest",
        "the build that was active serves",
        f"{AGENT}test_a_gateway_that_is_killed_comes_back_with_the_active_build",
    ),
    # --- kills at every step, power cuts at every state
    *(
        Case(
            f"{words}, control killed at every step",
            "control ends",
            "at each write and each call to the gateway, one after the other",
            "old or new is active and serves; the order is followed in the end",
            f"{CRASH}test_killed_at_every_step[{name}-control]",
        )
        for name, words in _STEPS.items()
    ),
    *(
        Case(
            f"{words}, all killed at every step",
            "control and gateway end",
            "at each write and each call to the gateway, one after the other",
            "old or new is active and serves; the order is followed in the end",
            f"{CRASH}test_killed_at_every_step[{name}-control and gateway]",
        )
        for name, words in _STEPS.items()
    ),
    *(
        Case(
            f"power cut as soon as {state} is stored",
            "power; ext4 keeps what had reached the disk",
            f"the book holds {state}, nothing of it is done",
            "the book is not older than that; builds are whole; the swap ends well",
            f"{_POWER}[{state}]",
        )
        for state in _STORED
    ),
    Case(
        "metadata: power cut between any two writes",
        "power",
        "trusted metadata are replaced",
        "an older trusted state or the newer one, never a wrong one",
        f"{TUF}test_a_power_cut_between_any_two_writes_leaves_a_state_that_goes_on",
    ),
    Case(
        "metadata: what was forgotten stays so",
        "power",
        "after a timestamp was removed",
        "it does not come back",
        f"{TUF}test_the_forgotten_timestamp_does_not_come_back_after_a_power_cut",
    ),
)
