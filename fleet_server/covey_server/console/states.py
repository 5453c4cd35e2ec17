"""What each state, reason and action is called and how it is shown: never by colour alone. Pure, but for the language."""

from __future__ import annotations

from dataclasses import dataclass

from covey_server.console.i18n import gettext as _
from covey_server.console.i18n import noted


@dataclass(frozen=True)
class Look:
    """`tone` is ok, busy, warn, bad or calm; `icon` a name in parts.html."""

    tone: str
    icon: str
    text: str


_OK, _BUSY, _WARN, _BAD, _CALM = "ok", "busy", "warn", "bad", "calm"

_LOOKS: dict[str, Look] = {
    # devices
    "online": Look(_OK, "dot", noted("online")),
    "offline": Look(_CALM, "ring", noted("offline")),
    "revoked": Look(_BAD, "cross", noted("revoked")),
    "on_target": Look(_OK, "check", noted("on target")),
    "behind": Look(_BUSY, "clock", noted("on the way")),
    "drifted": Look(_WARN, "eye", noted("drifted")),
    # campaigns
    "planned": Look(_CALM, "ring", noted("planned")),
    "queued": Look(_CALM, "clock", noted("queued")),
    "retrying": Look(_WARN, "back", noted("to be tried again")),
    "awaiting_approval": Look(_WARN, "person", noted("waits for approval")),
    "approved": Look(_OK, "person", noted("approved")),
    "running": Look(_BUSY, "play", noted("running")),
    "paused": Look(_WARN, "pause", noted("paused")),
    "halted": Look(_BAD, "stop", noted("halted")),
    "rolling_back": Look(_WARN, "back", noted("rolling back")),
    "rolled_back": Look(_WARN, "back", noted("rolled back")),
    "restored_locally": Look(_WARN, "back", noted("went back by itself")),
    "done": Look(_OK, "check", noted("done")),
    "aborted": Look(_CALM, "stop", noted("aborted")),
    "failed": Look(_BAD, "cross", noted("failed")),
    "skipped": Look(_CALM, "ring", noted("left out")),
    "not_reached": Look(_WARN, "ring", noted("not reached")),
    "in_progress": Look(_BUSY, "clock", noted("in progress")),
    "served": Look(_OK, "check", noted("serves")),
    "unserved": Look(_BUSY, "check", noted("active, no answer yet")),
    "going_back": Look(_WARN, "back", noted("going back")),
    "back": Look(_WARN, "back", noted("went back")),
    "left_out": Look(_CALM, "ring", noted("left out")),
    "unknown": Look(_WARN, "clock", noted("unknown")),
    "quarantined": Look(_BAD, "stop", noted("quarantined")),
    # stages
    "waiting": Look(_CALM, "ring", noted("waiting")),
    "passed": Look(_OK, "check", noted("passed")),
    "stopped": Look(_BAD, "stop", noted("stopped")),
    # gates
    "passing": Look(_OK, "check", noted("passing")),
    "breached": Look(_BAD, "cross", noted("breached")),
    "no_evidence": Look(_CALM, "clock", noted("no evidence yet")),
    # deployments on a device
    "issued": Look(_CALM, "clock", noted("not heard of yet")),
    "assigned": Look(_BUSY, "clock", noted("assigned")),
    "fetching": Look(_BUSY, "down", noted("fetching")),
    "verifying": Look(_BUSY, "clock", noted("verifying")),
    "staged": Look(_BUSY, "clock", noted("staged")),
    "warming": Look(_BUSY, "clock", noted("warming up")),
    "probation": Look(_BUSY, "eye", noted("probation")),
    "active": Look(_OK, "check", noted("active")),
    "refused": Look(_BAD, "cross", noted("refused")),
    "removed": Look(_CALM, "ring", noted("removed")),
    "superseded": Look(_CALM, "ring", noted("superseded")),
    "replaced": Look(_CALM, "ring", noted("replaced")),
    # builds; "queued" as above
    "building": Look(_BUSY, "gear", noted("building")),
    "built": Look(_OK, "check", noted("built")),
    "checked": Look(_OK, "eye", noted("checked")),
    "unsupported": Look(_CALM, "ring", noted("not possible")),
    "waiting_for_builder": Look(_WARN, "clock", noted("no builder yet")),
    # tokens, people, keys, deliveries of webhooks
    "valid": Look(_OK, "check", noted("valid")),
    "expired": Look(_CALM, "clock", noted("expired")),
    "disabled": Look(_CALM, "ring", noted("disabled")),
    "delivered": Look(_OK, "check", noted("delivered")),
    "pending": Look(_BUSY, "clock", noted("pending")),
    "dead": Look(_BAD, "cross", noted("given up")),
}

