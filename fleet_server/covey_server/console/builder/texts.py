"""The words of the form's fields: a label, and what it means in a sentence. A test holds that no field lacks them."""

from __future__ import annotations

from collections.abc import Sequence

from covey_server.console import states
from covey_server.console.builder.grammar import Node
from covey_server.console.i18n import gettext as _
from covey_server.console.i18n import noted

# In the order in which people think of a rollout; the first ones stand open.
SECTIONS: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    (noted("What"), ("name", "model", "version", "objective"), True),
    (noted("Which devices"), ("target", "exclude", "draw", "seed"), False),
    (noted("Stages"), ("stages", "min_reached"), True),
    (noted("Gates: what has to stay good"), ("gates", "settle"), False),
    (noted("If it goes wrong"), ("on_breach", "retry", "timeout", "quarantine", "probation"), False),
    (noted("When, and how fast"), ("schedule", "pace", "maintenance", "conditions"), False),
    (noted("When a device counts as done"), ("served", "assignment_ttl"), False),
    (noted("Who has a say"), ("approval", "conflict", "priority"), False),
)

# The fields of a mapping that are asked first; its others stand under "more". Of a mapping that is not here all are asked.
MAIN: dict[str, tuple[str, ...]] = {
    "Stage": ("name", "group", "percent", "count", "soak"),
    "Target": ("groups", "devices", "select"),
    "Evidence": ("alpha", "min_canaries", "min_controls"),
    "InstallGate": ("max_rate", "max_count"),
    "ErrorGate": ("max_rate",),
    "LatencyGate": ("quantile", "max_ratio", "min_increase_ms"),
    "DriftGate": ("max_psi",),
    "ExpressionGate": ("name", "bad", "max_share"),
    "Retry": ("times", "after"),
    "ProbationSpec": ("seconds", "max_errors"),
}

_METHOD = (
    noted("How it judges"),
    noted("weighed against a control where there are enough devices, else by a fixed limit"),
)
_MIN_REQUESTS = (noted("Requests, at least"), noted("with fewer the gate says nothing yet"))
_SHARE = (noted("Share of devices, at most"), noted("0.1 is 10 %"))

