"""`covey campaign …`"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from covey_client.api import CampaignAction
from covey_client.arguments import FAILED, OK, TIMED_OUT, Adder, Handler, Run, duration
from covey_client.errors import ClientError
from covey_client.output import Json, ago, make_table, moment, plain
from covey_client.waiting import TimedOut, wait

MAX_FILE_BYTES = 1 << 20
STATES = (
    "planned",
    "queued",
    "running",
    "paused",
    "halted",
    "rolling_back",
    "rolled_back",
    "done",
    "aborted",
    "failed",
)
# After these nothing else comes.
ENDED = frozenset({"rolled_back", "done", "aborted", "failed"})
# What can still come of a campaign that halted.
AFTER_HALTED = frozenset({"halted", "rolling_back", "rolled_back", "aborted", "failed"})
_SUFFIXES = (".yaml", ".yml", ".json")
_DAY_S = 86_400.0


def add(commands: Adder) -> None:
    campaigns = commands.family("campaign", "campaigns: staged rollouts of a version")

    plan = campaigns.command("plan", _plan, "show what a campaign file would do; moves nothing")
    plan.add_argument("file", help="the campaign file (YAML or JSON); - for standard input")

    start = campaigns.command("start", _start, "start a campaign from its file, or one that is planned by its name")
    start.add_argument("campaign", metavar="FILE|NAME")
    start.add_argument("--watch", action="store_true", help="then watch it until it is done")
    start.add_argument("--timeout", type=duration, default=_DAY_S, help="for --watch (default 1d); exit code 3")

    create = campaigns.command(
        "create", _create, "make a campaign from its file and leave it planned, to be approved or started"
    )
    create.add_argument("file", help="the campaign file (YAML or JSON); - for standard input")

    clone = campaigns.command("clone", _clone, "make a campaign from the file of another; it stays planned")
    clone.add_argument("campaign")
    clone.add_argument("name", help="of the new campaign")
    clone.add_argument("--version", help="roll out this version instead of the one that the file names")
    clone.add_argument("--start", action="store_true", help="and start it")

    campaigns.command("list", _list, "list campaigns, the newest first").add_argument(
        "--limit", "-n", type=int, default=50
    )

    show = campaigns.command("show", _show, "show a campaign: stages, gates with their evidence, what it waits for")
    show.add_argument("campaign")
    show.add_argument("--devices", action="store_true", help="each device's part, too")
    show.add_argument("--events", action="store_true", help="the log of its decisions, too")

    devices = campaigns.command("devices", _devices, "list the devices of a campaign: how far each is, what it runs")
    devices.add_argument("campaign")
    devices.add_argument("--state", help="those in this state alone, e.g. failed")
    devices.add_argument("--stage", help="those of this stage alone")
    devices.add_argument("--drifted", action="store_true", help="those that run something else than it left them on")
    devices.add_argument("--limit", "-n", type=int, help="at most so many")

    watch = campaigns.command(
        "watch",
        _watch,
        "watch a campaign until it has a state",
        epilog="exit code 0 when the state is reached; 1 if it cannot be reached any more (done is wanted, and the campaign "
        "failed, halted, was aborted or rolled back); 3 when the time is over",
    )
    watch.add_argument("campaign")
    watch.add_argument("--until", choices=STATES, default="done", help="default: done")
    watch.add_argument("--timeout", type=duration, default=_DAY_S, help="e.g. 10m (default 1d)")

    actions: tuple[tuple[CampaignAction, str, str | None], ...] = (
        (
            "approve",
            "let a campaign that somebody else made start, or its stage that waits",
            "this stage, before its time",
        ),
        ("pause", "hold a campaign: no further orders", None),
        ("resume", "let a paused campaign go on", None),
        ("abort", "end a campaign where it stands; devices keep what they have", None),
        ("rollback", "take every device back to its own previous build", "the devices of this stage alone"),
        ("skip-soak", "end the soak of the present stage now", None),
        ("retry", "give devices that failed another order", "those of this stage alone"),
        ("close", "let a campaign that is done take in no more devices", None),
    )
    for action, summary, of_stage in actions:
        command = campaigns.command(action, _act(action), summary)
        command.add_argument("campaign")
        if of_stage is not None:
            command.add_argument("--stage", help=of_stage)


def _plan(run: Run) -> int:
    plan = run.client.plan_campaign(_read(run.options.file))

    def show() -> None:
        run.out.say(
            f"{plan['name']}: {plan['model']} {plan['version']} to {plan['devices']} devices; nothing has moved"
        )
        for stage in plan["stages"]:
            run.out.say("")
            rows = [
                [
                    one["device"],
                    one["profile"],
                    one["target"],
                    ((one.get("why") or {}).get("chosen") or {}).get("reason"),
                ]
                for one in stage["devices"]
            ]
            count = stage.get("count", len(rows))
            title = f"stage {stage['name']} ({stage['who']}): {count} devices"
            run.out.table(["device", "profile", "gets", "because"], rows, title)
            if count > len(rows):
                run.out.say(f"and {count - len(rows)} more")
        if plan["left_out"]:
            run.out.say("")
            rows = [[one["device"], one["profile"], one["reason"]] for one in plan["left_out"]]
            count = plan.get("left_out_count", len(rows))
            run.out.table(["device", "profile", "because"], rows, "left out")
            if count > len(rows):
                run.out.say(f"and {count - len(rows)} more")
        for warning in plan["warnings"]:
            run.out.note(f"warning: {warning}")

    run.out.result(plan, show)
    return OK


def _start(run: Run) -> int:
    named = run.options.campaign
    if named == "-" or Path(named).is_file() or named.endswith(_SUFFIXES) or "/" in named:
        campaign = run.client.create_campaign(_read(named), start=True)
    else:
        campaign = run.client.campaign_action(named, "start")
    if run.options.watch:
        return _follow(run, campaign["name"], "done")
    run.out.result(
        campaign, lambda: run.out.say(f"{campaign['name']}: {campaign['state']}; {campaign['devices']} devices")
    )
    return OK


def _create(run: Run) -> int:
    campaign = run.client.create_campaign(_read(run.options.file), start=False)
    run.out.result(campaign, lambda: run.out.say(_brief(campaign)))
    return OK


def _clone(run: Run) -> int:
    options = run.options
    campaign = run.client.clone_campaign(options.campaign, options.name, options.version)
    if options.start:
        campaign = run.client.campaign_action(options.name, "start")
    run.out.result(campaign, lambda: run.out.say(_brief(campaign)))
    return OK


def _brief(campaign: Json) -> str:
    waits = f"; {campaign['waiting_for']}" if campaign.get("waiting_for") else ""
    return f"{campaign['name']}: {campaign['state']}; {campaign['devices']} devices{waits}"


def _devices(run: Run) -> int:
    options = run.options
    found = run.client.campaign_devices(
        options.campaign, options.state, options.stage, options.drifted or None, options.limit
    )
    run.out.result({"items": found}, lambda: run.out.table(_DEVICE_COLUMNS, _device_rows(found)))
    return OK


def _list(run: Run) -> int:
    found = run.client.campaigns(max(1, run.options.limit))
    rows = [
        [
            one["name"],
            f"{one['model']} {one['version']}",
            one["state"],
            f"{one['stage_name']} ({one['stage'] + 1}/{one['stage_count']})",
            f"{one['active']}/{one['devices']}",
            one["failed"] or "",
            ago(one["created_ms"]),
            one["waiting_for"],
        ]
        for one in found
    ]
    columns = ["campaign", "version", "state", "stage", "active", "failed", "made", "now"]
    run.out.result({"items": found}, lambda: run.out.table(columns, rows))
    return OK


def _show(run: Run) -> int:
    options = run.options
    campaign = run.client.campaign(options.campaign)
    # One object even with all of it: the campaign, with two more members.
    if options.devices:
        campaign["device_list"] = run.client.campaign_devices(options.campaign)
    if options.events:
        campaign["event_list"] = run.client.campaign_events(options.campaign)

    def show() -> None:
        _print_campaign(run, campaign)
        if options.devices:
            run.out.say("")
            run.out.table(_DEVICE_COLUMNS, _device_rows(campaign["device_list"]))
        if options.events:
            run.out.say("")
            rows = [[moment(one["at_ms"]), one["who"], one["kind"], one["message"]] for one in campaign["event_list"]]
            run.out.table(["when", "who", "what", "message"], rows)

    run.out.result(campaign, show)
    return OK


def _watch(run: Run) -> int:
    return _follow(run, run.options.campaign, run.options.until)


def _follow(run: Run, name: str, until: str) -> int:
    """Watch until the state is reached or cannot be any more; the exit code."""
    with run.out.live() as update:

        def look() -> Json:
            campaign = run.client.campaign(name)
            update(_picture(campaign), _line(campaign))
            return campaign

        try:
            campaign = wait(look, lambda seen: _settled(seen["state"], until), timeout_s=run.options.timeout)
            code = OK if campaign["state"] == until else FAILED
        except TimedOut as error:
            run.out.note(f"covey: {name} is not {until}: {error}")
            campaign, code = run.client.campaign(name), TIMED_OUT
    campaign["reached"] = code == OK
    run.out.result(campaign, lambda: _print_campaign(run, campaign))
    if code == FAILED:
        tripped = campaign.get("verdict") or {}
        why = f": {tripped['summary']}" if tripped.get("summary") else ""
        run.out.note(f"covey: {name} is {campaign['state']}, not {until}{why}")
    return code


def _settled(state: str, until: str) -> bool:
    """Whether it is reached, or can no longer be."""
    return state == until or state in ENDED or (state == "halted" and until not in AFTER_HALTED)


def _act(action: CampaignAction) -> Handler:
    def handler(run: Run) -> int:
        campaign = run.client.campaign_action(run.options.campaign, action, getattr(run.options, "stage", None))
        waits = f"; {campaign['waiting_for']}" if campaign.get("waiting_for") else ""
        run.out.result(campaign, lambda: run.out.say(f"{campaign['name']}: {campaign['state']}{waits}"))
        return OK

    return handler


def _print_campaign(run: Run, campaign: Json) -> None:
    restored = campaign.get("halt_to_restored_s")
    run.out.facts(
        [
            ("campaign", campaign["name"]),
            ("version", f"{campaign['model']} {campaign['version']}"),
            ("state", campaign["state"]),
            ("now", campaign["waiting_for"]),
            ("devices", f"{campaign['active']} of {campaign['devices']} active, {campaign['failed']} failed"),
            ("left out", campaign.get("left_out") or None),
            ("drifted", f"{campaign['drifted']} run something else by now" if campaign.get("drifted") else None),
            ("open", "for devices that come later" if campaign.get("is_open") else None),
            ("made", f"{moment(campaign['created_ms'])} by {campaign['created_by']}"),
            ("approval", _approval(campaign.get("approval"))),
            ("stopped by", (campaign.get("verdict") or {}).get("summary")),
            ("restored", f"{restored:g} s after the halt" if restored is not None else None),
        ]
    )
    run.out.say("")
    run.out.table(_STAGE_COLUMNS, _stage_rows(campaign))
    if campaign.get("gates"):
        run.out.say("")
        run.out.table(_GATE_COLUMNS, _gate_rows(campaign), f"gates of stage {campaign['gates_stage']}")


_STAGE_COLUMNS = (
    *("stage", "takes", "state", "devices", "active", "served", "in progress"),
    *("waiting", "not reached", "unknown", "failed", "back"),
)
_DEVICE_COLUMNS = ("device", "stage", "state", "progress", "build", "before", "detail")
_GATE_COLUMNS = ("gate", "says", "evidence")


def _stage_rows(campaign: Json) -> list[list[object]]:
    rows: list[list[object]] = []
    for stage in campaign["stages"]:
        counts, progress = stage["counts"], stage["progress"]
        back = counts.get("rolled_back", 0) + counts.get("restored_locally", 0)
        told = [progress.get(name, 0) for name in ("served", "in_progress", "waiting", "not_reached", "unknown")]
        state = stage["state"] if _approval(stage.get("approval")) is None else f"{stage['state']}, {_asked(stage)}"
        rows.append(
            [
                stage["name"],
                stage["who"],
                state,
                stage["devices"],
                counts.get("active", 0),
                *told,
                counts.get("failed", 0),
                back,
            ]
        )
    return rows


def _approval(approval: str | None) -> str | None:
    """None: it needs none."""
    return None if approval is None else "not given yet" if approval == "waiting" else f"by {approval}"


def _asked(stage: Json) -> str:
    return "to be approved" if stage["approval"] == "waiting" else f"approved by {stage['approval']}"


def _gate_rows(campaign: Json) -> list[list[object]]:
    return [[one["gate"], one["status"].replace("_", " "), one["summary"]] for one in campaign.get("gates") or []]


def _device_rows(devices: list[Json]) -> list[list[object]]:
    def named(build: Json | None) -> str | None:
        return f"{build['version']} {build['target']}" if build else None

    return [
        [
            f"{one['device']} (simulated)" if one.get("simulated") else one["device"],
            one["stage_name"] or "left out",
            one["state"],
            "drifted" if one.get("drifted_ms") is not None else str(one.get("progress", "")).replace("_", " "),
            named(one["build"]),
            named(one["previous"]),
            one["detail"] or ("" if one["reason"] == "none" else one["reason"]),
        ]
        for one in devices
    ]


def _picture(campaign: Json) -> RenderableType:
    """The campaign as it is now, for a terminal."""
    waits = campaign["waiting_for"]
    head = f"{campaign['name']}: {campaign['state']}" + (f"; {waits}" if waits else "")
    parts: list[RenderableType] = [Text(plain(head), style="bold"), make_table(_STAGE_COLUMNS, _stage_rows(campaign))]
    if campaign.get("gates"):
        parts.append(make_table(_GATE_COLUMNS, _gate_rows(campaign)))
    return Group(*parts)


def _line(campaign: Json) -> str:
    """The same in one line, for a log."""
    stages = ", ".join(f"{one['name']} {one['counts'].get('active', 0)}/{one['devices']}" for one in campaign["stages"])
    waits = f"; {campaign['waiting_for']}" if campaign["waiting_for"] else ""
    return f"{campaign['name']}: {campaign['state']}; {stages}{waits}"


def _read(name: str) -> bytes:
    """A campaign file, or standard input. Raises OSError, or `ClientError` if it is too large to be one."""
    if name == "-":
        source = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    else:
        with Path(name).open("rb") as file:
            source = file.read(MAX_FILE_BYTES + 1)
    if len(source) > MAX_FILE_BYTES:
        raise ClientError(f"{name} is larger than a campaign file may be ({MAX_FILE_BYTES} bytes)")
    return source
