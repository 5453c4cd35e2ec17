"""`covey model …` and `covey build …`"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from covey_client.arguments import FAILED, OK, TIMED_OUT, Adder, Run, UsageError, duration, file, pair
from covey_client.model_signing import sign, verify
from covey_client.output import Json, Output, make_table, moment, size
from covey_client.waiting import TimedOut, wait
from covey_contract.building import MAX_BATCH_KEY, METRIC_KEY

# A build that waits for a builder is given this long for one to come.
BUILDER_S = 10.0
_WORKING = frozenset({"queued", "building"})
# A target that can only be checked here has come to its good end when its graph was found fit.
_GOOD = frozenset({"built", "checked"})
_STATES = ("queued", "building", "built", "checked", "refused", "unsupported", "failed")
_COLUMNS = ["id", "version", "target", "state", "size", "accuracy", "p50", "why"]


def add(commands: Adder) -> None:
    models = commands.family("model", "models: push versions of them, and look")
    models.command("list", _list, "list models")
    models.command("show", _show, "show a model's versions and their builds").add_argument("model")

    push = models.command(
        "push", _push, "push a version: upload a trained model, which is then built for every kind of device"
    )
    push.add_argument("model")
    push.add_argument("version")
    push.add_argument("source", type=file, help="the trained model (ONNX)")
    push.add_argument(
        "--target", action="append", default=[], help="build this target; default: all that enrolled devices need"
    )
    push.add_argument("--calibration", type=file, metavar="FILE", help="inputs for quantization (.npz)")
    push.add_argument("--evaluation", type=file, metavar="FILE", help="inputs and labels to measure accuracy on (.npz)")
    push.add_argument("--labels", type=file, metavar="FILE", help="one class name a line (.txt)")
    push.add_argument(
        "--budget", type=float, help="highest absolute drop of accuracy that a build may have (default 0.01)"
    )
    push.add_argument(
        "--metric",
        metavar="METRIC",
        help="what builds are judged by: classification, detection:LAYOUT, regions, characters, decisions, embedding, or a function "
        "module:function of the builder's (default: what the evaluation declares, or its labels)",
    )
    push.add_argument(
        "--max-batch",
        type=int,
        metavar="N",
        help="builds that compute up to N waiting requests at once, where the model allows it (default: none)",
    )
    push.add_argument(
        "--signature",
        type=file,
        metavar="FILE",
        help="an OpenSSF Model Signing signature of the source: pushed only if it is good",
    )
    push.add_argument("--signer", type=file, metavar="FILE", help="for --signature: the signer's public key (.pem)")
    push.add_argument("--description")
    push.add_argument(
        "--metadata", action="append", type=pair, default=[], metavar="KEY=VALUE", help="for applications"
    )
    push.add_argument(
        "--wait",
        action="store_true",
        help="wait until every build is settled; exit code 1 if one failed or was refused, or if one that --target asks "
        "for was not built (without --target, those that wait for a builder of their kind do not count)",
    )
    push.add_argument("--timeout", type=duration, default=1800.0, help="for --wait (default 30m); exit code 3")

    signing = models.command(
        "sign", _sign, "sign a trained model by OpenSSF Model Signing, for whoever it is handed to"
    )
    signing.add_argument("source", type=file, help="the trained model")
    signing.add_argument(
        "--key", type=file, required=True, metavar="FILE", help="a private key on P-256, P-384 or P-521 (.pem)"
    )
    signing.add_argument("--out", type=Path, metavar="FILE", help="where the signature goes (default: SOURCE.sig)")
    signing.set_defaults(without_server=_sign_here)

    builds = commands.family("build", "builds: one for each version and target")
    listing = builds.command("list", _list_builds, "list builds")
    listing.add_argument("--model")
    listing.add_argument("--version")
    listing.add_argument("--state", choices=_STATES)
    builds.command("show", _show_build, "show a build with everything found out about it").add_argument("id", type=int)
    builds.command("retry", _retry, "build again what did not succeed").add_argument("id", type=int)


def _list(run: Run) -> int:
    found = run.client.models()
    rows = [[one["name"], one["versions"], one["newest"], one["description"]] for one in found]
    run.out.result({"items": found}, lambda: run.out.table(["model", "versions", "newest", "description"], rows))
    return OK


def _show(run: Run) -> int:
    model = run.client.model(run.options.model)

    def show() -> None:
        run.out.facts([("model", model["name"]), ("description", model["description"])])
        for version in model["versions"]:
            run.out.say("")
            run.out.say(
                f"{version['version']}, pushed {moment(version['created_ms'])} by {version['created_by']}: "
                f"{version['source_filename']}, {size(version['source']['size'])}"
            )
            run.out.table(_COLUMNS, _rows(version["builds"]))

    run.out.result(model, show)
    return OK


def _sign(run: Run) -> int:
    return _sign_here(run.options)


def _sign_here(options: argparse.Namespace) -> int:
    """It needs no server."""
    path = options.out or options.source.with_name(f"{options.source.name}.sig")
    sign(options.source, options.key, path)
    out = Output(getattr(options, "json", False))
    out.result({"signature": str(path)}, lambda: out.say(str(path)))
    return OK


def _push(run: Run) -> int:
    options = run.options
    if (options.signature is None) != (options.signer is None):
        raise UsageError("--signature and --signer belong together")
    if options.signature is not None:
        verify(options.source, options.signature, options.signer)
    files = {
        name: path
        for name in ("source", "calibration", "evaluation", "labels")
        if (path := getattr(options, name)) is not None
    }
    with run.out.upload({name: path.stat().st_size for name, path in files.items()}) as sent:
        version = run.client.push_version(
            options.model,
            options.version,
            options.source,
            calibration=options.calibration,
            evaluation=options.evaluation,
            labels=options.labels,
            budget=options.budget,
            description=options.description,
            targets=options.target,
            metadata=_metadata(options),
            progress=sent,
        )
    code = OK
    if options.wait:
        version, code = _wait(run, version)

    def show() -> None:
        run.out.say(f"{version['model']} {version['version']}: {len(version['builds'])} builds")
        run.out.table(_COLUMNS, _rows(version["builds"]))

    run.out.result(version, show)
    return code


def _metadata(options: argparse.Namespace) -> dict[str, str]:
    """What applications are told, and what builders are."""
    ours = {METRIC_KEY: options.metric, MAX_BATCH_KEY: options.max_batch}
    return {**dict(options.metadata), **{key: str(value) for key, value in ours.items() if value}}


def _wait(run: Run, version: Json) -> tuple[Json, int]:
    """Follow the builds until all are settled; the version as it is then, and the exit code."""
    options = run.options
    settled = Settled(options.target, time.monotonic)
    with run.out.live() as update:

        def look() -> Json:
            now = run.client.version(options.model, options.version)
            states = ", ".join(f"{one['target']} {one['state']}" for one in now["builds"])
            update(make_table(_COLUMNS, _rows(now["builds"])), states)
            return now

        try:
            version = wait(look, settled, timeout_s=options.timeout)
        except TimedOut as error:
            run.out.note(f"covey: not every build is settled: {error}")
            return run.client.version(options.model, options.version), TIMED_OUT
    missing = settled.missing(version)
    if missing:
        run.out.note(f"covey: not built: {'; '.join(_with_reason(one) for one in missing)}")
    return version, FAILED if missing else OK


class Settled:
    """Whether the builds of a version are settled, and which of those that were asked for are missing then."""

    def __init__(self, asked: Sequence[str], clock: Callable[[], float]) -> None:
        self._asked = asked
        self._clock = clock
        self._waiting_since: dict[str, float] = {}

    def __call__(self, version: Json) -> bool:
        return all(self._is_settled(one) for one in self._counting(version))

    def missing(self, version: Json) -> list[Json]:
        return [
            one
            for one in self._counting(version)
            if one["state"] not in _GOOD and (self._asked or not one.get("waiting_for"))
        ]

    def _counting(self, version: Json) -> list[Json]:
        return [one for one in version["builds"] if not self._asked or one["target"] in self._asked]

    def _is_settled(self, build: Json) -> bool:
        if build["state"] not in _WORKING:
            return True
        if not build.get("waiting_for"):
            self._waiting_since.pop(build["target"], None)
            return False
        # A worker that has just started may come any moment.
        since = self._waiting_since.setdefault(build["target"], self._clock())
        return self._clock() - since >= BUILDER_S


def _list_builds(run: Run) -> int:
    options = run.options
    found = run.client.builds(options.model, options.version, options.state)
    columns = ["id", "model", *_COLUMNS[1:]]
    rows = [[row[0], one["model"], *row[1:]] for row, one in zip(_rows(found), found, strict=True)]
    run.out.result({"items": found}, lambda: run.out.table(columns, rows))
    return OK


def _show_build(run: Run) -> int:
    build = run.client.build(run.options.id)

    def show() -> None:
        report = build.get("report") or {}
        accuracy, latency = build.get("accuracy") or {}, build.get("latency") or {}
        run.out.facts(
            [
                ("build", build["id"]),
                ("of", f"{build['model']} {build['version']}"),
                ("target", build["target"]),
                ("state", build["state"]),
                ("waits for", build["waiting_for"]),
                ("reason", build["reason"]),
                ("digest", build["digest"]),
                ("size", size(build["size"]) if build["size"] else None),
                ("recipe", report.get("recipe")),
                ("accuracy", _accuracy_words(accuracy) if accuracy else None),
                ("latency", _latency_words(latency) if latency else None),
                ("built by", build["worker"]),
                ("finished", moment(build["finished_ms"]) if build["finished_ms"] else None),
                ("notes", "\n".join(report.get("notes", []))),
            ]
        )
        tries = report.get("tries") or []
        if tries:
            run.out.say("")
            rows = [[one["recipe"], one["outcome"], one.get("detail", ""), one.get("seconds")] for one in tries]
            run.out.table(["tried", "outcome", "detail", "seconds"], rows)

    run.out.result(build, show)
    return OK


def _retry(run: Run) -> int:
    build = run.client.retry_build(run.options.id)
    run.out.result(
        build, lambda: run.out.say(f"{build['model']} {build['version']} {build['target']}: {build['state']}")
    )
    return OK


def _with_reason(build: Json) -> str:
    reason = build.get("reason") or (f"waits for {build['waiting_for']}" if build.get("waiting_for") else "")
    return f"{build['target']} ({reason})" if reason else str(build["target"])


def _rows(builds: Sequence[Json]) -> list[list[object]]:
    return [
        [
            one["id"],
            one["version"],
            one["target"],
            one["state"],
            size(one["size"]),
            f"{one['accuracy']['build']:.4f}" if one.get("accuracy") else None,
            f"{one['latency']['p50_ms']:.3g} ms" if one.get("latency") else None,
            one.get("waiting_for") or one.get("reason") or "",
        ]
        for one in builds
    ]


def _accuracy_words(accuracy: Json) -> str:
    return (
        f"{accuracy['metric']} {accuracy['build']:.4f}, source {accuracy['source']:.4f}, over {accuracy['samples']} samples "
        f"(budget {accuracy['budget']:g})"
    )


def _latency_words(latency: Json) -> str:
    return (
        f"p50 {latency['p50_ms']:.3g} ms, p99 {latency['p99_ms']:.3g} ms, load {latency['load_ms']:.0f} ms, "
        f"{latency['peak_rss_mb']:.0f} MB, on {latency['machine']}"
    )
