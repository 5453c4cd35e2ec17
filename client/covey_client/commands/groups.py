"""`covey group …`"""

from __future__ import annotations

from covey_client.arguments import OK, Adder, Run, grouped, pair
from covey_client.output import Json


def add(commands: Adder) -> None:
    groups = commands.family("group", "groups: fixed lists of devices, or selectors over facts and labels")
    groups.command("list", _list, "list groups")
    groups.command("show", _show, "show a group and its devices").add_argument("group")
    put = groups.command("set", _set, "make or replace a group")
    put.add_argument("group")
    put.add_argument("--description")
    kind = put.add_mutually_exclusive_group(required=True)
    kind.add_argument("--device", action="append", metavar="ID", help="a device of the list; repeat for more")
    kind.add_argument(
        "--selector",
        action="append",
        type=pair,
        metavar="KEY=VALUE",
        help="labels.NAME, facts.NAME or profile; all keys must match, a key given twice matches either value",
    )
    kind.add_argument("--empty", action="store_true", help="a fixed list without devices")
    groups.command("delete", _delete, "delete a group; its devices stay").add_argument("group")


def _list(run: Run) -> int:
    found = run.client.groups()
    rows = [[one["name"], one["count"], _what(one), one["description"]] for one in found]
    run.out.result({"items": found}, lambda: run.out.table(["group", "devices", "holds", "description"], rows))
    return OK


def _show(run: Run) -> int:
    group = run.client.group(run.options.group)

    def show() -> None:
        run.out.facts([("group", group["name"]), ("holds", _what(group)), ("description", group["description"])])
        for device in group["devices"]:
            run.out.say(f"  {device}")
        if group["count"] > len(group["devices"]):
            run.out.say(f"  … {group['count'] - len(group['devices'])} more")

    run.out.result(group, show)
    return OK


def _set(run: Run) -> int:
    options = run.options
    group = run.client.set_group(
        options.group,
        devices=None if options.selector else options.device or [],
        selector=grouped(options.selector) if options.selector else None,
        description=options.description,
    )
    run.out.result(group, lambda: run.out.say(f"{group['name']}: {group['count']} devices"))
    return OK


def _delete(run: Run) -> int:
    run.client.delete_group(run.options.group)
    run.out.result({"deleted": run.options.group}, lambda: run.out.say(f"{run.options.group} is deleted"))
    return OK


def _what(group: Json) -> str:
    selector = group.get("selector")
    if not selector:
        return "every device" if group["name"] == "all" else "a fixed list"
    return ", ".join(
        f"{key}={'|'.join(map(str, value)) if isinstance(value, list) else value}" for key, value in selector.items()
    )