# Names of the engine and the contract, as people say them.
_NAMES: dict[str, str] = {
    # reasons of the contract
    "bad_signature": noted("bad signature"),
    "bad_message": noted("bad message"),
    "wrong_device": noted("meant for another device"),
    "old_counter": noted("older than an order it has"),
    "expired": noted("expired"),
    "wrong_manifest": noted("wrong manifest"),
    "wrong_hardware": noted("wrong hardware"),
    "no_runtime": noted("no runtime for it"),
    "no_space": noted("no space"),
    "no_memory": noted("too little memory"),
    "quarantined": noted("quarantined"),
    "pinned": noted("pinned to another build"),
    "waiting_for_time": noted("waits for its time"),
    "waiting_for_window": noted("waits for its maintenance window"),
    "waiting_for_power": noted("waits for mains power"),
    "waiting_for_idle": noted("waits until it is idle"),
    "locked": noted("locked by its application"),
    "fetch_failed": noted("fetching failed"),
    "digest_mismatch": noted("files are not those that were signed"),
    "extra_file": noted("a file too many"),
    "storage_error": noted("storage error"),
    "load_failed": noted("could not be loaded"),
    "load_timeout": noted("loading took too long"),
    "golden_mismatch": noted("wrong answers in the self-test"),
    "runner_crashed": noted("its runner crashed"),
    "runner_hung": noted("its runner hung"),
    "inference_errors": noted("inference errors"),
    "bad_output": noted("bad output"),
    "too_slow": noted("too slow"),
    "probation_interrupted": noted("probation was interrupted"),
    "superseded": noted("superseded"),
    "operator": noted("by an operator"),
    "rolled_back": noted("rolled back"),
    "unknown_command": noted("unknown command"),
    "not_allowed": noted("not allowed by its settings"),
    "not_there": noted("not there any more"),
    "internal": noted("internal error"),
    "timed_out": noted("took too long"),
    "started": noted("started"),
    "power_loss": noted("power loss"),
    "stopped": noted("stopped"),
    # gates and measures
    "install_failures": noted("install failures"),
    "errors": noted("errors"),
    "latency": noted("latency"),
    "drift": noted("drift of outputs"),
    "temperature": noted("temperature"),
    "throttling": noted("throttling"),
    "memory": noted("memory"),
    "served": noted("answers served"),
    "silence": noted("silence"),
    "end_to_end": noted("end to end"),
    "compute": noted("compute"),
    "queue": noted("queue"),
    # kinds of orders
    "rollout": noted("rollout"),
    "rollback": noted("rollback"),
    "manual": noted("by hand"),
    "run": noted("run"),
    "remove": noted("remove"),
    # objectives
    "rank": noted("rank in the profile"),
    "accuracy": noted("accuracy"),
    "size": noted("size"),
    # roles
    "viewer": noted("viewer"),
    "operator_role": noted("operator"),
    "approver": noted("approver"),
    "admin": noted("admin"),
    "worker": noted("build worker"),
    # what came of something, in the audit log
    "outcome": noted("outcome"),
    "target": noted("target"),
    "targets": noted("targets"),
    "top1": noted("top-1"),
    "model": noted("model"),
    "models": noted("models"),
    "version": noted("version"),
    "role": noted("role"),
    "events": noted("events"),
    "expires": noted("good until"),
    "owner": noted("owner"),
    "labels": noted("labels"),
    "groups": noted("groups"),
    "digest": noted("digest"),
    "reason": noted("reason"),
    "again": noted("again"),
    "was": noted("was"),
    "stage": noted("stage"),
    "from": noted("from"),
    "sessions": noted("sessions"),
    "tokens": noted("tokens"),
    "email": noted("e-mail"),
    "notify": noted("told of"),
    "kind": noted("kind"),
    "assignment": noted("assignment"),
    "selector": noted("selector"),
    "devices": noted("devices"),
    "url": noted("address"),
    "token": noted("token"),
    # events of a campaign
    "created": noted("created"),
    "stage_started": noted("stage started"),
    "stage_passed": noted("stage passed"),
    "gate_breached": noted("gate breached"),
    "breach_accepted": noted("breach accepted"),
    "soak_skipped": noted("soak skipped"),
    "resumed": noted("resumed"),
    "restoring": noted("restoring"),
    "paused": noted("paused"),
    "halted": noted("halted"),
    "rolling_back": noted("going back"),
    "done": noted("done"),
    "aborted": noted("aborted"),
    "failed": noted("failed"),
    "approved": noted("approved"),
}

