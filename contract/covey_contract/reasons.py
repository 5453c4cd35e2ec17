"""Why something was refused, failed or taken back: one code for each reason, the same on the device, in the API and in the console.

A reason is always sent with a `detail`, a sentence for people; programs decide by the code alone.
"""

from __future__ import annotations

from covey_contract.strenum import StrEnum


class Reason(StrEnum):
    """The reason of a lifecycle transition, a refusal or a failed command."""

    NONE = "none"

    # Refused: the order itself is not to be followed.
    BAD_SIGNATURE = "bad_signature"
    BAD_MESSAGE = "bad_message"
    WRONG_DEVICE = "wrong_device"
    OLD_COUNTER = "old_counter"
    EXPIRED = "expired"
    WRONG_MANIFEST = "wrong_manifest"
    WRONG_HARDWARE = "wrong_hardware"
    NO_RUNTIME = "no_runtime"
    NO_SPACE = "no_space"
    NO_MEMORY = "no_memory"
    QUARANTINED = "quarantined"
    PINNED = "pinned"

    # Refused: the repository of releases does not vouch for the build, or its metadata is not to be believed.
    NOT_RELEASED = "not_released"
    OLD_RELEASE = "old_release"
    METADATA_INVALID = "metadata_invalid"
    METADATA_UNSIGNED = "metadata_unsigned"
    METADATA_EXPIRED = "metadata_expired"
    METADATA_ROLLBACK = "metadata_rollback"
    METADATA_MISMATCH = "metadata_mismatch"
    METADATA_TOO_LARGE = "metadata_too_large"
    METADATA_UNAVAILABLE = "metadata_unavailable"

    # Staged, and not loaded yet: a condition of the order does not hold (`WAITING`).
    WAITING_FOR_TIME = "waiting_for_time"
    WAITING_FOR_WINDOW = "waiting_for_window"
    WAITING_FOR_POWER = "waiting_for_power"
    WAITING_FOR_IDLE = "waiting_for_idle"
    LOCKED = "locked"

    # Failed before it served.
    FETCH_FAILED = "fetch_failed"
    DIGEST_MISMATCH = "digest_mismatch"
    EXTRA_FILE = "extra_file"
    STORAGE_ERROR = "storage_error"
    LOAD_FAILED = "load_failed"
    LOAD_TIMEOUT = "load_timeout"
    GOLDEN_MISMATCH = "golden_mismatch"

    # Taken back on the device, in probation.
    RUNNER_CRASHED = "runner_crashed"
    RUNNER_HUNG = "runner_hung"
    INFERENCE_ERRORS = "inference_errors"
    BAD_OUTPUT = "bad_output"
    TOO_SLOW = "too_slow"
    PROBATION_INTERRUPTED = "probation_interrupted"

    # Decided by people or by a campaign.
    SUPERSEDED = "superseded"
    TIMED_OUT = "timed_out"
    OPERATOR = "operator"
    ROLLED_BACK = "rolled_back"

    # Commands and ends of the agent.
    UNKNOWN_COMMAND = "unknown_command"
    NOT_ALLOWED = "not_allowed"
    NOT_THERE = "not_there"
    INTERNAL = "internal"
    STARTED = "started"
    POWER_LOSS = "power_loss"
    STOPPED = "stopped"


# A deployment that is staged with one of these waits; with any other it is in progress.
WAITING = frozenset(
    {
        Reason.WAITING_FOR_TIME,
        Reason.WAITING_FOR_WINDOW,
        Reason.WAITING_FOR_POWER,
        Reason.WAITING_FOR_IDLE,
        Reason.LOCKED,
    }
)
