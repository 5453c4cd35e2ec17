"""The named cases: what is broken, when, what must hold, and the test that does it with real parts."""

from __future__ import annotations

from typing import NamedTuple


class Case(NamedTuple):
    """`test`: its node in pytest; without a parameter all of them."""

    name: str
    broken: str
    when: str
    holds: str
    test: str


_FLEET = "tests/faults/test_kill_any_process.py::test_the_fleet_ends_in_the_right_state"
_DISKS = "tests/faults/test_disks.py::"
_RESTART = "tests/faults/test_gateway_restart.py::"
_OLDER = "tests/faults/test_older_state.py::"
_POWER = "tests/faults/test_sweep.py::test_a_power_cut_as_soon_as_a_state_is_stored"
_AGENT = "tests/integration/agent/test_agent_faults.py::"
_DEPLOY = "tests/integration/agent/test_agent_deploy.py::"
_SWAP = "tests/integration/gateway/test_gateway_swap.py::"
_PLACE = "tests/integration/gateway/test_gateway_in_place.py::"
_CRASH = "tests/unit/agent/test_agent_crash.py::"
_CLOCK = "tests/unit/agent/test_agent_clock.py::"
_SCRUB = "tests/unit/agent/test_agent_scrub.py::"
_STORE = "tests/unit/agent/test_agent_store.py::"
_SPOOL = "tests/unit/agent/test_agent_outbox.py::"
_FETCH = "tests/unit/agent/test_agent_fetch.py::"
_TUF = "tests/unit/agent_tuf/test_tuf_folder.py::"

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
            f"{_AGENT}test_killed_as_soon_as_it_reports_a_state[{state}]",
        )
        for state in _REPORTED
    ),
    Case(
        "control killed in mid-download",
        "SIGKILL of control",
        "half of a build is here",
        "no verified block is fetched again but those in flight",
        f"{_AGENT}test_killed_in_mid_download_it_fetches_only_what_is_missing",
    ),
    Case(
        "all killed in probation",
        "SIGKILL of control, gateway and runners",
        "in probation",
        "the new build is active in the end",
        f"{_AGENT}test_everything_killed_at_once_as_by_a_power_cut",
    ),
    Case(
        "control killed, gateway lives",
        "SIGKILL of control",
        "at rest",
        "control finds the same gateway and runner again",
        f"{_AGENT}test_control_finds_the_living_gateway_again",
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
        f"{_AGENT}test_a_gateway_that_is_killed_comes_back_with_the_active_build",
    ),
    # --- kills at every step, power cuts at every state
    *(
        Case(
            f"{words}, control killed at every step",
            "control ends",
            "at each write and each call to the gateway, one after the other",
            "old or new is active and serves; the order is followed in the end",
            f"{_CRASH}test_killed_at_every_step[{name}-control]",
        )
        for name, words in _STEPS.items()
    ),
    *(
        Case(
            f"{words}, all killed at every step",
            "control and gateway end",
            "at each write and each call to the gateway, one after the other",
            "old or new is active and serves; the order is followed in the end",
            f"{_CRASH}test_killed_at_every_step[{name}-control and gateway]",
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
        f"{_TUF}test_a_power_cut_between_any_two_writes_leaves_a_state_that_goes_on",
    ),
    Case(
        "metadata: what was forgotten stays so",
        "power",
        "after a timestamp was removed",
        "it does not come back",
        f"{_TUF}test_the_forgotten_timestamp_does_not_come_back_after_a_power_cut",
    ),
    # --- disks
    Case(
        "disk full in mid-deployment",
        "ENOSPC (tmpfs of 8 MB)",
        "while a build is fetched",
        "told as no_space; requests are answered; followed once there is room",
        f"{_AGENT}test_a_full_disk_is_told_and_overcome",
    ),
    Case(
        "disk full at the start",
        "ENOSPC (tmpfs of 8 MB)",
        "the device is switched on",
        "the verified build serves; orders are followed once there is room",
        f"{_DISKS}test_a_start_on_a_full_disk_serves",
    ),
    Case(
        "no inode left",
        "ENOSPC for new files (tmpfs with 200 inodes)",
        "in a deployment and at a start",
        "the verified build serves; the order is followed once there are some",
        f"{_DISKS}test_no_inode_left",
    ),
    Case(
        "disk turns read-only",
        "ext4 after an error of its own",
        "the agent runs",
        "requests are answered; after a repair the order is followed",
        f"{_DISKS}test_a_disk_that_turns_read_only",
    ),
    Case(
        "disk read-only at the start",
        "EROFS",
        "the device is switched on",
        "the verified build serves; orders are followed once it can be written",
        f"{_DISKS}test_a_start_on_a_read_only_disk_serves",
    ),
    Case(
        "file larger than the disk takes",
        "EFBIG (RLIMIT_FSIZE)",
        "while a build is fetched",
        "failed as no_space, the old build serves; tried again later",
        f"{_AGENT}test_a_file_too_large_for_the_disk_is_a_reason_and_not_a_crash",
    ),
    Case(
        "no room for a build",
        "too little free space",
        "an order comes",
        "refused before a byte is fetched; tried again when there is room",
        f"{_CRASH}test_no_space_is_refused_and_tried_again_when_there_is_some",
    ),
    Case(
        "no room for a build's file",
        "ENOSPC",
        "a fetch begins",
        "found out before anything is fetched; no half-made file",
        f"{_FETCH}test_a_full_disk_is_found_out_before_anything_is_fetched",
    ),
    Case(
        "state cannot be stored",
        "ENOSPC at every write of the state",
        "in a swap",
        "nothing is lost; it goes on when the disk takes it",
        f"{_CRASH}test_a_disk_that_takes_no_state_delays_and_loses_nothing",
    ),
    Case(
        "spool cannot be written",
        "the disk takes nothing",
        "reports come",
        "they are held in memory, and stored later",
        f"{_SPOOL}test_what_the_disk_does_not_take_is_held",
    ),
    Case(
        "metadata cannot be stored",
        "the disk takes nothing",
        "trusted metadata are replaced",
        "said as storage_error; the older ones stay",
        f"{_TUF}test_a_disk_that_refuses_is_said",
    ),
    # --- what lies on disk is not what was written
    Case(
        "one bit of the active build",
        "a bit of a blob is flipped",
        "while it serves",
        "found by the daily scrub; only that file is fetched again; its runner serves on",
        f"{_SCRUB}test_one_bit_of_the_active_build_is_found_and_fetched_again",
    ),
    Case(
        "blob of the active build is gone",
        "the file is removed",
        "while it serves",
        "found by the daily scrub and fetched again",
        f"{_SCRUB}test_a_blob_that_is_gone_is_fetched_again",
    ),
    Case(
        "previous build rots",
        "a bit of a blob is flipped",
        "at rest",
        "found by the daily scrub; it is no way back any longer",
        f"{_SCRUB}test_a_damaged_build_to_go_back_to_is_given_up",
    ),
    Case(
        "restart while a file is mended",
        "control ends",
        "a damaged file is fetched again",
        "it is fetched; the build stays active",
        f"{_SCRUB}test_a_restart_in_the_middle_of_mending",
    ),
    Case(
        "active build rots, gateway new",
        "a blob is overwritten",
        "before the gateway is started anew",
        "it is not loaded; the one before serves; it is fetched again",
        f"{_CRASH}test_an_active_build_that_rotted_is_not_loaded",
    ),
    Case(
        "only build rots, gateway new",
        "a blob is overwritten",
        "before the device is started anew",
        "it is not loaded, fetched again, and serves",
        f"{_CRASH}test_an_only_build_that_rotted_is_fetched_again",
    ),
    Case(
        "blob rots under a real gateway",
        "a blob is overwritten, the gateway killed",
        "at rest",
        "told as digest_mismatch; fetched again; right answers",
        f"{_DISKS}test_a_blob_that_rots_under_a_living_gateway_is_fetched_when_that_is_gone",
    ),
    Case(
        "state, spool and status are rubbish",
        "four files are overwritten",
        "before a start",
        "the assignment comes again and serves; no byte is fetched again",
        f"{_AGENT}test_damaged_state_files_do_not_stop_the_agent",
    ),
    Case(
        "one copy of the state is damaged",
        "a file is overwritten",
        "before a start",
        "the other copy counts; nothing is lost",
        f"{_STORE}test_one_damaged_copy_loses_nothing_and_two_begin_anew",
    ),
    Case(
        "the spool is damaged",
        "the file is overwritten",
        "before a start",
        "set aside; no number is used twice",
        f"{_SPOOL}test_a_damaged_spool_is_set_aside",
    ),
    Case(
        "fetched bytes rot before they are adopted",
        "a file in fetch/ is changed",
        "between two starts",
        "found out; only its bad blocks are fetched",
        f"{_FETCH}test_a_file_that_rotted_on_disk_is_found_out_and_only_its_bad_blocks_fetched",
    ),
    Case(
        "a bitmap of the wrong length",
        "a file in fetch/ is cut short",
        "between two starts",
        "blocks are judged by their digests",
        f"{_FETCH}test_a_bitmap_of_the_wrong_length_is_no_bitmap",
    ),
    Case(
        "a kept build cannot be read",
        "its manifest is overwritten",
        "before garbage collection",
        "no blob is collected",
        f"{_STORE}test_no_blob_is_collected_while_a_protected_build_cannot_be_read",
    ),
    Case(
        "trusted metadata are damaged",
        "files are overwritten",
        "before an update",
        "fetched again",
        f"{_TUF}test_files_that_are_damaged_are_fetched_again",
    ),
    Case(
        "a lender of blocks is damaged",
        "a file of another build is changed",
        "its blocks are reused",
        "nothing false is taken over",
        "tests/unit/agent/test_agent_reuse.py::test_a_damaged_file_lends_nothing_false",
    ),
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
    # --- builds that are bad
    Case(
        "a build that does not start",
        "its runner does not get ready",
        "it is loaded",
        "tried three times, then quarantined until a newer order",
        f"{_CRASH}test_a_build_that_does_not_start_is_tried_three_times",
    ),
    Case(
        "the gateway dies of a build, again and again",
        "the gateway ends in probation, three times",
        "in probation",
        "taken back, and not started again",
        f"{_CRASH}test_a_build_in_whose_probation_the_gateway_dies_thrice_is_taken_back",
    ),
    Case(
        "an active build starts no more",
        "its runner does not get ready",
        "after a reboot",
        "tried three times; then the one before serves",
        f"{_CRASH}test_an_active_build_that_starts_no_more_gives_way_to_the_one_before",
    ),
    Case(
        "the gateway goes back while control is dead",
        "a candidate crashes",
        "control is dead",
        "control learns of it and tells it",
        f"{_CRASH}test_the_gateway_goes_back_and_control_learns_of_it_later",
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
        f"{_DEPLOY}test_a_runner_that_dies_in_probation_is_taken_back",
    ),
    # --- the network
    Case(
        "broker late, then gone",
        "no broker",
        "at a start",
        "the agent waits and goes on",
        f"{_AGENT}test_a_broker_that_comes_late_and_goes_away",
    ),
    Case(
        "blocks cut short, changed, lost",
        "the network",
        "while a build is fetched",
        "dropped and asked for again",
        f"{_AGENT}test_truncated_and_corrupt_blocks",
    ),
    Case(
        "records are not acknowledged",
        "the server is silent",
        "reports and telemetry come",
        "they are spooled and sent again; the server counts each once",
        f"{_DEPLOY}test_reports_are_spooled_until_they_are_acknowledged",
    ),
)