TEXTS: dict[str, tuple[str, str]] = {
    "CampaignSpec.name": (noted("Name of the campaign"), ""),
    "CampaignSpec.model": (noted("Model"), ""),
    "CampaignSpec.version": (noted("Version"), ""),
    "CampaignSpec.objective": (
        noted("Build with the best"),
        noted("of the builds that fit a device, the one that is best in this"),
    ),
    "CampaignSpec.target": (noted("Target"), noted("all of these together; empty: every device")),
    "CampaignSpec.exclude": (noted("Except"), noted("never these")),
    "CampaignSpec.draw": (noted("Order in which devices go"), ""),
    "CampaignSpec.seed": (
        noted("Seed of the draw"),
        noted("the same seed draws the same devices; empty: the server draws one and records it"),
    ),
    "CampaignSpec.stages": (
        noted("Stages"),
        noted("one after the other; percentages and counts include the stages before"),
    ),
    "CampaignSpec.min_reached": (
        noted("Share to be reached"),
        noted("of a stage’s devices, before the next one may start; 0.5 is half"),
    ),
    "CampaignSpec.gates": (noted("Gates"), noted("each is judged in every stage; no data is not healthy")),
    "CampaignSpec.settle": (noted("Settling time"), noted("after a swap, before measurements count")),
    "CampaignSpec.on_breach": (noted("When a gate is breached"), ""),
    "CampaignSpec.retry": (noted("Try again"), noted("a device that failed")),
    "CampaignSpec.timeout": (
        noted("Time for a device"),
        noted("from its first word on its order to the end; after that it has failed"),
    ),
    "CampaignSpec.quarantine": (noted("Leave out devices that fail again and again"), ""),
    "CampaignSpec.probation": (
        noted("Probation on the device"),
        noted("the time after a swap in which it goes back by itself, also without a network"),
    ),
    "CampaignSpec.schedule": (noted("Times"), ""),
    "CampaignSpec.pace": (noted("Pace"), noted("orders go out bit by bit, to devices that are connected")),
    "CampaignSpec.maintenance": (noted("Maintenance windows"), noted("a device changes what serves only inside them")),
    "CampaignSpec.conditions": (noted("Conditions on the device"), noted("it fetches and waits until they hold")),
    "CampaignSpec.served": (
        noted("Done means served"),
        noted("the device reports the build, and has answered with it"),
    ),
    "CampaignSpec.assignment_ttl": (
        noted("Orders are good for"),
        noted("a device that comes later does not follow them"),
    ),
    "CampaignSpec.approval": (noted("Somebody else has to approve it"), ""),
    "CampaignSpec.conflict": (noted("If another campaign has these devices"), ""),
    "CampaignSpec.priority": (noted("Priority in the queue"), noted("the highest goes first")),
    "Target.groups": (noted("Groups"), noted("names, separated by spaces")),
    "Target.devices": (noted("Devices"), noted("names, separated by spaces")),
    "Target.select": (noted("All devices that fit"), noted("one condition a line, such as labels.line = a, b")),
    "Target.membership": (noted("Devices that come to fit later"), ""),
    "Target.at_most": (noted("At most so many devices"), noted("by the draw")),
    "DeviceSet.groups": (noted("Groups"), noted("names, separated by spaces")),
    "DeviceSet.devices": (noted("Devices"), noted("names, separated by spaces")),
    "DeviceSet.select": (noted("All devices that fit"), noted("one condition a line, such as labels.line = a, b")),
    "Stage.name": (noted("Name"), ""),
    "Stage.group": (noted("Group"), noted("this group of the target")),
    "Stage.select": (noted("Devices that fit"), noted("one condition a line, such as profile = raspberry-pi-5")),
    "Stage.percent": (noted("Percent of the target"), noted("with those of the stages before")),
    "Stage.count": (noted("Number of devices"), noted("with those of the stages before")),
    "Stage.each": (noted("One for each"), noted("alone: a stage for each; with percent or number: of each")),
    "Stage.only": (noted("Only this profile or site"), ""),
    "Stage.draw": (noted("Order"), noted("empty: as the campaign says")),
    "Stage.not_before": (noted("Not before"), noted("such as 2026-12-01T22:00:00+01:00")),
    "Stage.approval": (noted("Approve this stage first"), noted("by somebody else")),
    "Stage.soak": (noted("Soak"), noted("how long it must serve well before the next stage, such as 10m")),
    "Stage.min_reached": (noted("Share to be reached"), noted("empty: as the campaign says")),
    "Stage.gates": (noted("Gates of its own"), noted("instead of the campaign’s")),
    "Stage.pace": (noted("A pace of its own"), noted("while this stage is under way")),
    "Gates.evidence": (noted("How much evidence"), noted("for all gates together")),
    "Gates.install_failures": (noted("Install failures"), noted("always judged")),
    "Gates.errors": (noted("Errors"), noted("requests that the new build failed")),
    "Gates.latency": (noted("Latency"), noted("each device against itself before")),
    "Gates.drift": (noted("Drift of outputs"), noted("answers distributed otherwise than before")),
    "Gates.temperature": (noted("Temperature"), ""),
    "Gates.throttling": (noted("Throttling"), noted("devices that slow themselves down")),
    "Gates.memory": (noted("Memory"), ""),
    "Gates.silence": (noted("Silence"), noted("devices that crash, go back or are not heard of after their swap")),
    "Gates.expressions": (noted("Your own"), noted("a condition over figures that is true of a bad device")),
    "Evidence.alpha": (
        noted("False halts, at most"),
        noted("share of stages in which nothing changed and which halt all the same; 0.01 is 1 %"),
    ),
    "Evidence.confidence": (noted("Confidence of intervals"), noted("of those that are shown")),
    "Evidence.min_canaries": (noted("Canaries, at least"), noted("with fewer, fixed limits are used")),
    "Evidence.min_controls": (noted("Control devices, at least"), noted("devices beside them that keep the old build")),
    "Evidence.max_controls": (noted("Control devices, at most"), noted("of each kind, drawn by lot")),
    "Evidence.min_devices": (noted("Devices, at least"), noted("for every gate, before the stage may pass")),
    "Evidence.min_requests": (noted("Requests, at least"), noted("for every gate, before the stage may pass")),
    "Evidence.burn_in": (
        noted("Burn-in"),
        noted("after a swap, before measurements count; instead of the settling time"),
    ),
    "InstallGate.max_rate": _SHARE,
    "InstallGate.max_count": (noted("Devices, at most"), ""),
    "InstallGate.min_devices": (noted("The share counts from"), noted("so many devices on that have ended")),
    "InstallGate.base_rate": (
        noted("Usual share of failures"),
        noted("given, it is judged by the evidence that more fail than usual"),
    ),
    "InstallGate.method": _METHOD,
    "ErrorGate.max_rate": (noted("Share of requests, at most"), noted("0.01 is 1 %")),
    "ErrorGate.min_requests": _MIN_REQUESTS,
    "ErrorGate.method": _METHOD,
    "LatencyGate.quantile": (noted("Quantile"), noted("0.99: of a hundred requests the second slowest")),
    "LatencyGate.max_ratio": (noted("Factor, at most"), noted("1.5: half as slow again as before")),
    "LatencyGate.min_increase_ms": (noted("Does not matter below (ms)"), noted("a smaller increase is no breach")),
    "LatencyGate.min_requests": _MIN_REQUESTS,
    "LatencyGate.measure": (noted("Measure"), noted("end to end: as callers see it")),
    "LatencyGate.max_ms": (noted("Never above (ms)"), ""),
    "LatencyGate.pass_below": (
        noted("Passes only below the factor"),
        noted("once the confidence interval lies below it"),
    ),
    "LatencyGate.method": _METHOD,
    "DriftGate.output": (noted("Output"), noted("empty: the one that moved furthest")),
    "DriftGate.max_psi": (noted("PSI, at most"), noted("population stability index; 0.1 is little, 0.25 is much")),
    "DriftGate.min_requests": _MIN_REQUESTS,
    "DriftGate.method": _METHOD,
    "TemperatureGate.max_c": (noted("Never above (°C)"), ""),
    "TemperatureGate.max_rise_c": (noted("Rise, at most (°C)"), noted("since before the swap")),
    "TemperatureGate.method": _METHOD,
    "ThrottlingGate.max_share": _SHARE,
    "ThrottlingGate.method": _METHOD,
    "MemoryGate.max_mb": (noted("Never above (MB)"), ""),
    "MemoryGate.max_ratio": (noted("Factor, at most"), noted("of what was used before")),
    "MemoryGate.method": _METHOD,
    "SilenceGate.after": (noted("Silent after"), noted("not heard of for so long")),
    "SilenceGate.max_share": _SHARE,
    "SilenceGate.method": _METHOD,
    "ExpressionGate.name": (noted("Name"), ""),
    "ExpressionGate.bad": (noted("A device is bad if"), noted("such as p99_ms > 40 and error_rate > 0.01")),
    "ExpressionGate.max_share": _SHARE,
    "ExpressionGate.min_requests": _MIN_REQUESTS,
    "ExpressionGate.method": _METHOD,
    "OnBreach.action": (noted("Then"), ""),
    "OnBreach.scope": (noted("Back go"), ""),
    "Retry.times": (noted("How often"), noted("0: not at all")),
    "Retry.after": (noted("After"), noted("such as 1m")),
    "Retry.factor": (noted("Each time longer by"), noted("2: twice as long")),
    "Retry.causes": (noted("If it"), ""),
    "Retry.then": (noted("If that does not help"), ""),
    "Quarantine.failures": (
        noted("Failed in the last campaigns"),
        noted("so many of the same model, with no success since; 0: nobody is left out"),
    ),
    "ProbationSpec.seconds": (noted("Seconds"), ""),
    "ProbationSpec.max_errors": (noted("Errors, at most"), noted("one more, and the device goes back")),
    "ProbationSpec.max_slowdown": (
        noted("Slower, at most by the factor"),
        noted("empty: latency is left to the gates"),
    ),
    "ProbationSpec.min_requests": (noted("Slowness counts from"), noted("so many requests on")),
    "Schedule.start": (noted("Start"), noted("such as 2026-12-01T22:00:00+01:00")),
    "Schedule.end": (noted("End"), noted("such as 2026-12-03T04:00:00+01:00")),
    "Schedule.at_end": (noted("If it still runs then"), ""),
    "Pace.per_minute": (noted("Devices a minute"), ""),
    "Pace.growth": (noted("Faster with success"), ""),
    "Pace.in_flight": (noted("At work at once, at most"), noted("devices with an order that is not finished")),
    "Pace.bandwidth": (noted("Bandwidth, at most"), noted("for fetching, all devices together, such as 5MB/s")),
    "Growth.per": (noted("For every"), noted("so many devices")),
    "Growth.at_most": (noted("At most (devices a minute)"), ""),
    "Growth.factor": (noted("Faster by the factor"), ""),
    "Growth.count": (noted("Counted are"), ""),
    "Maintenance.windows": (noted("Windows"), ""),
    "Maintenance.zone": (noted("By the clock of"), noted("device: each its own; else a zone such as Europe/Berlin")),
    "Maintenance.fetch": (noted("Fetching"), ""),
    "Window.opens": (noted("From"), noted("such as 22:00")),
    "Window.closes": (noted("To"), noted("earlier than from: on the next day")),
    "Window.days": (noted("On"), ""),
    "Window.month_days": (noted("Days of the month"), noted("such as 1 15; of the days above, only these; empty: all")),
    "Conditions.not_before": (noted("Not before"), noted("such as 2026-12-01T22:00:00+01:00")),
    "Conditions.mains_power": (noted("On mains power"), ""),
    "Conditions.idle": (noted("Idle for"), noted("no request for so long, such as 30s")),
    "Conditions.unlocked": (noted("Not locked by its application"), ""),
    "Served.requests": (noted("Requests answered"), noted("by the new build")),
    "Served.of": (noted("Asked of"), ""),
    "Served.within": (noted("Within"), noted("one that has not by then counts as not reached")),
}

