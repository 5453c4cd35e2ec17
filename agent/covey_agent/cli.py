"""The device's command line, `covey-agent`. Errors are one line on standard error and a non-zero exit code, never a traceback."""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from covey_agent import __version__
from covey_agent.errors import AgentError, GatewayError, StepError, UsageError
from covey_agent.tuf import cli as tuf_cli


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        options = parser().parse_args(arguments)
        logging.basicConfig(
            stream=sys.stderr,
            level=logging.DEBUG if options.verbose else logging.INFO,
            format="%(asctime)s %(levelname)s %(message)s",
        )
        code: int = options.command(options)
    except AgentError as error:
        print(f"covey-agent: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        return 141
    except KeyboardInterrupt:
        return 130
    return code


class _Parser(argparse.ArgumentParser):
    """Wrong arguments are one line, as every other error is."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (`{self.prog} --help` tells more)")


def parser() -> argparse.ArgumentParser:
    top = _Parser(prog="covey-agent", description="Serves the models that the fleet server assigns.")
    top.add_argument("--verbose", action="store_true", help="log more")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, words: str, *, state: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=words, description=words)
        sub.set_defaults(command=run)
        if state:
            sub.add_argument(
                "--state", type=Path, default=Path("/var/lib/covey-agent"), help="the agent's folder (%(default)s)"
            )
        return sub

    sub = command("enroll", enroll, "Join a fleet with a one-time claim token, or a factory's certificate.")
    sub.add_argument("--server", required=True, metavar="URL")
    by = sub.add_mutually_exclusive_group(required=True)
    by.add_argument("--token", help="covey1.FINGERPRINT.SECRET, or - to read it from standard input")
    by.add_argument(
        "--bootstrap",
        type=Path,
        metavar="FILE",
        help="certificate and key (PEM) that a factory has put into this device",
    )
    sub.add_argument("--ca", type=Path, metavar="FILE", help="with --bootstrap: the fleet's CA (PEM)")
    sub.add_argument(
        "--key",
        default="file",
        metavar="PLACE",
        help="where the device's keys are, this one and those after it: file, tpm2, or "
        "pkcs11:token=LABEL?module-path=/LIBRARY.so&pin-source=/FILE (%(default)s)",
    )
    sub.add_argument("--device", metavar="ID", help="the id that this device would like")
    sub.add_argument("--facts", type=Path, metavar="FILE", help="be a simulated device with these facts")
    sub.add_argument("--force", action="store_true", help="replace the identity that is there")
    sub.add_argument("--allow-http", action="store_true", help="send the token over plain http to another machine")

    sub = command("run", run, "Run the agent until it is stopped.")
    sub.add_argument(
        "--inference-port", type=int, default=8090, metavar="N", help="on 127.0.0.1; 0: any free one (%(default)s)"
    )
    sub.add_argument(
        "--inference-socket",
        type=Path,
        metavar="PATH",
        help="Unix socket for applications of every user (in the state folder, for this user alone)",
    )
    sub.add_argument("--facts", type=Path, metavar="FILE", help="be a simulated device with these facts")
    sub.add_argument("--telemetry-interval", type=float, default=10.0, metavar="S", help="seconds (%(default)s)")
    sub.add_argument("--heartbeat", type=float, default=30.0, metavar="S", help="seconds (%(default)s)")
    sub.add_argument(
        "--retry", type=float, default=30.0, metavar="S", help="until a failed order is first tried again (%(default)s)"
    )
    sub.add_argument(
        "--silence", type=float, default=3.0, metavar="S", help="until blocks are asked for again (%(default)s)"
    )
    sub.add_argument(
        "--load-timeout", type=float, default=120.0, metavar="S", help="for one runner to get warm (%(default)s)"
    )
    sub.add_argument(
        "--swap",
        choices=["auto", "parallel", "sequential"],
        default="auto",
        help="load a new build beside the one that serves, or in its place (by the memory there is)",
    )
    sub.add_argument(
        "--budget",
        action="append",
        default=[],
        metavar="MODEL:KEY=VALUE,…",
        help="what a model's builds may take: digits:memory=600,cpus=1.5,priority=high,threads=2; * is every other model (no limits)",
    )
    sub.add_argument("--runner-memory-mb", type=int, help=argparse.SUPPRESS)  # before there were budgets: '*:memory=…'
    sub.add_argument("--quota-mb", type=int, metavar="MB", help="for all builds together (no limit but the disk's)")
    sub.add_argument("--margin-mb", type=int, default=64, metavar="MB", help="of the disk, never used (%(default)s)")
    sub.add_argument(
        "--capture-share",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="keep this share of the requests with their answers, for labelling: 0.01 is one in a hundred (none)",
    )
    sub.add_argument("--capture-mb", type=int, default=200, metavar="MB", help="of what is kept (%(default)s)")
    sub.add_argument("--capture-send", action="store_true", help="let operators fetch what is kept (it stays here)")
    sub.add_argument(
        "--keep-gateway", action="store_true", help="let the gateway go on serving when the agent is stopped"
    )

    sub = command("grpc", grpc, "Let applications ask by gRPC too, until it is stopped (extra `grpc`).")
    sub.add_argument("--port", type=int, default=8001, metavar="N", help="on 127.0.0.1; 0: any free one (%(default)s)")
    sub.add_argument("--inference-socket", type=Path, metavar="PATH", help="as given to `run` (in the state folder)")

    sub = command(
        "otlp", otlp, "Push this device's figures to an OpenTelemetry collector, until it is stopped (extra `otlp`)."
    )
    sub.add_argument("--endpoint", required=True, metavar="URL", help="http://HOST:4318, or https://HOST[:PORT][/PATH]")
    sub.add_argument("--interval", type=float, default=30.0, metavar="S", help="between two pushes (%(default)s)")
    sub.add_argument(
        "--header", action="append", default=[], metavar="NAME=VALUE", help="sent with each push; may be repeated"
    )
    sub.add_argument("--ca", type=Path, metavar="FILE", help="authorities to know the collector by (the system's)")

    sub = command("status", status, "What this device runs.")
    sub.add_argument("--json", action="store_true")

    sub = command("infer", infer, "Send one request to the local gateway.")
    sub.add_argument("model")
    sub.add_argument("file", type=Path, help="a .json request of the Open Inference Protocol, or one input as .npy")
    sub.add_argument("--input", metavar="NAME", help="the input that a .npy file is for")

    sub = command("install", install, "Follow the orders for this device in a bundle, without a network.")
    sub.add_argument("file", type=Path, metavar="FILE", help="written by `covey device bundle`")
    sub.add_argument(
        "--timeout", type=float, default=600.0, metavar="S", help="to wait for it to serve (%(default)s); exit code 3"
    )

    sub = command("rollback", rollback, "Let the build before serve again; the server is told.")
    sub.add_argument("model")

    sub = command("pin", pin, "Stay with the build that serves: orders for the model are refused until `unpin`.")
    sub.add_argument("model")
    sub.add_argument("--why", default="", metavar="TEXT", help="told to the server with each refusal")

    sub = command("unpin", unpin, "Follow orders for the model again, a refused one first.")
    sub.add_argument("model")

    sub = command("lock", lock, "Lock the device: orders that ask for an unlocked device wait meanwhile.")
    sub.add_argument("--owner", required=True, metavar="NAME", help="who locks it, shown to the operators")
    sub.add_argument("--ttl", default="10m", metavar="TIME", help="until it ends by itself: 90s, 15m, 2h (%(default)s)")

    sub = command("unlock", unlock, "Let the device's lock go.")
    sub.add_argument("--owner", required=True, metavar="NAME")

    sub = command("doctor", doctor, "Check everything that a working agent needs.")
    sub.add_argument("--json", action="store_true")
    sub.add_argument("--margin-mb", type=int, default=64, metavar="MB")

    sub = command("diagnose", diagnose, "Write what is to be known of a fault into a zip file: checks, state, logs.")
    sub.add_argument(
        "--output", "-o", type=Path, default=Path("covey-diagnostics.zip"), metavar="FILE", help="(%(default)s)"
    )
    sub.add_argument("--margin-mb", type=int, default=64, metavar="MB")

    sub = command("tuf", tuf, "The update client: init, refresh, download.", state=False)
    tuf_cli.add_arguments(sub)

    command("version", version, "Print the version.", state=False)
    return top


def enroll(options: argparse.Namespace) -> int:
    from covey_agent import daemon, durable
    from covey_agent.enrol import Factory, enrol
    from covey_agent.facts import measure_facts, read_facts
    from covey_agent.keys import check_where

    state: Path = options.state
    place = check_where(options.key)
    if (state / "identity").exists() and not options.force:
        raise UsageError(f"{state} is enrolled already (--force replaces the identity)")
    facts_file: bytes | None = None
    try:
        durable.make_folder(state, mode=0o700)
        if options.facts is not None:
            facts = read_facts(options.facts)
            facts_file = options.facts.read_bytes()
        else:
            facts = measure_facts(state)
    except OSError as error:
        reason = "it is no folder" if isinstance(error, FileExistsError) else error.strerror
        raise AgentError(f"{error.filename or state} cannot be used: {reason}") from error
    if (options.bootstrap is None) != (options.ca is None):
        raise UsageError("--bootstrap and --ca go together")
    claim: str | Factory = options.token
    if options.bootstrap is not None:
        claim = Factory(options.bootstrap, options.ca)
    elif claim == "-":
        claim = sys.stdin.readline()
    with daemon.locked(state):
        identity = enrol(
            server=options.server,
            token=claim,
            state=state,
            facts=facts,
            facts_file=facts_file,
            device=options.device,
            allow_http=options.allow_http,
            place=place,
        )
    print(
        f"enrolled as {identity.device}{' (simulated)' if facts.simulated else ''}; broker {identity.broker.host}:{identity.broker.port}"
    )
    return 0


def run(options: argparse.Namespace) -> int:
    from covey_agent import daemon
    from covey_agent.core.swap import SwapMode
    from covey_agent.fetch import FetchLimits
    from covey_agent.gateway.budget import EVERY, BudgetError, Budgets, parse
    from covey_agent.settings import Settings

    if not 0 <= options.inference_port <= 65535:
        raise UsageError(f"port {options.inference_port} is not between 0 and 65535")
    for name in ("telemetry_interval", "heartbeat", "retry", "silence", "load_timeout"):
        if not 0.1 <= getattr(options, name) <= 86_400:
            raise UsageError(f"--{name.replace('_', '-')} must be between 0.1 and 86400 seconds")
    if not 0 <= options.capture_share <= 1 or options.capture_mb < 1:
        raise UsageError("--capture-share must be between 0 and 1, --capture-mb at least 1")
    if options.capture_send and not options.capture_share:
        raise UsageError("--capture-send needs --capture-share: without it nothing is kept that could be sent")
    budgets = list(options.budget)
    if options.runner_memory_mb is not None:
        budgets.append(f"{EVERY}:memory={options.runner_memory_mb}")
    try:
        Budgets(parse(text) for text in budgets)
    except BudgetError as error:
        raise UsageError(f"--budget: {error}") from error
    settings = Settings(
        state=options.state.resolve(),
        inference_port=options.inference_port,
        inference_socket=options.inference_socket.absolute() if options.inference_socket is not None else None,
        facts_file=options.facts,
        telemetry_interval_s=options.telemetry_interval,
        heartbeat_s=options.heartbeat,
        quota=options.quota_mb * 1_000_000 if options.quota_mb is not None else None,
        margin=options.margin_mb * 1_000_000,
        load_timeout_s=options.load_timeout,
        swap=SwapMode(options.swap),
        budgets=tuple(budgets),
        capture_share=options.capture_share,
        capture_mb=options.capture_mb,
        capture_send=options.capture_send,
        retry_first_s=options.retry,
        fetch=FetchLimits(silence_s=options.silence),
    )
    daemon.run(settings, keep_gateway=options.keep_gateway)
    return 0


def grpc(options: argparse.Namespace) -> int:
    from covey_agent.gateway_process import run_folder

    try:
        from covey_agent.grpc_door.server import run as serve
    except ImportError as error:
        raise AgentError(f"gRPC is not installed ({error}): pip install 'covey-agent[grpc]'") from error
    if not 0 <= options.port <= 65535:
        raise UsageError(f"port {options.port} is not between 0 and 65535")
    serve(options.inference_socket or run_folder(options.state) / "inference.sock", "127.0.0.1", options.port)
    return 0


def otlp(options: argparse.Namespace) -> int:
    try:
        from covey_agent.otlp.collector import collector_of
        from covey_agent.otlp.process import run as push
    except ImportError as error:
        raise AgentError(f"OTLP is not installed ({error}): pip install 'covey-agent[otlp]'") from error
    if not 1 <= options.interval <= 3600:
        raise UsageError("--interval must be between 1 and 3600 seconds")
    push(options.state, collector_of(options.endpoint, options.header, options.ca), options.interval)
    return 0


def status(options: argparse.Namespace) -> int:
    from covey_agent.status import collect_status

    told = collect_status(options.state)
    if options.json:
        print(json.dumps(told, indent=2))
        return 0
    simulated = " (simulated)" if told["simulated"] else ""
    agent = ("running, " + ("connected" if told["connected"] else "offline")) if told["running"] else "not running"
    print(f"{told['device']}{simulated}: {agent}; {told['broker']}")
    print(f"certificate: {_certificate_words(told['certificate'])}")
    gateway = told["gateway"]
    print(f"gateway: {'pid {pid}, port {port}'.format(**gateway) if gateway else 'does not answer'}")
    for model in told["models"]:
        print(
            f"{model['model']}: {model['version'] or 'none'} {model['target'] or ''} (build {(model['active'] or '-')[:12]})"
        )
        if model["pinned"] is not None:
            print(f"  pinned: {model['pinned']}")
        if model["state"]:
            words = " ".join(part for part in (model["reason"], model["detail"]) if part and part != "none")
            print(f"  newest order: {model['assigned']}: {model['state']}{': ' + words if words else ''}")
    return 0


def _certificate_words(told: dict[str, Any]) -> str:
    ends = told["ends_ms"]
    if ends is None:
        return "cannot be read"
    day = datetime.datetime.fromtimestamp(ends / 1000, datetime.timezone.utc)
    left = ends - time.time_ns() // 1_000_000
    words = f"ends {day:%Y-%m-%d}, in {left // 86_400_000} days" if left > 0 else f"ended {day:%Y-%m-%d}"
    waits = {
        "asking": "asking for the next one",
        "undecided": "waiting for an operator",
        "on_trial": "the next one is on trial",
        "refused": "the next one is refused",
        "failed": "not renewed yet",
    }.get(told["standing"])
    return ": ".join(part for part in ("; ".join(part for part in (words, waits) if part), told["words"]) if part)


def infer(options: argparse.Namespace) -> int:
    from covey_agent.infer import infer as send

    print(json.dumps(send(_gateway_port(options.state), options.model, options.file, options.input)))
    return 0


def install(options: argparse.Namespace) -> int:
    from covey_agent.installing import install_bundle

    _check_running(options.state)
    return install_bundle(options.state, options.file.absolute(), options.timeout, partial(print, flush=True))


def rollback(options: argparse.Namespace) -> int:
    from covey_agent.asks import GoBack

    return _ask(options, GoBack)


def pin(options: argparse.Namespace) -> int:
    from covey_agent.asks import Pin

    return _ask(options, Pin, options.why)


def unpin(options: argparse.Namespace) -> int:
    from covey_agent.asks import Unpin

    return _ask(options, Unpin)


def _ask(options: argparse.Namespace, kind: Any, *more: str) -> int:
    """One thing of the running agent; 1 if it is not done."""
    from covey_agent.asks import ask_agent
    from covey_contract.manifest import MODEL_NAME

    if not MODEL_NAME.fullmatch(options.model):
        raise UsageError(f"{options.model!r} is not the name of a model")
    _check_running(options.state)
    answer = ask_agent(options.state, kind(options.model, *more))
    print(answer.words, file=sys.stdout if answer.done else sys.stderr)
    return 0 if answer.done else 1


def _check_running(state: Path) -> None:
    from covey_agent.daemon import is_running

    if not is_running(state):
        raise AgentError(f"no agent runs on {state}")


def lock(options: argparse.Namespace) -> int:
    from covey_agent import locking

    told = locking.lock(_gateway_port(options.state), options.owner, locking.seconds(options.ttl))
    print(
        f"locked by {options.owner}{'' if told['durable'] else ' (until the gateway restarts: the disk does not take it)'}"
    )
    return 0


def unlock(options: argparse.Namespace) -> int:
    from covey_agent import locking

    port = _gateway_port(options.state)
    released = locking.unlock(port, options.owner)["released"]
    others = [one["owner"] for one in locking.holders(port)]
    print(
        "unlocked" if released else f"{options.owner} held no lock",
        *([f"(still by {', '.join(others)})"] if others else []),
    )
    return 0


def _gateway_port(state: Path) -> int:
    """Raises `AgentError` if no gateway runs there."""
    from covey_agent.gateway_client import GatewayClient
    from covey_agent.gateway_process import run_folder

    try:
        return GatewayClient(run_folder(state) / "gateway.sock").status().http_port
    except (GatewayError, StepError) as error:
        raise AgentError(f"no gateway runs on {state}: {error}") from error


def doctor(options: argparse.Namespace) -> int:
    from covey_agent.book import read_state
    from covey_agent.daemon import is_running
    from covey_agent.doctor import examine

    if not options.state.is_dir():
        raise AgentError(f"{options.state} is not there; run `covey-agent enroll` first")
    logging.disable(logging.ERROR)  # the checks say it themselves
    try:
        book = read_state(options.state)
        running = is_running(options.state)
        checks = list(examine(options.state, book, running=running, margin=options.margin_mb * 1_000_000))
    finally:
        logging.disable(logging.NOTSET)
    if options.json:
        print(json.dumps([check._asdict() for check in checks], indent=2))
    else:
        for check in checks:
            print(f"{'ok  ' if check.ok else 'FAIL'} {check.name:12} {check.words}")
    return 0 if all(check.ok for check in checks) else 1


def diagnose(options: argparse.Namespace) -> int:
    from covey_agent.diagnostics import archive

    if not options.state.is_dir():
        raise AgentError(f"{options.state} is not there; run `covey-agent enroll` first")
    logging.disable(logging.ERROR)  # the checks say it themselves
    try:
        made = archive(options.state, margin=options.margin_mb * 1_000_000)
        options.output.write_bytes(made)
    except OSError as error:
        raise AgentError(f"{options.output} cannot be written: {error.strerror}") from error
    finally:
        logging.disable(logging.NOTSET)
    print(f"{options.output}: {len(made) / 1e3:.0f} kB")
    return 0


def tuf(options: argparse.Namespace) -> int:
    return tuf_cli.run(options)


def version(_options: argparse.Namespace) -> int:
    print(__version__)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
