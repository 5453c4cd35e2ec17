"""`covey webhook …` and `covey mail …`: who is told of what happens."""

from __future__ import annotations

from covey_client.arguments import FAILED, OK, Adder, Run, UsageError, duration
from covey_client.output import Json, ago, moment
from covey_client.waiting import wait

STATES = ("pending", "delivered", "dead")


def add(commands: Adder) -> None:
    hooks = commands.family("webhook", "addresses that are told of events (signed: standardwebhooks.com)")
    hooks.command("list", _list, "list webhooks")
    adding = hooks.command("add", _add, "add a webhook and print the secret that its messages are signed by")
    adding.add_argument("name")
    adding.add_argument("url")
    adding.add_argument(
        "--event", action="append", metavar="EVENT", help="as campaign.halted; repeat for more; default all"
    )
    change = hooks.command("set", _set, "change where a webhook goes, what it is told of, or whether")
    change.add_argument("name")
    change.add_argument("--url")
    change.add_argument("--event", action="append", metavar="EVENT", help="repeat for more; `all` for all")
    switch = change.add_mutually_exclusive_group()
    switch.add_argument("--enable", dest="disabled", action="store_false", default=None)
    switch.add_argument("--disable", dest="disabled", action="store_true")
    rotate = hooks.command("rotate", _rotate, "change a webhook's secret; for a while messages are signed by both")
    rotate.add_argument("name")
    rotate.add_argument("--overlap", type=duration, metavar="TIME", help="how long (default 24h)")
    test = hooks.command("test", _test, "send a test, and wait for what comes of it (exit code 1 if it is not taken)")
    test.add_argument("name")
    test.add_argument("--timeout", type=duration, default=60.0, metavar="TIME")
    hooks.command("remove", _remove, "remove a webhook, with what was still to be sent to it").add_argument("name")
    sent = hooks.command("deliveries", _deliveries, "list what was or is to be delivered, by e-mail too, newest first")
    sent.add_argument("--webhook", metavar="NAME")
    sent.add_argument("--state", choices=STATES, help="dead: given up")
    sent.add_argument("--limit", "-n", type=int, default=50)
    hooks.command("retry", _retry, "deliver again what was given up").add_argument("delivery", type=int, metavar="ID")

    mail = commands.family("mail", "e-mail")
    letter = mail.command("test", _test_mail, "send a test, and wait for what comes of it")
    letter.add_argument("address")
    letter.add_argument("--timeout", type=duration, default=60.0, metavar="TIME")


def _list(run: Run) -> int:
    found = run.client.admin.webhooks()
    columns = ["webhook", "state", "events", "address"]
    rows = [[one["name"], _state(one), ", ".join(one["events"]) or "all", one["url"]] for one in found]
    run.out.result({"items": found}, lambda: run.out.table(columns, rows))
    return OK


def _state(hook: Json) -> str:
    return "active" if hook["disabled_ms"] is None else f"disabled: {hook['disabled_why']}"


def _add(run: Run) -> int:
    made = run.client.admin.add_webhook(run.options.name, run.options.url, run.options.event or ())
    return _secret(run, made)


def _rotate(run: Run) -> int:
    overlap = run.options.overlap
    return _secret(run, run.client.admin.rotate_webhook(run.options.name, None if overlap is None else int(overlap)))


def _secret(run: Run, made: Json) -> int:
    def show() -> None:
        run.out.say(made["secret"])
        until = made["previous_secret_until_ms"]
        also = f"; until {moment(until)} by the old one too" if until else ""
        run.out.note(f"messages to {made['name']} are signed by it{also}; it is not shown again")

    run.out.result(made, show)
    return OK


def _set(run: Run) -> int:
    options = run.options
    changes: dict[str, object] = {}
    if options.url is not None:
        changes["url"] = options.url
    if options.event is not None:
        changes["events"] = [] if options.event == ["all"] else options.event
    if options.disabled is not None:
        changes["disabled"] = options.disabled
    if not changes:
        raise UsageError("give --url, --event, --enable or --disable")
    hook = run.client.admin.change_webhook(options.name, **changes)
    words = f"{hook['name']}: {_state(hook)}; {', '.join(hook['events']) or 'all events'}"
    run.out.result(hook, lambda: run.out.say(words))
    return OK


def _test(run: Run) -> int:
    return _watch(run, run.client.admin.test_webhook(run.options.name))


def _test_mail(run: Run) -> int:
    return _watch(run, run.client.admin.test_mail(run.options.address))


def _watch(run: Run, delivery: Json) -> int:
    """Until the first attempt has been made."""
    tried = wait(
        lambda: run.client.admin.delivery(int(delivery["id"])),
        lambda seen: bool(seen["attempts"]),
        timeout_s=run.options.timeout,
    )
    good = tried["state"] == "delivered"
    words = f"delivered in {tried['duration_ms']} ms" if good else f"not delivered: {tried['error']}"
    run.out.result(tried, lambda: run.out.say(words))
    return OK if good else FAILED


def _remove(run: Run) -> int:
    run.client.admin.remove_webhook(run.options.name)
    run.out.result({"removed": run.options.name}, lambda: run.out.say(f"{run.options.name} is removed"))
    return OK


def _deliveries(run: Run) -> int:
    options = run.options
    found = run.client.admin.deliveries(options.webhook, options.state, max(1, options.limit))
    columns = ["id", "event", "to", "state", "attempts", "happened", "next", "problem"]
    rows = [
        [
            one["id"],
            one["event"],
            one["webhook"] or one["recipient"],
            one["state"],
            one["attempts"],
            ago(one["at_ms"]),
            moment(one["due_ms"]),
            one["error"] or None,
        ]
        for one in found
    ]
    run.out.result({"items": found}, lambda: run.out.table(columns, rows))
    return OK


def _retry(run: Run) -> int:
    again = run.client.admin.retry_delivery(run.options.delivery)
    run.out.result(again, lambda: run.out.say(f"delivery {again['id']} is tried again"))
    return OK