_CHOICES: dict[str, str] = {
    "auto": noted("by itself"),
    "e_process": noted("weighed against a control"),
    "threshold": noted("by a fixed limit"),
    "frozen": noted("stay outside"),
    "live": noted("are taken in"),
    "spread": noted("at random, spread over profiles and sites"),
    "random": noted("at random"),
    "least_critical": noted("the least critical first"),
    "profile": noted("firmware profile"),
    "site": noted("site"),
    "pause": noted("pause"),
    "halt": noted("halt"),
    "rollback": noted("go back"),
    "abort": noted("end it there"),
    "all": noted("all devices"),
    "stage": noted("those of the stage"),
    "fail": noted("it counts as failed"),
    "person": noted("pause, for a person to look"),
    "failed": noted("failed"),
    "timed_out": noted("took too long"),
    "refused": noted("refused"),
    "rolled_back": noted("went back by itself"),
    "refuse": noted("this one is refused"),
    "queue": noted("this one waits for its turn"),
    "succeeded": noted("devices that answer with it"),
    "notified": noted("devices that were given an order"),
    "inside": noted("inside the windows too"),
    "ahead": noted("before, at any time"),
    "busy": noted("devices that answered before"),
    "mon": noted("Monday"),
    "tue": noted("Tuesday"),
    "wed": noted("Wednesday"),
    "thu": noted("Thursday"),
    "fri": noted("Friday"),
    "sat": noted("Saturday"),
    "sun": noted("Sunday"),
}

_ROWS: dict[str, str] = {
    "CampaignSpec.stages": noted("Add a stage"),
    "Gates.latency": noted("Judge latency"),
    "Gates.expressions": noted("Add a condition"),
    "Maintenance.windows": noted("Add a window"),
}


def main_names(children: Sequence[Node]) -> set[str]:
    """Which of a mapping's fields are asked first."""
    names = {child.name for child in children}
    return set(MAIN.get(children[0].key.partition(".")[0], names)) if children else names


def label(key: str) -> str:
    found = TEXTS.get(key)
    return states.spaced(key.rpartition(".")[2]) if found is None else _(found[0])


def hint(key: str) -> str:
    found = TEXTS.get(key)
    return _(found[1]) if found is not None and found[1] else ""


def choice(value: str) -> str:
    found = _CHOICES.get(value)
    return states.name(value) if found is None else _(found)


def adding(key: str) -> str:
    """What the button says that adds a row."""
    found = _ROWS.get(key)
    return _("Add") if found is None else _(found)
