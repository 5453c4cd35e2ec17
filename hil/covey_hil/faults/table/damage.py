"""What lies on disk is not what was written."""

from __future__ import annotations

from covey_hil.faults.table.case import AGENT, CRASH, DISKS, FETCH, SPOOL, TUF, Case

_SCRUB = "tests/unit/agent/test_agent_scrub.py::"
_STORE = "tests/unit/agent/test_agent_store.py::"

CASES: tuple[Case, ...] = (
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
        f"{CRASH}test_an_active_build_that_rotted_is_not_loaded",
    ),
    Case(
        "only build rots, gateway new",
        "a blob is overwritten",
        "before the device is started anew",
        "it is not loaded, fetched again, and serves",
        f"{CRASH}test_an_only_build_that_rotted_is_fetched_again",
    ),
    Case(
        "blob rots under a real gateway",
        "a blob is overwritten, the gateway killed",
        "at rest",
        "told as digest_mismatch; fetched again; right answers",
        f"{DISKS}test_a_blob_that_rots_under_a_living_gateway_is_fetched_when_that_is_gone",
    ),
    Case(
        "state, spool and status are rubbish",
        "four files are overwritten",
        "before a start",
        "the assignment comes again and serves; no byte is fetched again",
        f"{AGENT}test_damaged_state_files_do_not_stop_the_agent",
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
        f"{SPOOL}test_a_damaged_spool_is_set_aside",
    ),
    Case(
        "fetched bytes rot before they are adopted",
        "a file in fetch/ is changed",
        "between two starts",
        "found out; only its bad blocks are fetched",
        f"{FETCH}test_a_file_that_rotted_on_disk_is_found_out_and_only_its_bad_blocks_fetched",
    ),
    Case(
        "a bitmap of the wrong length",
        "a file in fetch/ is cut short",
        "between two starts",
        "blocks are judged by their digests",
        f"{FETCH}test_a_bitmap_of_the_wrong_length_is_no_bitmap",
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
        f"{TUF}test_files_that_are_damaged_are_fetched_again",
    ),
    Case(
        "a lender of blocks is damaged",
        "a file of another build is changed",
        "its blocks are reused",
        "nothing false is taken over",
        "tests/unit/agent/test_agent_reuse.py::test_a_damaged_file_lends_nothing_false",
    ),
)
