"""`covey device …`"""

from __future__ import annotations

import json
import sys
import time
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

from covey_client.arguments import FAILED, OK, USAGE, Adder, Run, duration, label, pair
from covey_client.commands import samples
from covey_client.errors import ClientError
from covey_client.output import Json, ago, moment, size
from covey_contract.bundle import SUFFIX, metadata_name, order_of
from covey_contract.errors import ContractError
from covey_contract.messages import Assignment, Order
from covey_contract.wire import decode

_DAY_MS = 86_400_000


def add(commands: Adder) -> None:
    devices = commands.family("device", "devices: which there are, what they run and why")

    listing = devices.command("list", _list, "list devices")
    listing.add_argument("--group", help="only those of this group")
    listing.add_argument("--profile", help="only those of this firmware profile; `none`: without one")
    listing.add_argument("--model", help="only those that have this model, or should")
    listing.add_argument("--query", "-q", help="part of id, profile or board")
    listing.add_argument(
        "--certificate", choices=["good", "ending", "expired"], help="only those whose certificate is this near its end"
    )
    state = listing.add_mutually_exclusive_group()
    state.add_argument("--online", action="store_true", default=None)
    state.add_argument("--offline", action="store_false", dest="online", default=None)

    devices.command("show", _show, "show a device").add_argument("device")

    why = devices.command("why", _why, "show which build a device gets, and why every other one lost")
    why.add_argument("device")
    why.add_argument("model")
    why.add_argument("version", nargs="?", help="default: the one it should run, else the newest")

    token = devices.command("token", _token, "make a one-time claim token, with which a device enrols")
    token.add_argument("device", nargs="?", help="bind the token to this id")
    token.add_argument("--label", action="append", type=pair, default=[], metavar="KEY=VALUE")
    token.add_argument("--group", action="append", default=[], help="put the device into this group")
    token.add_argument("--ttl", type=duration, help="how long it is good, e.g. 2h")

    labels = devices.command("label", _label, "set labels (KEY=VALUE) and take them away (KEY-)")
    labels.add_argument("device")
    labels.add_argument("labels", nargs="+", type=label, metavar="KEY=VALUE|KEY-")

    revoke = devices.command("revoke", _revoke, "cut a device off for good")
    revoke.add_argument("device")
    revoke.add_argument("--yes", action="store_true", help="do not ask")

    devices.command("waiting", _waiting, "list devices that came back after their certificates had expired")

    approve = devices.command("approve", _approve, "let a device have a certificate again, on the key that asks for it")
    approve.add_argument("device")
    approve.add_argument("--key", help="how the key begins, where several ask for the device")

    refuse = devices.command("refuse", _refuse, "refuse the key that asks for a device's certificate")
    refuse.add_argument("device")
    refuse.add_argument("--key", help="how the key begins, where several ask for the device")

    devices.command("renew", _renew, "have a device renew its certificate now").add_argument("device")

    assign = devices.command("assign", _assign, "give one device one version, past any campaign")
    assign.add_argument("device")
    assign.add_argument("model")
    assign.add_argument("version")
    assign.add_argument("--target", help="this build; default: the one that fits best")
    assign.add_argument(
        "--probation", type=duration, help="how long after the swap it may go back by itself (10s; default: 30s)"
    )

    bundle = devices.command(
        "bundle",
        _bundle,
        "write devices' orders and builds to one file, for `covey-agent install` where there is no network",
    )
    bundle.add_argument("device", nargs="+")
    bundle.add_argument("--model", help="only the order for this model")
    bundle.add_argument("--output", "-o", type=Path, metavar="FILE", help="default: DEVICE.bundle, or devices.bundle")

    logs = devices.command("logs", _logs, "show the end of a device's log")
    logs.add_argument("device")
    logs.add_argument("--lines", "-n", type=int, default=200)

    facts = devices.command("facts", _facts, "ask a device for its facts, anew")
    facts.add_argument("device")

    diagnose = devices.command(
        "diagnose", _diagnose, "ask a device for all that is to be known of a fault (exit code 1 if a check fails)"
    )
    diagnose.add_argument("device")
    diagnose.add_argument("--output", "-o", type=Path, metavar="FILE", help="write it all there, as JSON")

    samples.add(devices)


def _list(run: Run) -> int:
    options = run.options
    found = run.client.devices(
        group=options.group,
        profile=options.profile,
        online=options.online,
        model=options.model,
        q=options.query,
        certificate=options.certificate,
    )
    columns = ["device", "state", "profile", "hardware", "runs", "should run", "last seen"]
    rows = [
        [
            one["id"],
            _state(one),
            one["profile"],
            "simulated" if one["simulated"] else one["architecture"],
            "\n".join(f"{slot['model']} {_build(slot.get('active'))}" for slot in one["models"]) or None,
            "\n".join(_desired(slot) for slot in one["models"]) or None,
            ago(one["last_seen_ms"]),
        ]
        for one in found
    ]
    run.out.result({"items": found}, lambda: run.out.table(columns, rows))
    return OK