_ACTIONS: dict[str, str] = {
    "build.finish": noted("finished a build"),
    "build.queue": noted("queued a build"),
    "build.retry": noted("had a build made again"),
    "campaign.create": noted("made a campaign"),
    "campaign.start": noted("started a campaign"),
    "campaign.pause": noted("paused a campaign"),
    "campaign.resume": noted("resumed a campaign"),
    "campaign.abort": noted("aborted a campaign"),
    "campaign.rollback": noted("rolled a campaign back"),
    "campaign.skip-soak": noted("skipped a soak"),
    "campaign.approve": noted("approved a campaign"),
    "campaign.reject": noted("rejected a campaign"),
    "campaign.clone": noted("cloned a campaign"),
    "console.login": noted("logged in"),
    "device.assign": noted("gave a device a build"),
    "device.command": noted("asked a device"),
    "device.enrol": noted("enrolled a device"),
    "device.labels": noted("changed labels"),
    "device.renew": noted("renewed its certificate"),
    "device.renewal_approve": noted("approved a device’s key"),
    "device.renewal_asked": noted("asked for a certificate after its end"),
    "device.renewal_refuse": noted("refused a device’s key"),
    "device.revoke": noted("cut a device off"),
    "samples.fetch": noted("fetched samples from a device"),
    "samples.download": noted("downloaded samples"),
    "samples.delete": noted("deleted samples"),
    "group.delete": noted("deleted a group"),
    "group.put": noted("changed a group"),
    "login-code.create": noted("made a login code"),
    "claim_token.create": noted("made a claim token"),
    "login": noted("logged in by the command line"),
    "logout.everywhere": noted("logged somebody out everywhere"),
    "person.add": noted("added a person"),
    "person.change": noted("changed a person"),
    "person.invite": noted("invited a person"),
    "person.password": noted("chose a password"),
    "token.create": noted("made an API token"),
    "token.revoke": noted("revoked an API token"),
    "version.push": noted("pushed a version"),
    "webhook.add": noted("added a webhook"),
    "webhook.change": noted("changed a webhook"),
    "webhook.remove": noted("removed a webhook"),
    "webhook.rotate": noted("changed a webhook’s secret"),
    "webhook.test": noted("tested a webhook"),
    "mail.test": noted("sent a test by e-mail"),
    "delivery.retry": noted("delivered something again"),
}


def look(state: str | None) -> Look:
    """How this state is shown; an unknown one as it is written."""
    if state is None:
        return Look(_CALM, "ring", _("none"))
    found = _LOOKS.get(state)
    return Look(_CALM, "ring", spaced(state)) if found is None else Look(found.tone, found.icon, _(found.text))


def name(word: str) -> str:
    """A name of the engine or the contract in words: `inference_errors` as "inference errors"."""
    found = _NAMES.get(word)
    return spaced(word) if found is None else _(found)


def role(word: str) -> str:
    return name("operator_role" if word == "operator" else word)


def action(word: str) -> str:
    """What was done, of the audit log: `campaign.start` as "started a campaign"."""
    found = _ACTIONS.get(word)
    return spaced(word.replace(".", " ")) if found is None else _(found)


_EVENTS: dict[str, str] = {
    "campaign.started": noted("a campaign starts"),
    "campaign.stage_passed": noted("a stage passes"),
    "campaign.gate_breached": noted("a gate is breached"),
    "campaign.paused": noted("a campaign pauses"),
    "campaign.halted": noted("a campaign halts"),
    "campaign.rolling_back": noted("a campaign begins to go back"),
    "campaign.rolled_back": noted("a campaign has gone back"),
    "campaign.done": noted("a campaign is done"),
    "campaign.aborted": noted("a campaign is aborted"),
    "campaign.failed": noted("a campaign fails"),
    "campaign.approval_wanted": noted("a campaign wants approval"),
    "device.quarantined": noted("a device is quarantined"),
    "build.failed": noted("a build fails"),
    "webhook.test": noted("a test"),
}


def event(name: str) -> str:
    """What somebody is told of: `campaign.halted` as "a campaign halts"."""
    found = _EVENTS.get(name)
    return spaced(name.replace(".", " ")) if found is None else _(found)


_KINDS: dict[str, str] = {
    "campaign": noted("campaigns"),
    "device": noted("devices"),
    "samples": noted("samples"),
    "group": noted("groups"),
    "version": noted("models and versions"),
    "build": noted("builds"),
    "person": noted("people"),
    "token": noted("API tokens"),
    "claim_token": noted("claim tokens"),
    "console": noted("logins to the console"),
    "webhook": noted("webhooks"),
}


def action_kinds() -> list[tuple[str, str]]:
    """What entries of the audit log may be about: the part before the dot of their actions, and its words."""
    return [(kind, _(text)) for kind, text in _KINDS.items()]


_EVENT_TONES = {
    "gate_breached": "bad",
    "halted": "bad",
    "failed": "bad",
    "rolling_back": "warn",
    "rolled_back": "warn",
    "paused": "warn",
    "stage_passed": "ok",
    "done": "ok",
}


def event_tone(kind: str) -> str:
    return _EVENT_TONES.get(kind, "calm")


def spaced(word: str) -> str:
    return word.replace("_", " ")
