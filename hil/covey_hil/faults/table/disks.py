"""Disks that are full, read-only or refuse."""

from __future__ import annotations

from covey_hil.faults.table.case import AGENT, CRASH, DISKS, FETCH, SPOOL, TUF, Case

CASES: tuple[Case, ...] = (
    Case(
        "disk full in mid-deployment",
        "ENOSPC (tmpfs of 8 MB)",
        "while a build is fetched",
        "told as no_space; requests are answered; followed once there is room",
        f"{AGENT}test_a_full_disk_is_told_and_overcome",
    ),
    Case(
        "disk full at the start",
        "ENOSPC (tmpfs of 8 MB)",
        "the device is switched on",
        "the verified build serves; orders are followed once there is room",
        f"{DISKS}test_a_start_on_a_full_disk_serves",
    ),
    Case(
        "no inode left",
        "ENOSPC for new files (tmpfs with 200 inodes)",
        "in a deployment and at a start",
        "the verified build serves; the order is followed once there are some",
        f"{DISKS}test_no_inode_left",
    ),
    Case(
        "disk turns read-only",
        "ext4 after an error of its own",
        "the agent runs",
        "requests are answered; after a repair the order is followed",
        f"{DISKS}test_a_disk_that_turns_read_only",
    ),
    Case(
        "disk read-only at the start",
        "EROFS",
        "the device is switched on",
        "the verified build serves; orders are followed once it can be written",
        f"{DISKS}test_a_start_on_a_read_only_disk_serves",
    ),
    Case(
        "file larger than the disk takes",
        "EFBIG (RLIMIT_FSIZE)",
        "while a build is fetched",
        "failed as no_space, the old build serves; tried again later",
        f"{AGENT}test_a_file_too_large_for_the_disk_is_a_reason_and_not_a_crash",
    ),
    Case(
        "no room for a build",
        "too little free space",
        "an order comes",
        "refused before a byte is fetched; tried again when there is room",
        f"{CRASH}test_no_space_is_refused_and_tried_again_when_there_is_some",
    ),
    Case(
        "no room for a build's file",
        "ENOSPC",
        "a fetch begins",
        "found out before anything is fetched; no half-made file",
        f"{FETCH}test_a_full_disk_is_found_out_before_anything_is_fetched",
    ),
    Case(
        "state cannot be stored",
        "ENOSPC at every write of the state",
        "in a swap",
        "nothing is lost; it goes on when the disk takes it",
        f"{CRASH}test_a_disk_that_takes_no_state_delays_and_loses_nothing",
    ),
    Case(
        "spool cannot be written",
        "the disk takes nothing",
        "reports come",
        "they are held in memory, and stored later",
        f"{SPOOL}test_what_the_disk_does_not_take_is_held",
    ),
    Case(
        "metadata cannot be stored",
        "the disk takes nothing",
        "trusted metadata are replaced",
        "said as storage_error; the older ones stay",
        f"{TUF}test_a_disk_that_refuses_is_said",
    ),
)
