"""What the types of a campaign file cannot say: which fields go together, and what must grow from stage to stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from covey_server.core.document import DocumentError, Path
from covey_server.core.spec.pace import Pace
from covey_server.core.spec.stages import Stage

if TYPE_CHECKING:
    from covey_server.core.spec.campaign import CampaignSpec

Complain = Callable[[Path, str], DocumentError]

_WHO = ("group", "select", "percent", "count")


def check(spec: CampaignSpec, error: Complain) -> None:
    """Raises what `error` makes of the place and the words of the first complaint."""
    if spec.target.is_empty:
        raise error(("target",), "names neither groups nor devices, and has no selector")
    _check_stages(spec.stages, error)
    _check_times(spec, error)
    _check_pace(("pace",), spec.pace, error)
    if spec.maintenance is not None:
        _check_maintenance(spec, error)
    if len(set(spec.retry.causes)) != len(spec.retry.causes):
        raise error(("retry", "causes"), "names a way to fail twice")
    if spec.breach.scope == "stage" and spec.breach.action != "rollback":
        raise error(("on_breach", "scope"), f"is of a rollback; the action is {spec.breach.action}")


def _check_stages(stages: tuple[Stage, ...], error: Complain) -> None:
    seen: set[str] = set()
    grown: dict[tuple[str, str], float] = {}
    for index, stage in enumerate(stages):
        here = ("stages", index)
        _check_who(here, stage, error)
        if stage.name in seen:
            raise error((*here, "name"), f"a stage named {stage.name!r} comes earlier")
        seen.add(stage.name)
        for field in ("percent", "count"):
            value = getattr(stage, field)
            if value is None:
                continue
            before = grown.get((field, stage.each or ""), 0.0)
            if value <= before:
                raise error((*here, field), f"{value:g} is not more than {before:g} of an earlier stage")
            grown[field, stage.each or ""] = value
        _check_pace((*here, "pace"), stage.pace, error)


def _check_who(here: Path, stage: Stage, error: Complain) -> None:
    who = [name for name in _WHO if getattr(stage, name) is not None]
    if stage.each is not None:
        if stage.group is not None or stage.select is not None:
            raise error((*here, "each"), f"goes with percent, count, only, or alone; this has {who[0]}")
        if stage.only is not None and who:
            raise error((*here, "only"), f"names all of one {stage.each}; it does not go with {who[0]}")
        if len(who) <= 1:
            return
    elif stage.only is not None:
        raise error((*here, "only"), "says which one of each; each is missing")
    if len(who) != 1:
        given = ", ".join(who) or "none"
        raise error(here, f"needs exactly one of group, select, percent, count and each; this has {given}")


def _check_pace(here: Path, pace: Pace | None, error: Complain) -> None:
    if pace is None:
        return
    if pace.per_minute is None and pace.in_flight is None and pace.bandwidth is None:
        raise error(here, "limits nothing: name per_minute, in_flight or bandwidth")
    if pace.growth is not None:
        if pace.per_minute is None:
            raise error((*here, "growth"), "grows from per_minute, which is missing")
        if pace.growth.at_most < pace.per_minute:
            limit = f"{pace.growth.at_most:g} is less than the {pace.per_minute:g} that it starts from"
            raise error((*here, "growth", "at_most"), limit)


def _check_times(spec: CampaignSpec, error: Complain) -> None:
    schedule = spec.schedule
    if schedule.end is None:
        if schedule.at_end != "pause":
            raise error(("schedule", "at_end"), "says what happens at the end; end is missing")
    elif schedule.start is not None and schedule.end.ms <= schedule.start.ms:
        raise error(("schedule", "end"), "is not after the start")
    before = schedule.start.ms if schedule.start is not None else 0
    for index, stage in enumerate(spec.stages):
        if stage.not_before is None:
            continue
        here = ("stages", index, "not_before")
        if stage.not_before.ms < before:
            raise error(here, "is earlier than the start of the campaign or of an earlier stage")
        if schedule.end is not None and stage.not_before.ms >= schedule.end.ms:
            raise error(here, "is not before the end of the campaign")
        before = stage.not_before.ms


def _check_maintenance(spec: CampaignSpec, error: Complain) -> None:
    maintenance = spec.maintenance
    if maintenance is None:
        return
    for index, window in enumerate(maintenance.windows):
        for field in ("days", "month_days"):
            named = getattr(window, field)
            if len(set(named)) != len(named):
                raise error(("maintenance", "windows", index, field), "names a day twice")
    if maintenance.of_device:
        return
    try:
        ZoneInfo(maintenance.zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as missing:
        words = f"{maintenance.zone!r} is no time zone (device, UTC, Europe/Berlin …)"
        raise error(("maintenance", "zone"), words) from missing
    if maintenance.fetch == "ahead":
        raise error(
            ("maintenance", "fetch"), "a device can wait only for windows of its own clock; zone must be device"
        )