def _show(run: Run) -> int:
    device = run.client.device(run.options.device)

    def show() -> None:
        facts = device["facts"]
        run.out.facts(
            [
                ("device", device["id"]),
                ("state", _state(device)),
                ("hardware", "simulated" if device["simulated"] else "real"),
                ("profile", f"{device['profile'] or 'none'}: {device['profile_reason']}"),
                ("board", facts.get("board")),
                ("processor", f"{facts.get('cpu_model', '')} ({facts.get('cpu_cores', 1)} cores)"),
                ("memory", f"{facts.get('memory_mb', 0)} MB"),
                ("system", facts.get("os")),
                ("runtimes", ", ".join(f"{one['name']} {one['version']}" for one in facts.get("runtimes", []))),
                ("labels", ", ".join(f"{key}={value}" for key, value in sorted(device["labels"].items()))),
                ("groups", ", ".join(device["groups"])),
                ("agent", device["agent_version"]),
                ("samples", _samples(device.get("capture"))),
                ("enrolled", moment(device["enrolled_ms"])),
                ("last seen", ago(device["last_seen_ms"])),
                ("certificate", _certificate(device)),
            ]
        )
        rows = [
            [
                slot["model"],
                _build(slot.get("active")),
                _build(slot.get("previous")),
                _build(slot.get("candidate")),
                slot.get("state"),
                _desired(slot),
                _because(slot),
            ]
            for slot in device["models"]
        ]
        if rows:
            run.out.say("")
            run.out.table(["model", "active", "previous", "candidate", "state", "should run", "detail"], rows)

    run.out.result(device, show)
    return OK


def _samples(capture: dict[str, Any] | None) -> str:
    """What the device keeps of requests and answers; it never sends any by itself."""
    if capture is None:
        return "none kept"
    held = f"{capture['samples']} kept, {capture['held_mb']:.1f} of {capture['limit_mb']:.0f} MB"
    stay = "" if capture.get("may_leave") else "; they stay there"
    return f"{held}, from {capture['share'] * 100:.3g} % of the requests{stay}"


def _why(run: Run) -> int:
    options = run.options
    why = run.client.why(options.device, options.model, options.version)

    def show() -> None:
        chosen = why.get("chosen")
        run.out.facts(
            [
                ("device", options.device),
                ("version", f"{why.get('model')} {why.get('version')}"),
                ("profile", f"{why.get('profile') or 'none'}: {why.get('profile_reason', '')}"),
                ("gets", chosen["target"] if chosen else "nothing"),
                ("because", chosen["reason"] if chosen else why.get("reason")),
            ]
        )
        lost = why.get("lost") or []
        if lost:
            run.out.say("")
            run.out.table(["not", "because"], [[one["target"], one["reason"]] for one in lost])

    run.out.result(why, show)
    return OK


def _token(run: Run) -> int:
    options = run.options
    made = run.client.create_claim_token(
        device=options.device,
        labels=dict(options.label) or None,
        groups=options.group or None,
        ttl_s=max(1, int(options.ttl)) if options.ttl is not None else None,
    )

    def show() -> None:
        run.out.say(made["token"])
        run.out.note(f"good for one device until {moment(made['expires_ms'])}; it is not shown again")

    run.out.result(made, show)
    return OK


def _label(run: Run) -> int:
    device = run.client.set_labels(run.options.device, dict(run.options.labels))
    labels = ", ".join(f"{key}={value}" for key, value in sorted(device["labels"].items()))
    run.out.result(device, lambda: run.out.say(f"{device['id']}: {labels or 'no labels'}"))
    return OK


def _revoke(run: Run) -> int:
    name = run.options.device
    if not run.options.yes:
        if not sys.stdin.isatty():
            run.out.note(f"covey: revoking cuts {name} off for good; say --yes")
            return USAGE
        run.out.note(f"Revoking cuts {name} off for good. Type its name to go on:")
        if sys.stdin.readline().strip() != name:
            run.out.note("nothing was done")
            return FAILED
    device = run.client.revoke_device(name)
    run.out.result(device, lambda: run.out.say(f"{name} is revoked"))
    return OK


def _waiting(run: Run) -> int:
    found = run.client.renewals()
    columns = ["device", "key", "asked", "last asked", "from", "its certificate ended"]
    rows = [
        [
            one["device"],
            one["key"][:16],
            ago(one["asked_ms"]),
            ago(one["seen_ms"]),
            one["origin"],
            moment(one["ended_ms"]),
        ]
        for one in found
    ]
    run.out.result({"items": found}, lambda: run.out.table(columns, rows))
    return OK


def _approve(run: Run) -> int:
    return _decide(run, approve=True)


def _refuse(run: Run) -> int:
    return _decide(run, approve=False)


def _decide(run: Run, *, approve: bool) -> int:
    made = run.client.decide_renewal(run.options.device, approve=approve, key=run.options.key)
    words = "gets its certificate when it next asks" if approve else "gets none"
    run.out.result(made, lambda: run.out.say(f"{made['device']}: the key {made['key'][:16]} {words}"))
    return OK


