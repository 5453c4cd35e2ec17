"""`covey-hil`: the demo, the acceptance suite, the load generator, and the device simulator."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from covey_client.api import ClientError
from covey_hil.bench import BENCHES
from covey_hil.processes import ProcessError
from covey_server.fleet.ports import free_port, port_is_free

DEFAULT_PORT = 8080


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="covey-hil", description="Covey's demo, hardware-in-the-loop benches and load generator."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser("demo", help="run the whole story on this machine")
    demo.add_argument("--exit", action="store_true", help="end after the story instead of leaving the console up")
    demo.add_argument("--json", action="store_true", help="print the record as one JSON object on standard output")
    demo.add_argument("--home", type=Path, help="keep everything in this folder (default: a temporary one)")
    demo.add_argument(
        "--kill",
        choices=["server", "broker", "control", "gateway", "runner"],
        help="also kill this process in the middle of a campaign",
    )
    demo.set_defaults(run=_demo)

    accept = commands.add_parser("accept", help="run the acceptance suite against a bench")
    accept.add_argument("--bench", choices=sorted(BENCHES), default="local-process")
    accept.add_argument("--json", action="store_true")
    accept.set_defaults(run=_accept)

    load = commands.add_parser(
        "load", help="send digit images to gateways at a constant rate; commands on standard input"
    )
    load.add_argument("--device", action="append", required=True, metavar="NAME=HOST:PORT")
    load.add_argument("--model", default="digits")
    load.add_argument("--rate", type=float, default=20.0, help="requests per second and device")
    load.add_argument("--record", type=Path, required=True, help="where to write what was seen (.npz)")
    load.set_defaults(run=_load)

    simulate = commands.add_parser("simulate", help="many simulated devices on a broker, until ended by SIGTERM")
    simulate.add_argument("--broker", required=True, metavar="HOST:PORT", help="MQTT without TLS, on this machine")
    simulate.add_argument("--devices", type=Path, required=True, help="a file with one device id a line")
    simulate.add_argument("--facts", type=Path, required=True, help="a file of the facts that they all report")
    simulate.add_argument("--model", required=True)
    simulate.add_argument("--active", help="digest of the build that they serve at first")
    simulate.add_argument(
        "--step", type=float, default=0.5, help="seconds before each step of a deployment, on average"
    )
    simulate.add_argument("--out", type=Path, required=True, help="the folder for status.json and record.json")
    simulate.set_defaults(run=_simulate)

    samples = commands.add_parser("samples", help="write the demo's models and its labelled images into a folder")
    samples.add_argument("folder", type=Path)
    samples.set_defaults(run=_samples)

    docs = commands.add_parser("docs", help="regenerate what the docs quote from the code")
    docs.add_argument("folder", type=Path)
    docs.set_defaults(run=_docs)
    sbom = commands.add_parser("sbom", help="write bills of materials of agent and server, in CycloneDX")
    sbom.add_argument("lock", type=Path)
    sbom.add_argument("folder", type=Path)
    sbom.set_defaults(run=_sbom)

    shots = commands.add_parser("screenshots", help="take pictures of the console, of the demo's story by default")
    shots.add_argument("--url", help="a server that runs; without it the demo's story is told on one of its own first")
    shots.add_argument("--token", help="an API token of that server")
    shots.add_argument("--out", type=Path, required=True, help="the folder for the pictures")
    shots.set_defaults(run=_screenshots)

    options = parser.parse_args(arguments)
    try:
        code: int = options.run(options)
    except (ProcessError, ClientError) as error:
        print(f"covey-hil: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return code


def _demo(options: argparse.Namespace) -> int:
    from covey_hil.demo.run import run_demo

    with tempfile.TemporaryDirectory(prefix="covey-demo-") as temporary:
        home = (options.home or Path(temporary)).resolve()
        home.mkdir(parents=True, exist_ok=True)
        port = DEFAULT_PORT if port_is_free(DEFAULT_PORT) else free_port()
        return run_demo(home, port, stay=not options.exit, as_json=options.json, kill=options.kill)


def _accept(options: argparse.Namespace) -> int:
    from covey_hil.accept import run_acceptance

    with tempfile.TemporaryDirectory(prefix="covey-accept-") as temporary:
        return run_acceptance(options.bench, Path(temporary), as_json=options.json)


def _load(options: argparse.Namespace) -> int:
    from covey_hil.digits.data import load
    from covey_hil.load.generator import Generator, serve_commands
    from covey_hil.load.record import Recorder

    urls = {}
    for device in options.device:
        name, _, address = device.partition("=")
        host, _, port = address.rpartition(":")
        urls[name] = (host, int(port))
    _, held_out = load()
    recorder = Recorder()
    generator = Generator(urls, options.model, options.rate, held_out, recorder)
    asyncio.run(serve_commands(generator, recorder, options.record))
    return 0


def _simulate(options: argparse.Namespace) -> int:
    import msgspec

    from covey_contract.facts import Facts
    from covey_hil.simulator.fleet import Plan, simulate

    host, _, port = options.broker.rpartition(":")
    plan = Plan(
        ids=options.devices.read_text().split(),
        facts=msgspec.json.decode(options.facts.read_bytes(), type=Facts),
        model=options.model,
        active=options.active,
        host=host,
        port=int(port),
        step_s=options.step,
    )
    asyncio.run(simulate(plan, options.out))
    return 0


def _samples(options: argparse.Namespace) -> int:
    from covey_hil.digits.data import model_path, write_samples

    options.folder.mkdir(parents=True, exist_ok=True)
    models = [shutil.copy(model_path(version), options.folder) for version in ("1.0", "1.1", "1.2")]
    for path in (*models, *write_samples(options.folder)):
        print(path)
    return 0


def _sbom(options: argparse.Namespace) -> int:
    from covey_hil.sbom import SbomError, write_sboms

    try:
        for path in write_sboms(options.lock, options.folder):
            print(path)
    except SbomError as error:
        print(f"covey-hil: {error}", file=sys.stderr)
        return 1
    return 0


def _docs(options: argparse.Namespace) -> int:
    from covey_hil.docs import write_docs

    for path in write_docs(options.folder):
        print(path)
    return 0


def _screenshots(options: argparse.Namespace) -> int:
    from covey_hil.demo.run import after_story
    from covey_hil.screenshots import take_screenshots

    if bool(options.url) != bool(options.token):
        raise ProcessError("--url and --token belong together")
    with ExitStack() as held:
        if options.url:
            url, token = options.url.rstrip("/"), options.token
        else:
            home = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="covey-screenshots-")))
            server = held.enter_context(after_story(home, free_port()))
            url, token = server.url, server.environment["COVEY_TOKEN"]
        for path in take_screenshots(url, token, options.out):
            print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
