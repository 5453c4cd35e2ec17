"""`covey device samples`: samples for labelling from devices to the server, and from there into a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from covey_client.arguments import FAILED, OK, Adder, Run, UsageError, duration
from covey_client.errors import ApiError, ClientError
from covey_client.output import Json, make_table, size
from covey_client.samples import Unpacked
from covey_client.waiting import wait

_COLUMNS = ["device", "state", "fetched", "of", "left out", "size", "why"]


def add(devices: Adder) -> None:
    samples = devices.command(
        "samples",
        _samples,
        "fetch samples for labelling from a device, or from a group's devices, that let them leave",
        epilog="The device must run with --capture-share and --capture-send. Samples may show people: each fetch, download and\n"
        "deletion is in the audit log, and the server forgets them after the days of its setting samples_keep_days.",
    )
    samples.add_argument("device", nargs="?")
    samples.add_argument("--group", help="of this group's devices, those that are online")
    samples.add_argument("--model", help="only this model's")
    samples.add_argument("--limit", type=int, default=100, help="the newest so many of each device (%(default)s)")
    samples.add_argument("--to", type=Path, metavar="DIR", help="bring what the server has then into this folder")
    samples.add_argument("--here", action="store_true", help="ask no device: what the server has already")
    samples.add_argument("--delete", action="store_true", help="delete them on the server; devices keep theirs")
    samples.add_argument("--timeout", type=duration, default=600.0, help="how long to wait for the devices (10m)")


def _samples(run: Run) -> int:
    options = run.options
    if (options.device is None) == (options.group is None):
        raise UsageError("name either a device or --group GROUP")
    if not 1 <= options.limit <= 5000:
        raise UsageError("--limit is between 1 and 5000")
    if options.delete:
        gone = run.client.samples.delete(options.device, group=options.group, model=options.model)
        run.out.result({"deleted": gone}, lambda: run.out.say(f"{gone} samples were deleted on the server"))
        return OK
    made: Json = {"items": [], "skipped": {}}
    if not options.here:
        made = _fetched(run)
    if options.to is not None:
        _bring(run, made)
    elif options.here:
        found = run.client.samples.list(options.device, group=options.group, model=options.model, limit=options.limit)
        made = {"samples": found}
    run.out.result(made, lambda: _show(run, made))
    bad = any(one["state"] != "done" for one in made.get("items", []))
    return FAILED if bad or (made.get("skipped") and not made.get("items")) else OK


def _fetched(run: Run) -> Json:
    """All fetches as they have ended."""
    options, client = run.options, run.client.samples
    made = client.fetch(options.device, group=options.group, model=options.model, limit=options.limit)

    def look(update: Callable[..., None]) -> list[Json]:
        found = [client.fetch_state(one["id"]) for one in made["items"]]
        done = sum(one["fetched"] for one in found)
        of = sum(one["found"] for one in found)
        update(make_table(_COLUMNS, [_row(one) for one in found]), f"{done} of {of} samples")
        return found

    with run.out.live() as update:
        made["items"] = wait(
            lambda: look(update),
            lambda found: all(one["state"] in ("done", "failed") for one in found),
            timeout_s=options.timeout,
        )
    return made


def _bring(run: Run, made: Json) -> None:
    options = run.options
    limit = min(10_000, options.limit * max(1, len(made["items"])) if options.group else options.limit)
    try:
        came = run.client.samples.download(
            options.to, options.device, group=options.group, model=options.model, limit=limit
        )
    except ApiError as error:
        if error.code != "no_samples":
            raise
        came = Unpacked(0, 0)
    except OSError as error:
        raise ClientError(f"{options.to} cannot be written: {error.strerror or error}") from error
    made |= {"folder": str(options.to), "new": came.new, "there": came.there}


def _show(run: Run, made: Json) -> None:
    if made.get("items"):
        run.out.table(_COLUMNS, [_row(one) for one in made["items"]])
    for device, why in sorted(made.get("skipped", {}).items()):
        run.out.note(f"covey: {device} is left out: {why}")
    if "samples" in made:
        columns = ["file", "version", "target", "size"]
        rows = [[one["file"], one["version"], one["target"], size(one["size"])] for one in made["samples"]]
        run.out.table(columns, rows)
    if "folder" in made:
        run.out.say(f"{made['folder']}: {made['new']} new, {made['there']} were there before")


def _row(one: Json) -> list[object]:
    why = one["detail"] if one["reason"] == "none" else f"{one['reason']}: {one['detail']}"
    return [one["device"], one["state"], one["fetched"], one["found"], one["left_out"] or "-", size(one["bytes"]), why]