def _renew(run: Run) -> int:
    reply = run.client.command(run.options.device, "renew")
    bad = reply.get("reason", "none") != "none"
    words = reply.get("detail") or reply["reason"] if bad else reply.get("text", "")
    run.out.result(reply, lambda: run.out.say(f"{run.options.device}: {words}"))
    return FAILED if bad else OK


def _assign(run: Run) -> int:
    options = run.options
    made = run.client.assign(
        options.device, options.model, options.version, options.target, probation_s=options.probation
    )
    words = f"{options.device} is to run {options.model} {options.version} as {made['target']}"
    reason = (made.get("why") or {}).get("reason")
    run.out.result(made, lambda: run.out.say(f"{words} ({reason})" if reason else words))
    return OK


def _bundle(run: Run) -> int:
    names = run.options.device
    to: Path = run.options.output or Path(f"{names[0] if len(names) == 1 else 'devices'}{SUFFIX}")
    try:
        written = run.client.bundle(names, to, run.options.model)
        made = {"file": str(to), "size": written, **_contents(to)}
    except (OSError, ContractError) as error:
        raise ClientError(f"{to} cannot be written: {error}") from error

    def show() -> None:
        orders = ", ".join(f"{one['model']} for {one['device']}" for one in made["orders"])
        run.out.say(f"{to}: {size(written)}, {orders}; good until {moment(made['good_until_ms'])}")

    run.out.result(made, show)
    return OK


def _contents(path: Path) -> Json:
    """Whose orders a bundle has, and until when all of it lasts."""
    orders, ends = [], []
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if (known := order_of(name)) is not None:
                orders.append({"device": known[0], "model": known[1]})
                order = decode(Order, archive.read(name))
                ends.append(decode(Assignment, order.assignment.payload).expires_ms)
            elif name.startswith(metadata_name("")) and not name.endswith(".root.json"):
                expires = json.loads(archive.read(name))["signed"]["expires"]
                ends.append(int(datetime.fromisoformat(expires).timestamp() * 1000))
    return {"orders": orders, "good_until_ms": min(ends)}


def _logs(run: Run) -> int:
    reply = run.client.command(run.options.device, "logs", run.options.lines)
    bad = reply.get("reason", "none") != "none"

    def show() -> None:
        run.out.say(str(reply.get("text", "")).rstrip("\n"))
        if bad:
            run.out.note(f"covey: {run.options.device}: {reply.get('detail') or reply['reason']}")

    run.out.result(reply, show)
    return FAILED if bad else OK


def _facts(run: Run) -> int:
    reply = run.client.command(run.options.device, "facts")
    facts = reply.get("facts") or {}
    run.out.result(reply, lambda: run.out.facts([(name, str(value)) for name, value in facts.items()]))
    return OK


def _diagnose(run: Run) -> int:
    """The object as the device told it; with `--output` it goes to a file."""
    reply = run.client.command(run.options.device, "diagnostics")
    if reply.get("reason", "none") != "none":
        raise ClientError(f"{run.options.device}: {reply.get('detail') or reply['reason']}")
    try:
        told = json.loads(reply.get("text", ""))
    except ValueError as error:
        raise ClientError(f"{run.options.device} answered no diagnostics: {error}") from error
    checks = told.get("checks") or []
    if run.options.output is not None:
        try:
            run.options.output.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise ClientError(f"{run.options.output} cannot be written: {error.strerror}") from error
    rows = [["ok" if one["ok"] else "FAIL", one["name"], one["words"]] for one in checks]
    run.out.result(told, lambda: run.out.table(["", "check", "found"], rows))
    return OK if all(one["ok"] for one in checks) else FAILED


def _certificate(device: Json) -> str | None:
    """Until when its certificate is good, and whether somebody has to do something about it."""
    ends = device.get("certificate_ends_ms")
    if ends is None:
        return None
    left = (ends - time.time() * 1000) / _DAY_MS
    words = f"ends {moment(ends)}, in {left:.0f} days" if left > 0 else f"ended {moment(ends)}"
    keys = [one["key"][:16] for one in device.get("renewals", []) if one["state"] == "waiting"]
    return f"{words}; waits for `covey device approve {device['id']}`, key {', '.join(keys)}" if keys else words


def _state(device: Json) -> str:
    if device.get("revoked_ms") is not None:
        return "revoked"
    return "online" if device["online"] else "offline"


def _build(build: Json | None) -> str:
    if not build:
        return "-"
    return f"{build.get('version') or build['digest'][:12]} {build.get('target') or ''}".strip()


def _desired(slot: Json) -> str:
    desired = slot.get("desired")
    if not desired:
        return "-"
    if desired.get("action") == "remove":
        return "nothing"
    return f"{desired['version']} {desired['target']}"


def _because(slot: Json) -> str:
    reason = slot.get("reason") or "none"
    return "" if reason == "none" else f"{reason}: {slot.get('detail', '')}"
