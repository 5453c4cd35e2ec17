"""What time does: the agent is replaced, the device's identity ends, clocks are wrong."""

from __future__ import annotations

from covey_hil.faults.table.case import Case

_OLDER = "tests/faults/test_older_state.py::"
_CLOCK = "tests/unit/agent/test_agent_clock.py::"
_RENEWAL = "tests/unit/agent/test_agent_renewal.py::"
_IDENTITY = "tests/integration/identity/"

CASES: tuple[Case, ...] = (
    # --- the agent is replaced
    Case(
        "older agent's probation, gateway alive",
        "the first agent was killed and replaced",
        "in probation",
        "it goes on; the build becomes active; the counter stays",
        f"{_OLDER}test_a_probation_goes_on_under_the_gateway_that_lived_through_the_update",
    ),
    Case(
        "older agent's probation, device rebooted",
        "the first agent was killed and replaced",
        "in probation",
        "the verified build serves first",
        f"{_OLDER}test_without_its_gateway_the_verified_build_serves_first",
    ),
    Case(
        "older agent's spool",
        "the first agent was killed and replaced",
        "three reports are not acknowledged",
        "they are sent under their numbers; the next number follows; no half-made file is left",
        f"{_OLDER}test_what_was_spooled_is_told_under_its_numbers",
    ),
    Case(
        "older agent's device gets an order",
        "the first agent was replaced",
        "an order comes",
        "it is followed",
        f"{_OLDER}test_the_next_order_is_followed",
    ),
    Case(
        "the update of the agent is taken back",
        "a newer agent's state",
        "under an older agent",
        "what it does not know is passed over",
        f"{_OLDER}test_what_a_newer_agent_adds_is_passed_over",
    ),
    # --- the device's identity
    Case(
        "certificate ends, no operator near",
        "time: certificates of 20 s",
        "the agent runs",
        "it renews in time, each on a new key; the session goes on; the gateway is the same process",
        f"{_IDENTITY}test_renewal.py::test_a_device_outlives_its_certificates_by_renewing_them_itself",
    ),
    Case(
        "broker does not take the new certificate",
        "a certificate of another authority",
        "on trial",
        "the one before is shown again, and stays; told",
        f"{_IDENTITY}test_renewal.py::test_what_the_broker_refuses_is_given_up_and_the_old_one_stays",
    ),
    Case(
        "control killed while an operator thinks",
        "SIGKILL of control; the certificate has expired",
        "the request waits for an approval",
        "the same key asks again; approved, it connects",
        f"{_IDENTITY}test_coming_back.py::test_an_operator_lets_it_in_again",
    ),
    Case(
        "a year in a drawer",
        "time: certificate, root and metadata on the device have expired, root was changed three times",
        "the device is switched on",
        "what it has serves; approved, it connects and follows an order of today",
        f"{_IDENTITY}test_coming_back.py::test_a_device_offline_for_a_year_comes_back",
    ),
    Case(
        "halves of a renewal",
        "files as kills leave them",
        "before a start",
        "the newest pair that has connected is in use; nothing else is left",
        f"{_RENEWAL}test_what_a_kill_has_left_is_taken_up",
    ),
    *(
        Case(
            f"clock at {year}, renewal",
            "the device's clock",
            "the agent runs",
            "no loop, no identity lost; renewed when the clock is right",
            f"{_RENEWAL}test_a_clock_in_another_year_neither_loops_nor_costs_the_identity[{year}]",
        )
        for year in (1971, 2040)
    ),
    # --- clocks
    Case(
        "clock at 1971",
        "the device's clock",
        "an order of today comes",
        "it is followed",
        f"{_CLOCK}test_a_clock_at_1971_follows_orders_of_today",
    ),
    Case(
        "clock at 1971, old order",
        "the device's clock",
        "an order that has expired comes",
        "it is refused",
        f"{_CLOCK}test_at_1971_an_order_that_has_expired_stays_expired",
    ),
    Case(
        "clock at 2040",
        "the device's clock",
        "an order comes, then the clock is right",
        "refused as expired, the old build serves; then followed",
        f"{_CLOCK}test_a_clock_at_2040_refuses_and_says_why_and_follows_when_it_is_right",
    ),
    Case(
        "clock at 2040 and back",
        "the device's clock",
        "between two orders",
        "true orders are followed",
        f"{_CLOCK}test_2040_and_back_leaves_no_floor_that_refuses_true_orders",
    ),
    Case(
        "clock jumps ahead",
        "by a day",
        "in probation",
        "probation is not cut short",
        f"{_CLOCK}test_a_clock_that_jumps_ahead_in_probation",
    ),
    Case(
        "clock is set back",
        "by a day",
        "in probation",
        "probation ends in its time",
        f"{_CLOCK}test_a_clock_that_is_set_back_in_probation",
    ),
    Case(
        "clock is set back, gateway goes back",
        "by a day",
        "a candidate crashes",
        "control sees that the gateway went back",
        f"{_CLOCK}test_a_gateways_way_back_is_seen_though_the_clock_was_set_back",
    ),
    Case(
        "clock is set back before a retry",
        "by a day",
        "a deployment waits to be tried again",
        "it is tried again",
        f"{_CLOCK}test_a_retry_comes_though_the_clock_was_set_back",
    ),
    Case(
        "spool lost, clock at 1971",
        "the spool and the clock",
        "at a start",
        "numbers go on beyond the old ones",
        f"{_CLOCK}test_a_new_spools_numbers_do_not_fall_behind_a_clock_that_was_set_back",
    ),
    Case(
        "clock is set back under a lock",
        "the device's clock",
        "an application holds the device's lock",
        "it ends all the same",
        "tests/unit/agent_gateway/test_gateway_locks.py::test_a_clock_that_is_set_back_does_not_lock_for_ever",
    ),
)
