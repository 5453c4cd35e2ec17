"""The command line as people and pipelines use it: exit codes, the one JSON object, the one line of an error."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from covey_client.cli import main
from covey_contract.bundle import metadata_name, order_name
from covey_contract.messages import ASSIGNMENT_TYPE, Assignment, Order
from covey_contract.signing import seal
from covey_contract.wire import encode

if TYPE_CHECKING:
    from tests.unit.client.conftest import FakeServer

DEVICE = {
    "id": "press-1",
    "profile": "raspberry-pi-5",
    "simulated": True,
    "online": True,
    "last_seen_ms": 1000,
    "enrolled_ms": 1000,
    "revoked_ms": None,
    "agent_version": "0.1.0",
    "board": "Pi \x1b[2J[bold]",
    "architecture": "aarch64",
    "labels": {"line": "a"},
    "models": [{"model": "digits", "active": {"digest": "a" * 64, "version": "1.0", "target": "tflite-int8"}}],
    "profile_reason": "board 'Pi'",
    "facts": {"board": "Pi \x1b[2J[bold]", "memory_mb": 8256},
    "groups": ["all"],
}


def campaign(state: str, **fields: object) -> dict[str, Any]:
    stage = {"name": "canary", "who": "group canary", "state": "running", "devices": 2}
    stage |= {"counts": {"active": 1}, "progress": {"busy": 1}}
    return {
        "name": "digits-1.1",
        "model": "digits",
        "version": "1.1",
        "state": state,
        "waiting_for": "canary: 1 of 2 active",
        "devices": 2,
        "active": 1,
        "failed": 0,
        "created_ms": 1000,
        "created_by": "admin",
        "stages": [stage],
        "gates_stage": "canary",
        "gates": [{"gate": "latency", "status": "no_evidence", "summary": "0 of 100 requests"}],
        **fields,
    }


def build(target: str, state: str, waiting_for: str = "") -> dict[str, Any]:
    figures = (
        {"size": 27_700, "accuracy": {"build": 0.9733}, "latency": {"p50_ms": 0.0276}}
        if state == "built"
        else {"size": 0}
    )
    return {
        "id": 5,
        "version": "1.0",
        "target": target,
        "state": state,
        "waiting_for": waiting_for,
        "reason": "",
        **figures,
    }


def version(*builds: dict[str, Any]) -> dict[str, Any]:
    return {"model": "digits", "version": "1.0", "builds": list(builds)}


class Covey:
    """`covey` in this process, talking to the fake server."""

    def __init__(self, server: FakeServer, capture: pytest.CaptureFixture[str]) -> None:
        self._server = server
        self._capture = capture

    def __call__(self, *words: str) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        code = main(["--server", self._server.url, *words])
        captured = self._capture.readouterr()
        return code, captured.out, captured.err

    def json(self, *words: str) -> tuple[int, Any]:
        code, out, _ = self(*words, "--json")
        assert out.count("\n") == 1, "one JSON object on one line"
        return code, json.loads(out)


@pytest.fixture
def covey(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> Covey:
    return Covey(server, capsys)


# --- looking ------------------------------------------------------------------------------------------------------------


def test_device_list(covey: Covey, server: FakeServer) -> None:
    server.on("GET /api/v1/devices", {"items": [DEVICE], "next": None})
    code, out, err = covey("device", "list", "--online", "--group", "all")
    assert (code, err) == (0, "")
    assert out.splitlines()[1].split()[:5] == ["press-1", "online", "raspberry-pi-5", "simulated", "digits"]
    assert server.asked[0].query["online"] == ["true"]
    assert covey.json("device", "list") == (0, {"items": [DEVICE]})


def test_what_devices_say_cannot_rewrite_the_terminal(covey: Covey, server: FakeServer) -> None:
    server.on("GET /api/v1/devices/press-1", DEVICE)
    _, out, _ = covey("device", "show", "press-1")
    assert "\x1b" not in out
    assert "Pi ?[2J[bold]" in out
    assert "simulated" in out


def test_why_names_every_build_that_lost(covey: Covey, server: FakeServer) -> None:
    why = {
        "model": "digits",
        "version": "1.0",
        "profile": "raspberry-pi-5",
        "profile_reason": "board 'Pi'",
        "chosen": {"target": "tflite-int8", "build": 5, "reason": "ranked highest for raspberry-pi-5"},
        "lost": [{"target": "onnxruntime-fp32", "reason": "ranked lower: tflite-int8 before onnxruntime-fp32"}],
    }
    server.on("GET /api/v1/devices/press-1/why", why)
    code, out, _ = covey("device", "why", "press-1", "digits")
    assert code == 0
    assert "ranked lower: tflite-int8 before onnxruntime-fp32" in out
    assert covey.json("device", "why", "press-1", "digits", "1.0") == (0, why)
    assert server.asked[1].query == {"model": ["digits"], "version": ["1.0"]}


def test_a_claim_token_stands_alone_on_standard_output(covey: Covey, server: FakeServer) -> None:
    server.on("POST /api/v1/claim-tokens", {"token": "covey1.x.y", "expires_ms": 2000}, status=201)
    code, out, err = covey("device", "token", "press-1", "--label", "line=a", "--group", "canary", "--ttl", "2h")
    assert (code, out) == (0, "covey1.x.y\n")
    assert "1970-01-01 00:00:02Z" in err
    expected = {"device": "press-1", "labels": {"line": "a"}, "groups": ["canary"], "ttl_s": 7200}
    assert server.asked[0].json == expected


def test_labels_are_set_and_taken_away(covey: Covey, server: FakeServer) -> None:
    server.on("PATCH /api/v1/devices/press-1", DEVICE)
    assert covey("device", "label", "press-1", "line=a", "old-")[0] == 0
    assert server.asked[0].json == {"labels": {"line": "a", "old": None}}


def test_revoking_needs_a_yes_in_a_pipeline(covey: Covey, server: FakeServer) -> None:
    code, _, err = covey("device", "revoke", "press-1")
    assert code == 2
    assert "--yes" in err
    assert server.asked == []
    server.on("POST /api/v1/devices/press-1/revoke", DEVICE)
    assert covey("device", "revoke", "press-1", "--yes")[0] == 0


def test_a_log_that_the_device_cannot_give(covey: Covey, server: FakeServer) -> None:
    server.on("POST /api/v1/devices/press-1/commands", {"text": "", "reason": "internal", "detail": "no log"})
    code, _, err = covey("device", "logs", "press-1")
    assert code == 1
    assert err == "covey: press-1: no log\n"


def test_a_selector_with_two_values_for_one_key(covey: Covey, server: FakeServer) -> None:
    server.on("PUT /api/v1/groups/arm", {"name": "arm", "count": 3})
    words = (
        "--selector",
        "facts.architecture=aarch64",
        "--selector",
        "facts.architecture=armv7l",
        "--selector",
        "profile=x",
    )
    assert covey("group", "set", "arm", *words) == (0, "arm: 3 devices\n", "")
    assert server.asked[0].json == {"selector": {"facts.architecture": ["aarch64", "armv7l"], "profile": "x"}}


def test_audit_verify_fails_when_the_log_is_broken(covey: Covey, server: FakeServer) -> None:
    verdicts = [{"whole": True, "entries": 3, "first_bad": None}, {"whole": False, "entries": 3, "first_bad": 2}]
    server.on("GET /api/v1/audit/verify", *verdicts)
    assert covey("audit", "verify") == (0, "whole: 3 entries\n", "")
    assert covey.json("audit", "verify") == (1, verdicts[1])


def test_console_and_whoami_and_version(covey: Covey, server: FakeServer) -> None:
    server.on("POST /api/v1/login-codes", {"code": "abc", "expires_ms": 1000}, status=201)
    server.on("GET /api/v1/whoami", {"name": "ci", "role": "viewer"})
    assert covey("console")[1] == f"{server.url}/login?code=abc\n"
    assert covey.json("whoami") == (0, {"name": "ci", "role": "viewer", "server": server.url})
    assert covey.json("version")[0] == 0


# --- errors -------------------------------------------------------------------------------------------------------------


def test_a_refusal_is_one_line_with_line_and_field(covey: Covey, server: FakeServer, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("name: a\n")
    server.refuse("POST /api/v1/campaigns/plan", 422, "is not a field known here", field="sock", line=4)
    code, out, err = covey("campaign", "plan", str(file))
    assert (code, out, err) == (1, "", "covey: line 4: sock: is not a field known here\n")
    code, document = covey.json("campaign", "plan", str(file))
    assert code == 1
    error = document["error"]
    assert (error["status"], error["code"], error["field"], error["line"]) == (422, "x", "sock", 4)


def test_without_a_token_the_line_says_what_to_do(covey: Covey, server: FakeServer) -> None:
    server.refuse("GET /api/v1/models", 401, "This needs an API token.")
    code, _, err = covey("model", "list")
    assert code == 1
    assert err.count("\n") == 1
    assert "covey login" in err


def test_no_server_answers(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert main(["--server", url, "device", "list"]) == 4
    assert capsys.readouterr().err.startswith(f"covey: no server answers at {url}")


def test_no_server_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "list"]) == 2
    assert capsys.readouterr().err.startswith("covey: no server: log in with")


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("device",),
        ("nonsense",),
        ("campaign", "watch", "x", "--until", "moon"),
        ("device", "token", "--ttl", "soon"),
        ("device", "label", "a", "novalue"),
        ("group", "set", "g"),
        ("model", "push", "digits", "1.0", "/nonexistent/model.onnx"),
    ],
)
def test_wrong_arguments(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(list(words)) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert main(["--json", *words]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage"


def test_a_campaign_file_that_is_not_there(covey: Covey) -> None:
    code, _, err = covey("campaign", "plan", "/nonexistent/x.yaml")
    assert (code, err) == (2, "covey: /nonexistent/x.yaml: No such file or directory\n")


# --- push and wait --------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "digits.onnx"
    path.write_bytes(b"model")
    return str(path)


def test_push_without_waiting(covey: Covey, server: FakeServer, source: str) -> None:
    queued = version(build("tflite-int8", "queued"))
    server.on("POST /api/v1/models/digits/versions", queued, status=201)
    assert covey.json("model", "push", "digits", "1.0", source) == (0, queued)


@pytest.mark.parametrize(
    ("builds", "targets", "code"),
    [
        ([build("tflite-int8", "built")], [], 0),
        ([build("tflite-int8", "built"), build("openvino-int8", "refused")], [], 1),
        ([build("tflite-int8", "built"), build("openvino-int8", "refused")], ["tflite-int8"], 0),
        ([build("tflite-int8", "built"), build("openvino-int8", "failed")], ["openvino-int8"], 1),
        ([build("openvino-int8", "unsupported")], [], 1),
        ([build("tflite-int8", "built"), build("tensorrt-rtx-fp32", "checked")], [], 0),
        ([build("tensorrt-rtx-fp32", "checked")], ["tensorrt-rtx-fp32"], 0),
    ],
)
def test_push_waits_until_every_build_is_settled(
    covey: Covey, server: FakeServer, source: str, builds: list[dict[str, Any]], targets: list[str], code: int
) -> None:
    server.on("POST /api/v1/models/digits/versions", version(build("tflite-int8", "queued")), status=201)
    server.on(
        "GET /api/v1/models/digits/versions/1.0",
        version(*(build(one["target"], "queued") for one in builds)),
        version(*(build(one["target"], "building") for one in builds)),
        version(*builds),
    )
    named = [word for target in targets for word in ("--target", target)]
    got, out, err = covey("model", "push", "digits", "1.0", source, "--wait", *named)
    assert got == code, err
    assert builds[0]["target"] in out
    assert "queued" in err
    assert "building" in err
    assert ("not built" in err) == (code == 1)


def test_push_times_out(covey: Covey, server: FakeServer, source: str) -> None:
    server.on("POST /api/v1/models/digits/versions", version(), status=201)
    server.on("GET /api/v1/models/digits/versions/1.0", version(build("tflite-int8", "building")))
    code, document = covey.json("model", "push", "digits", "1.0", source, "--wait", "--timeout", "100ms")
    assert code == 3
    assert document["builds"][0]["state"] == "building"


# --- campaigns ------------------------------------------------------------------------------------------------------------


def test_start_makes_a_campaign_from_its_file_and_watches_it(covey: Covey, server: FakeServer, tmp_path: Path) -> None:
    file = tmp_path / "digits.yaml"
    file.write_text("name: digits-1.1\n")
    server.on("POST /api/v1/campaigns", campaign("running"), status=201)
    server.on("GET /api/v1/campaigns/digits-1.1", campaign("running"), campaign("done"))
    code, document = covey.json("campaign", "start", str(file), "--watch")
    assert code == 0
    assert document["reached"] is True
    assert server.asked[0].query == {"start": ["true"]}
    assert server.asked[0].body == b"name: digits-1.1\n"


def test_start_by_name(covey: Covey, server: FakeServer) -> None:
    server.on("POST /api/v1/campaigns/digits-1.1/start", campaign("running"))
    assert covey("campaign", "start", "digits-1.1") == (0, "digits-1.1: running; 2 devices\n", "")


@pytest.mark.parametrize(
    ("states", "until", "code"),
    [
        (["running", "done"], "done", 0),
        (["running", "paused", "running", "done"], "done", 0),
        (["running", "halted"], "done", 1),
        (["rolling_back", "rolled_back"], "done", 1),
        (["failed"], "done", 1),
        (["aborted"], "done", 1),
        (["running", "halted"], "halted", 0),
        (["halted", "rolling_back", "rolled_back"], "rolled_back", 0),
        (["running", "done"], "rolled_back", 1),
    ],
)
def test_watch(covey: Covey, server: FakeServer, states: list[str], until: str, code: int) -> None:
    verdict = {"gate": "latency", "summary": "p99 is 9.1 times that before"}
    server.on("GET /api/v1/campaigns/digits-1.1", *(campaign(state, verdict=verdict) for state in states))
    got, out, err = covey("campaign", "watch", "digits-1.1", "--until", until)
    assert got == code
    assert states[-1] in out
    assert len(server.asked) == len(states)
    if code:
        assert f"covey: digits-1.1 is {states[-1]}, not {until}: p99 is 9.1 times that before" in err


def test_watch_times_out_with_a_code_of_its_own(covey: Covey, server: FakeServer) -> None:
    server.on("GET /api/v1/campaigns/digits-1.1", campaign("running"))
    code, document = covey.json("campaign", "watch", "digits-1.1", "--timeout", "50ms")
    assert code == 3
    assert document["reached"] is False


def test_show_with_devices_and_events_is_still_one_object(covey: Covey, server: FakeServer) -> None:
    part = {
        "device": "press-1",
        "simulated": True,
        "stage_name": None,
        "state": "skipped",
        "build": None,
        "previous": None,
    }
    part |= {"detail": "no build fits", "reason": "none"}
    event = {"at_ms": 1000, "who": "campaign engine", "kind": "started", "message": "started by admin"}
    server.on("GET /api/v1/campaigns/digits-1.1", campaign("running"))
    server.on("GET /api/v1/campaigns/digits-1.1/devices", {"items": [part], "next": None})
    server.on("GET /api/v1/campaigns/digits-1.1/events", {"items": [event], "next": None})
    code, document = covey.json("campaign", "show", "digits-1.1", "--devices", "--events")
    assert (code, document["device_list"], document["event_list"]) == (0, [part], [event])
    _, out, _ = covey("campaign", "show", "digits-1.1", "--devices", "--events")
    assert "press-1 (simulated)" in out
    assert "started by admin" in out
    assert "no evidence" in out


def test_what_a_campaign_does_not_allow(covey: Covey, server: FakeServer) -> None:
    server.refuse("POST /api/v1/campaigns/digits-1.1/pause", 409, "a campaign that is done cannot pause")
    assert covey("campaign", "pause", "digits-1.1") == (1, "", "covey: a campaign that is done cannot pause\n")


# --- as a process ---------------------------------------------------------------------------------------------------------


def _spawn(server: FakeServer, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "covey_client.cli", "--server", server.url, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ))


def test_ctrl_c_ends_a_watch_quietly(server: FakeServer) -> None:
    server.on("GET /api/v1/campaigns/digits-1.1", campaign("running"))
    # A shell that starts the tests in the background has them ignore Ctrl-C, and what they start inherits it.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = _spawn(server, "campaign", "watch", "digits-1.1")
    finally:
        signal.signal(signal.SIGINT, inherited)
    with process:
        try:
            assert process.stderr is not None
            assert b"running" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (process.returncode, err) == (130, b"covey: interrupted\n")


@pytest.mark.parametrize("words", [("--json",), ()], ids=["json", "table"])
def test_a_reader_that_goes_away_is_no_error(server: FakeServer, words: tuple[str, ...]) -> None:
    server.on("GET /api/v1/devices", {"items": [{**DEVICE, "id": f"press-{n}"} for n in range(1000)], "next": None})
    command = [sys.executable, "-m", "covey_client.cli", "--server", server.url, "device", "list", *words]
    pipeline = ["bash", "-c", 'set -o pipefail; "$@" | head -c 10', "bash", *command]
    done = subprocess.run(pipeline, capture_output=True, env=dict(os.environ), timeout=60, check=False)
    # Whether our last write still learns of it is the system's affair; nobody is told, either way.
    assert done.returncode in (0, 141)
    assert (len(done.stdout), done.stderr) == (10, b"")


def test_a_bundle_is_written_and_its_end_is_told(covey: Covey, server: FakeServer, tmp_path: Path) -> None:
    """The end is the earliest of all that must not be over when it is installed."""
    assignment = Assignment(
        id="a",
        device="press-1",
        counter=1,
        issued_ms=0,
        expires_ms=5_000_000_000_000,
        model="digits",
        version="1",
        build="0" * 64,
    )
    sealed = seal(assignment, ASSIGNMENT_TYPE, [Ed25519PrivateKey.generate()])
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr(order_name("press-1", "digits"), encode(Order(assignment=sealed, manifest=sealed)))
        archive.writestr(metadata_name("1.root.json"), b'{"signed": {"expires": "2020-01-01T00:00:00Z"}}')
        archive.writestr(metadata_name("timestamp.json"), b'{"signed": {"expires": "2030-01-02T00:00:00Z"}}')
        archive.writestr(metadata_name("3.snapshot.json"), b'{"signed": {"expires": "2030-01-09T00:00:00Z"}}')
    server.raw("POST /api/v1/bundles", held.getvalue())
    path = tmp_path / "x.bundle"
    code, told = covey.json("device", "bundle", "press-1", "-o", str(path))
    assert code == 0
    assert path.read_bytes() == held.getvalue()
    assert server.asked[-1].json == {"devices": ["press-1"]}
    assert told["orders"] == [{"device": "press-1", "model": "digits"}]
    assert told["good_until_ms"] == 1_893_542_400_000


def test_diagnostics_fail_where_a_check_does(covey: Covey, server: FakeServer, tmp_path: Path) -> None:
    told = {"checks": [{"name": "clock", "ok": False, "words": "1971"}], "agent": "0.1.0"}
    server.on("POST /api/v1/devices/press-1/commands", {"reason": "none", "text": json.dumps(told)})
    path = tmp_path / "d.json"
    code, out, _ = covey("device", "diagnose", "press-1", "-o", str(path))
    assert (code, "1971" in out) == (1, True)
    assert json.loads(path.read_text()) == told
    assert server.asked[-1].json == {"kind": "diagnostics"}
    server.on("POST /api/v1/devices/press-1/commands", {"reason": "unknown_command", "detail": "too old"})
    code, _, err = covey("device", "diagnose", "press-1")
    assert (code, "too old" in err) == (1, True)
