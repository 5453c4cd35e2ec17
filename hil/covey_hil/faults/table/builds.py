"""Builds that are bad."""

from __future__ import annotations

from covey_hil.faults.table.case import CRASH, DEPLOY, Case

_SWAP = "tests/integration/gateway/test_gateway_swap.py::"
_PLACE = "tests/integration/gateway/test_gateway_in_place.py::"

CASES: tuple[Case, ...] = (
    Case(
        "a build that does not start",
        "its runner does not get ready",
        "it is loaded",
        "tried three times, then quarantined until a newer order",
        f"{CRASH}test_a_build_that_does_not_start_is_tried_three_times",
    ),
    Case(
        "the gateway dies of a build, again and again",
        "the gateway ends in probation, three times",
        "in probation",
        "taken back, and not started again",
        f"{CRASH}test_a_build_in_whose_probation_the_gateway_dies_thrice_is_taken_back",
    ),
    Case(
        "an active build starts no more",
        "its runner does not get ready",
        "after a reboot",
        "tried three times; then the one before serves",
        f"{CRASH}test_an_active_build_that_starts_no_more_gives_way_to_the_one_before",
    ),
    Case(
        "the gateway goes back while control is dead",
        "a candidate crashes",
        "control is dead",
        "control learns of it and tells it",
        f"{CRASH}test_the_gateway_goes_back_and_control_learns_of_it_later",
    ),
    Case(
        "candidate's runner is killed",
        "SIGKILL",
        "in probation, under requests",
        "no request is lost; it is taken back",
        f"{_SWAP}test_a_candidate_that_dies_or_hangs_costs_no_request[9]",
    ),
    Case(
        "candidate's runner hangs",
        "SIGSTOP",
        "in probation, under requests",
        "no request is lost; it is taken back",
        f"{_SWAP}test_a_candidate_that_dies_or_hangs_costs_no_request[19]",
    ),
    Case(
        "a build wants too much memory",
        "out of memory",
        "it is loaded",
        "it fails alone; the old build serves",
        f"{_SWAP}test_a_build_that_wants_too_much_memory_fails_alone",
    ),
    Case(
        "a process beyond its group's memory",
        "killed by the kernel for memory",
        "at rest",
        "that process ends, and no other",
        "tests/unit/agent_gateway/test_enclosure.py::test_a_process_ends_beyond_its_groups_limit",
    ),
    Case(
        "trusted build crashes",
        "its runner ends",
        "long after probation",
        "it is started anew",
        f"{_SWAP}test_a_trusted_build_that_crashes_is_started_anew",
    ),
    Case(
        "in place: the build does not load",
        "it ends while it loads",
        "memory holds one build",
        "the old build is started again",
        f"{_PLACE}test_a_build_that_does_not_load_gives_its_place_back",
    ),
    Case(
        "runner dies in probation, real agent",
        "SIGKILL",
        "in probation",
        "taken back and told",
        f"{DEPLOY}test_a_runner_that_dies_in_probation_is_taken_back",
    ),
)
